"""The native backend: its images, what its results may not depend on, and what it refuses."""

import dataclasses
import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import sparsebert as sb
from sparsebert.backends import native, native_pack
from sparsebert.backends.base import Call, CallKind, Upstream
from sparsebert.kernels.cpu.library import load
from sparsebert.plan import compile_for_backend
from sparsebert.testing import expected_attention
from tests.attention.cases import make_key_mask, needs_library, random_mask, shared_mask
from tests.compiler.bit_masks import dense_masks

MASKS = {
    "random": lambda: random_mask(4, 45, 70),
    "dense in part": lambda: random_mask(4, 45, 70, density=0.9),
    "one for all": lambda: shared_mask(4, 70, 45),
    "strided": lambda: sb.patterns.strided(256),
    "global rows": lambda: sb.patterns.star(100),
}


def native_plan(mask):
    return compile_for_backend(mask, "native", target="cpu")


def program_of(mask, chosen=None):
    """The native program of a mask, of the distinct heads `chosen` alone."""
    schedule = native_plan(mask).schedule
    every = np.ones(len(schedule.dense_heads), dtype=bool)
    return native.BACKEND.lower(schedule, every if chosen is None else np.array(chosen))


def tensors(mask, *, batch=2, heads=4, kv_heads=4, dim=24, dtype=torch.float32):
    q = torch.randn(batch, mask.q_len, heads, dim).to(dtype).transpose(1, 2)
    k, v = (torch.randn(batch, kv_heads, mask.kv_len, dim).to(dtype) for _ in range(2))
    return q, k, v


def results(call, program, grad_o):
    """All that the two passes return."""
    o, lse = native.BACKEND.forward(call, program)
    return o, lse, *native.BACKEND.backward(call, program, Upstream(o, lse, grad_o, None))


def with_threads(count, run):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------ images


@pytest.mark.parametrize("name", MASKS)
def test_an_image_is_the_mask(name):
    mask = MASKS[name]()
    found = native_pack.unpack_masks(program_of(mask).image)
    heads = 1 if name == "one for all" else mask.num_heads
    assert torch.equal(found.expand(heads, -1, -1), mask.dense()[0])


def test_an_image_of_some_heads():
    mask = random_mask(4, 33, 40)
    program = program_of(mask, [False, True, True, False])
    assert not program.whole
    assert torch.equal(native_pack.unpack_masks(program.image), mask.dense()[0, 1:3])


@settings(max_examples=60, deadline=None)
@given(dense_masks())
def test_every_row_and_entry_is_in_a_group(dense):
    """Each entry once; a row's single entries in one of its groups; merges where rows share."""
    mask = sb.AttentionMask.from_dense(torch.from_numpy(dense))
    schedule = native_plan(mask).schedule
    tiles = schedule.queries(np.array([True]), singles=True)
    groups = native_pack.groups_of(tiles, 0)
    flat = groups.rows.reshape(-1)
    assert set(flat[flat >= 0]) == set(range(mask.q_len))
    assert ((groups.rows >= 0)[:, :-1] >= (groups.rows >= 0)[:, 1:]).all()  # empty ones last
    entries = len(groups.entry_cols) + int(np.bitwise_count(groups.tile_words).sum())
    assert entries == dense.sum()
    assert (groups.tile_words != 0).all()

    merges = native_pack.merges_of(groups.rows)
    count = np.bincount(flat[flat >= 0])
    shares = np.array([(count[rows[rows >= 0]] > 1).any() for rows in groups.rows])
    assert ((merges.slot >= 0) == shares).all()
    of_slot = groups.rows[shares].reshape(-1)
    for i, row in enumerate(merges.rows):
        slots = merges.from_slots[merges.start[i] : merges.start[i + 1]]
        assert (of_slot[slots] == row).all() and len(set(slots)) == count[row]


def test_tall_tiles_are_cut_into_groups():
    """As those of a plan for another backend, which may have up to 128 rows."""
    dense = torch.rand(2, 150, 90) < torch.tensor([0.4, 0.9])[:, None, None]
    dense[:, :, 40:70] = True
    mask = sb.AttentionMask.from_dense(dense)
    tiles = compile_for_backend(mask, "torch", target="cpu").schedule.queries(np.ones(2, bool))
    assert tiles.height.max() > 16 and tiles.full.any() and len(tiles.words)
    image = native_pack.pack_image(tiles, [0, 1], None)
    assert torch.equal(native_pack.unpack_masks(image), mask.dense()[0])


@pytest.mark.parametrize("name", MASKS)
def test_the_work_of_an_image(name):
    """By the counts of its groups: what the threads' shares go by."""
    mask = MASKS[name]()
    schedule = native_plan(mask).schedule
    every = np.ones(len(schedule.dense_heads), dtype=bool)
    program = native.BACKEND.lower(schedule, every)
    tiles = schedule.queries(every, singles=True)
    heads = [0] if program.shared else schedule.head_map.tolist()
    assert program.work == sum(int(native_pack.groups_of(tiles, u).cost[-1]) for u in heads)


@needs_library
def test_a_short_call_takes_fewer_threads(monkeypatch):
    taken, record = [], native._CALL

    def pack(*numbers):
        taken.append(numbers[-2])
        return record.pack(*numbers)

    monkeypatch.setattr(native, "_CALL", type("Call", (), {"pack": staticmethod(pack)}))
    for length in (16, 600):
        mask = random_mask(2, length, length)
        q, k, v = tensors(mask, batch=1, heads=2, kv_heads=2)
        with_threads(
            2,
            lambda q=q, k=k, v=v, mask=mask: native.BACKEND.forward(
                Call(q, k, v, None, None, 0.1, 0.0), program_of(mask)
            ),
        )
    assert taken[0] == 1 < taken[-1]


# ------------------------------------------------------------------------------ results


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("name", MASKS)
def test_the_same_bits_with_any_number_of_threads(name, kv_heads, dtype, monkeypatch):
    monkeypatch.setattr(native, "_LEAST_WORK", 1)  # else so short a call takes one
    mask = MASKS[name]()
    heads = 4 if mask.num_heads == 1 else mask.num_heads
    q, k, v = tensors(mask, heads=heads, kv_heads=kv_heads, dtype=dtype)
    key_mask = make_key_mask("middle", 2, mask.kv_len)
    call = Call(q, k, v, key_mask, torch.tensor([3]), 0.2, 0.1)
    program, grad_o = program_of(mask), torch.randn(q.shape).to(q)
    one, two, five = (
        with_threads(threads, lambda: results(call, program, grad_o)) for threads in (1, 2, 5)
    )
    for a, b, c in zip(one, two, five, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_results_need_nothing_more(kv_heads, dtype):
    """As `Backend.finishes` says."""
    assert native.BACKEND.finishes
    mask = random_mask(4, 45, 70)
    q, k, v = tensors(mask, kv_heads=kv_heads, dtype=dtype)
    key_mask = make_key_mask("middle", 2, mask.kv_len)
    call = Call(q, k, v, key_mask, None, 0.2, 0.0)
    o, lse, dq, dk, dv = results(call, program_of(mask), torch.randn(q.shape).to(dtype))
    assert lse.is_contiguous() and lse.dtype == torch.float32
    for found, like in ((o, q), (dq, q), (dk, k), (dv, v)):
        assert found.shape == like.shape and found.dtype == dtype
        assert found.transpose(1, 2).is_contiguous()
    hidden = ~key_mask[:, None, :, None].expand(dk.shape)
    assert hidden.any() and not dk[hidden].any() and not dv[hidden].any()


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chosen", [None, [False, True, True, False]], ids=["all", "some"])
@pytest.mark.parametrize("name", ["random", "strided", "global rows"])
def test_the_lse_is_left_out_where_nobody_wants_it(name, chosen, dtype):
    mask = random_mask(4, 45, 70) if chosen else MASKS[name]()
    heads = 4 if chosen else mask.num_heads
    call = Call(*tensors(mask, heads=heads, kv_heads=heads, dtype=dtype), None, None, 0.2, 0.0)
    program = program_of(mask, chosen)
    o, lse = native.BACKEND.forward(call, program)
    alone, nothing = native.BACKEND.forward(call._replace(wants_lse=False), program)
    assert lse is not None and nothing is None
    assert torch.equal(o, alone)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [48, 64])
@pytest.mark.parametrize("name", MASKS)
def test_the_same_bits_in_any_memory_order(name, dim, dtype):
    """Rows of k and v are read where they are, or copied; results are the same."""
    mask = MASKS[name]()
    heads = mask.num_heads
    q, k, v = tensors(mask, heads=heads, kv_heads=heads, dim=dim, dtype=dtype)
    program, grad_o = program_of(mask), torch.randn(q.shape).to(dtype)
    orders = (
        lambda x: x.contiguous(),
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.cat([torch.full_like(x, math.nan), x, torch.full_like(x, math.nan)], 3)[
            ..., dim : 2 * dim
        ],
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),  # D not contiguous: copied
    )
    found = [
        results(Call(*(order(x) for x in (q, k, v)), None, None, 0.1, 0.0), program, order(grad_o))
        for order in orders
    ]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@needs_library
def test_threads_of_python_do_not_disturb_each_other():
    mask = random_mask(4, 100, 100)
    program = program_of(mask)
    calls = [Call(*tensors(mask), None, None, 0.1, 0.0) for _ in range(4)]
    expected = [native.BACKEND.forward(call, program)[0] for call in calls]
    found: dict[int, bool] = {}

    def run(i):
        same = [
            torch.equal(native.BACKEND.forward(calls[i], program)[0], expected[i])
            for _ in range(50)
        ]
        found[i] = all(same)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


@needs_library
@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_scratch_is_kept_up_to_a_size(monkeypatch, kept):
    monkeypatch.setattr(native, "_KEPT", kept)
    monkeypatch.setattr(native, "_scratch", native._Scratch())
    for length in (40, 300, 40):
        mask = random_mask(2, length, length)
        q, k, v = tensors(mask, batch=1, heads=2, kv_heads=2, dim=40)
        o = sb.sparse_attention(q, k, v, native_plan(mask), backend="native")
        torch.testing.assert_close(o, sb.reference_attention(q, k, v, mask).to(o))
    assert (native._scratch.memory.numel() > 0) == (kept > 0)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["k", "v", "q", "grad_o"])
def test_what_is_not_finite_reaches_those_who_attend_alone(which, value, dtype):
    """Within a tile, too, where other rows multiply it by 0."""
    dense = torch.rand(1, 40, 48) < 0.7
    dense[0, 7], dense[0, :, 9] = True, True
    dense[0, 20:30, 5], dense[0, 3, ::3] = False, False
    mask = sb.AttentionMask.from_dense(dense)
    inputs = tensors(mask, batch=1, heads=1, kv_heads=1, dtype=dtype)
    q, k, v = (x.contiguous() for x in inputs)
    grad_o = torch.randn(q.shape).to(dtype)
    row = 5 if which in "kv" else 3
    {"q": q, "k": k, "v": v, "grad_o": grad_o}[which][0, 0, row] = value
    o, _, dq, dk, dv = results(Call(q, k, v, None, None, 0.2, 0.0), program_of(mask), grad_o)
    *clean, clean_grad_o = (x.nan_to_num(1.0, 1.0, 1.0) for x in (q, k, v, grad_o))
    expected = expected_attention(*clean, mask.dense()[0], scale=0.2, grad_o=clean_grad_o)

    def assert_exact(name, found, rows):
        error = (found.double() - expected.exact[name])[0, 0, rows].abs()
        assert (error <= expected.bound[name][0, 0, rows]).all(), name

    tainted = mask.dense()[0, 0, :, 5] if which in "kv" else torch.arange(40) == 3
    if which != "grad_o":
        assert_exact("o", o, ~tainted)
        assert not o[0, 0, tainted].isfinite().all(dim=-1).any()
    assert_exact("dq", dq, ~tainted)
    # A key gets it from the queries that attend to it.
    keys = mask.dense()[0, 0, tainted].any(dim=0)
    assert_exact("dk", dk, ~keys)
    assert_exact("dv", dv, ~keys)


@needs_library
@pytest.mark.parametrize("name", ["random", "one for all"])
def test_second_derivatives(name):
    """By composed operations, and those of the torch backend."""
    mask = MASKS[name]()
    inputs = tensors(mask, batch=1, dim=8)
    plan = native_plan(mask)

    def second(backend, dtype):
        q, k, v = (x.to(dtype).requires_grad_() for x in inputs)
        o = sb.sparse_attention(q, k, v, plan, backend=backend)
        grads = torch.autograd.grad(o.pow(2).sum(), (q, k, v), create_graph=True)
        return torch.autograd.grad(sum(x.pow(2).sum() for x in grads), (q, k, v))

    exact = second("torch", torch.float64)
    for found, other, x in zip(
        second("native", torch.float32), second("torch", torch.float32), exact, strict=True
    ):
        error, usual = ((y - x).abs().max() / x.abs().max() for y in (found, other))
        assert error <= 2 * usual + 1e-6


class Watch(TorchDispatchMode):
    """Notes the operations that pass by."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@needs_library
@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.2}, {"return_lse": True}])
def test_eager_calls_are_those_of_the_op(options):
    """Plain calls do without the op, and give its bits; whoever watches operations sees it."""
    mask = random_mask(4, 45, 70)
    plan = native_plan(mask)
    q, k, v = (x.requires_grad_() for x in tensors(mask))

    def run():
        torch.manual_seed(5)
        out = sb.sparse_attention(q, k, v, plan, **options)
        o = out[0] if isinstance(out, tuple) else out
        return o, *torch.autograd.grad(o.pow(2).sum(), (q, k, v))

    plain = run()
    with Watch() as watch:
        watched = run()
    assert {"sparsebert::attention", "sparsebert::attention_backward"} <= watch.names
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


@needs_library
@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("with_grad", [True, False])
def test_tensors_that_stand_for_their_negatives(which, with_grad):
    """As `x.conj().imag` does: what lies in their memory is not their value."""
    mask = random_mask(4, 45, 70)
    plan, given = native_plan(mask), dict(zip("qkv", tensors(mask), strict=True))
    negated = {**given, which: torch._neg_view(given[which])}
    results = []
    for each in (negated, {**given, which: -given[which]}):
        q, k, v = (x.requires_grad_(with_grad) for x in each.values())
        o = sb.sparse_attention(q, k, v, plan, backend="native")
        results.append(
            [o, *(torch.autograd.grad(o.square().sum(), (q, k, v)) if with_grad else [])]
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_library
@pytest.mark.parametrize("with_grad", [True, False])
def test_a_key_mask_that_has_no_values_in_memory(with_grad):
    mask = random_mask(4, 45, 70)
    q, k, v = (x.requires_grad_(with_grad) for x in tensors(mask))
    hidden = torch._efficientzerotensor((2, 70), dtype=torch.bool)
    o = sb.sparse_attention(q, k, v, native_plan(mask), key_mask=hidden, backend="native")
    assert not o.any()
    assert not with_grad or not any(x.any() for x in torch.autograd.grad(o.sum(), (q, k, v)))


@needs_library
def test_gradients_that_have_no_values_in_memory():
    mask = random_mask(4, 45, 70)
    q, k, v = (x.requires_grad_() for x in tensors(mask))
    o = sb.sparse_attention(q, k, v, native_plan(mask), backend="native")
    upstream = torch.randn_like(o)

    def gradients(grad_o):
        return torch.autograd.grad(o, (q, k, v), grad_o, retain_graph=True)

    negated, expected = gradients(torch._neg_view(upstream)), gradients(-upstream)
    assert all(torch.equal(a, b) for a, b in zip(negated, expected, strict=True))
    assert not any(x.any() for x in gradients(torch._efficientzerotensor(o.shape)))


# ------------------------------------------------------------------------------ refusals


def test_gradients_in_batches_are_refused():
    mask = random_mask(4, 45, 70)
    q, k, v = (x.requires_grad_() for x in tensors(mask))
    o = sb.sparse_attention(q, k, v, native_plan(mask))
    with pytest.raises(NotImplementedError, match=r"use torch\.func, for example vmap over vjp"):
        torch.autograd.grad(o, q, torch.ones(3, *o.shape), is_grads_batched=True)


def _plain(attend, *inputs):
    return attend(*inputs)


def _watched(attend, *inputs):
    with Watch():
        return attend(*inputs)


def _compiled(attend, *inputs):
    torch._dynamo.reset()
    return torch.compile(attend, backend="aot_eager")(*inputs)


CHANGED = {
    "all": lambda x: True,
    "q and o": lambda x: x.shape[-2:] == (45, 24),
    "k and v": lambda x: x.shape[-2:] == (70, 24),
    "key mask": lambda x: x.dtype == torch.bool,
}


@pytest.mark.parametrize(
    ("way", "changed"),
    [(way, which) for way in (_plain, _watched) for which in CHANGED]
    # q's dtype is that of the call.
    + [pytest.param(_compiled, which, marks=needs_library) for which in ("k and v", "key mask")],
)
def test_saved_tensors_may_come_back_in_another_dtype(way, changed):
    """By somebody's hooks, which save memory."""
    mask = random_mask(4, 45, 70)
    q, k, v = (x.requires_grad_() for x in tensors(mask))
    plan, key_mask = native_plan(mask), make_key_mask("middle", 2, mask.kv_len)

    def gradients(way):
        o = way(lambda *x: sb.sparse_attention(*x, plan, key_mask=key_mask), q, k, v)
        return torch.autograd.grad(o.pow(2).sum(), (q, k, v))

    def pack(x):
        return x.to(torch.float64) if CHANGED[changed](x) else x

    expected = gradients(_plain)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        found = gradients(way)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.float(), b)


def test_refusals_say_what_to_do(monkeypatch):
    refuses = native.BACKEND.refuses
    if load().library is not None:
        assert refuses(CallKind("cpu", torch.bfloat16, 20)) == []
        assert "float64; convert them" in refuses(CallKind("cpu", torch.float64, 20))[0]
        assert "got cuda; move them" in refuses(CallKind("cuda", torch.float32, 20))[0]
    gone = dataclasses.replace(load(), library=None, reason="it is gone; run `make native`")
    monkeypatch.setattr(native, "load", lambda: gone)
    reasons = refuses(CallKind("cpu", torch.float32, 20))
    assert reasons == ["cannot run here: it is gone; run `make native`"]


@needs_library
def test_a_damaged_image_is_refused():
    mask = random_mask(4, 45, 70)
    program, (q, k, v) = program_of(mask), tensors(mask)
    call = Call(q, k, v, None, None, 0.2, 0.0)
    short = program._replace(image=program.image[:-64].clone())
    other = program_of(random_mask(4, 45, 71))
    for wrong in (short, other, program._replace(image=torch.zeros(8, dtype=torch.uint8))):
        with pytest.raises(RuntimeError, match="the plan is damaged, or for tensors of other"):
            native.BACKEND.forward(call, wrong)


@needs_library
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 256), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_every_head_size(dim, dtype):
    mask = random_mask(2, 20, 23, density=0.5)
    q, k, v = tensors(mask, heads=2, kv_heads=2, dim=dim, dtype=dtype)
    o = sb.sparse_attention(q, k, v, native_plan(mask), backend="native")
    expected = sb.reference_attention(q.double(), k.double(), v.double(), mask)
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(o.double(), expected, rtol=tolerance, atol=tolerance)
