"""The Triton kernels against the fp64 reference, over tiles made by hand.

In Triton's interpreter where there is no GPU. What a result may be off by is derived from the
arithmetic, see `sparsebert.testing`.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from sparsebert import dropout, patterns
from sparsebert.api import sparse_attention
from sparsebert.backends.triton_pack import pack_tiles
from sparsebert.kernels.program import KernelProgram
from sparsebert.plan import compile_plan
from sparsebert.testing import expected_attention
from sparsebert.tiles.build import TileGroup, build_tile_set

pytest.importorskip("triton")
from sparsebert.kernels import attention
from tests.kernels.kernel_cases import (
    DEVICE,
    RESULTS,
    Case,
    backward,
    forward,
    forward_and_backward,
    guarded_memory,
    make_program,
    run,
)

CASES = {
    "one position": Case(n=1, m=1, full=1),
    "lengths differ": Case(n=63, m=130),
    "bf16": Case(n=64, m=64, dtype=torch.bfloat16),
    "fp16, gqa": Case(dtype=torch.float16, heads=4, kv_heads=2, one_mask=True),
    "bf16, mqa, key mask": Case(
        n=40, m=40, dtype=torch.bfloat16, heads=3, kv_heads=1, key_mask=True
    ),
    "full columns, 16 rows": Case(n=17, m=140, full=100, heights=(16,)),
    "full columns, 64 rows, dropout": Case(n=70, m=150, full=140, dropout_p=0.3, one_mask=True),
    "full columns, 32 rows, key mask": Case(n=33, m=150, full=140, heights=(32,), key_mask=True),
    "full columns, 128 rows, bf16": Case(
        n=130, m=140, full=130, heights=(128,), dtype=torch.bfloat16, one_mask=True
    ),
    "parts of one height": Case(heights=(16,), parts=3, heads=1, kv_heads=1),
    "parts of all heights": Case(n=70, m=70, heights=(16, 32, 64, 128), parts=4, one_mask=True),
    "parts, fp16, dropout": Case(
        n=48, m=40, heights=(32, 16), parts=2, dtype=torch.float16, dropout_p=0.5
    ),
    "parts, key mask, grad lse": Case(
        n=40, m=48, heights=(16, 32), parts=2, key_mask=True, grad_lse=True
    ),
    "dropout, key mask, gqa": Case(
        n=33, m=33, heights=(16,), heads=4, kv_heads=2, key_mask=True, dropout_p=0.1
    ),
    "grad lse, bf16, dropout": Case(
        n=33, m=33, dtype=torch.bfloat16, grad_lse=True, dropout_p=0.2
    ),
    "heads last, gqa, parts": Case(
        n=33, m=40, transposed=True, heads=2, kv_heads=1, heights=(16, 32), parts=2
    ),
    "D 8, fp16, heads last": Case(n=33, d=8, dtype=torch.float16, transposed=True),
    "D 12": Case(n=33, m=33, d=12, dropout_p=0.2),
    "D 40, bf16, parts": Case(n=33, m=40, d=40, dtype=torch.bfloat16, heights=(16,), parts=2),
    "D 72, key mask": Case(n=33, m=33, d=72, key_mask=True, heights=(32,)),
    "D 80, fp16": Case(n=17, m=33, d=80, dtype=torch.float16, heights=(16,)),
    "D 96, heads last": Case(n=33, m=33, d=96, transposed=True, heads=1, kv_heads=1),
    "D 128, grad lse": Case(n=17, m=17, d=128, heights=(16,), grad_lse=True),
    "D 256, bf16": Case(n=17, m=33, d=256, heights=(16,), dtype=torch.bfloat16, one_mask=True),
    "128 rows, bf16, key mask": Case(
        n=130, m=140, heights=(128,), full=130, dtype=torch.bfloat16, one_mask=True, key_mask=True
    ),
    "full columns, no real key": Case(
        n=16, m=150, full=140, heights=(16,), key_mask=True, hidden=150
    ),
    "the first real key is far": Case(
        n=16, m=150, full=140, heights=(16,), key_mask=True, hidden=135
    ),
    "chained, dropout, key mask": Case(
        n=40, m=48, heights=(16,), parts=2, dropout_p=0.4, key_mask=True, dtype=torch.bfloat16
    ),
    "chained, only the second tile has real keys, or only the first": Case(
        n=33, m=64, heights=(32,), parts=2, key_mask=True, hidden=40
    ),
    "chained, gqa, fp16, grad lse": Case(
        n=40,
        m=40,
        heights=(32, 16),
        parts=2,
        heads=4,
        kv_heads=2,
        dtype=torch.float16,
        grad_lse=True,
    ),
    "negative scale": Case(n=17, m=33, heights=(16,), scale=-0.7),
    "scale zero": Case(n=17, m=33, heights=(16,), scale=0.0),
}


LARGE = {
    f"{str(dtype)[6:]}{', key mask' * key_mask}{', dropout' * dropping}{', parts' * parts}": Case(
        n=32, m=80, heads=1, kv_heads=1, dtype=dtype, heights=(16, 32), parts=1 + parts,
        key_mask=key_mask, dropout_p=0.3 * dropping, grad_lse=True, score_size=200.0,
        value_size=4.0 if dtype == torch.float16 else 2.0**40,
    )
    for dtype in (torch.float32, torch.bfloat16)
    for key_mask, dropping, parts in itertools.product((False, True), repeat=3)
} | {
    "float16, key mask, 64 rows": Case(
        n=32, m=80, dtype=torch.float16, key_mask=True, score_size=200.0, value_size=4.0
    ),
    "bfloat16, key mask, 128 rows": Case(
        n=32, m=80, dtype=torch.bfloat16, heights=(128,), key_mask=True, score_size=200.0
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_match_the_reference(name, monkeypatch):
    run(CASES[name], monkeypatch)


@pytest.mark.parametrize("name", LARGE)
def test_large_scores_and_values(name, monkeypatch):
    run(LARGE[name], monkeypatch)


def test_results_do_not_depend_on_what_memory_held():
    """Rows without tiles, merged rows and empty slots are all written: poison shows nothing."""
    case = Case(n=40, m=48, heights=(16, 32), parts=2, heads=1, kv_heads=1)
    q, k, v, mask, _ = case.tensors()
    program = make_program(mask, case.heights, case.parts)
    expected = forward_and_backward(q, k, v, None, program)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN
    try:
        poisoned = forward_and_backward(q, k, v, None, program)
    finally:
        torch.use_deterministic_algorithms(False)
    for ours, theirs in zip(poisoned, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("hidden_by", ["key mask", "mask"])
def test_garbage_in_hidden_keys_reaches_nothing(hidden_by):
    case = Case(n=33, m=40, heights=(16, 32), parts=2, heads=1, kv_heads=1)
    q, k, v, mask, _ = case.tensors()
    hidden = torch.zeros(2, case.m, dtype=torch.bool, device=DEVICE)
    hidden[:, 5:9] = True
    key_mask = None
    if hidden_by == "mask":
        mask[:, :, 5:9] = False
    else:
        key_mask = ~hidden
    program = make_program(mask, case.heights, case.parts)
    expected = forward_and_backward(q, k, v, key_mask, program)
    k[:, :, 5], k[:, :, 6:9] = math.nan, math.inf
    v[:, :, 5:7], v[:, :, 7:9] = -math.inf, math.nan
    results = forward_and_backward(q, k, v, key_mask, program)
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)
    for gradient in results[3:]:
        assert not gradient[:, :, 5:9].any()


def test_garbage_in_queries_without_keys_reaches_nothing():
    """Such a query may be dead by the mask or by the key mask."""
    case = Case(n=33, m=40, heights=(16,), heads=1, kv_heads=1, key_mask=True)
    q, k, v, mask, key_mask = case.tensors()
    mask[:, 0, 1:] = False
    key_mask[:, 0] = False
    program = make_program(mask, case.heights)
    expected = forward_and_backward(q, k, v, key_mask, program)
    dead = [0, case.n // 2]
    q[:, :, dead] = math.nan
    grad_o = torch.ones_like(q)
    grad_o[:, :, dead] = math.nan
    results = forward_and_backward(q, k, v, key_mask, program, grad_o=grad_o)
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert not results[0][:, :, dead].any() and not results[2][:, :, dead].any()


def test_every_kind_of_stride_gives_the_same_result():
    case = Case(n=17, m=20, heights=(16,), heads=1, kv_heads=1)
    q, k, v, mask, _ = case.tensors()
    program = make_program(mask, case.heights)
    expected = forward_and_backward(q, k, v, None, program)

    def strided(x):  # no dimension is contiguous
        storage = x.new_zeros([2 * size for size in x.shape])
        view = storage[::2, ::2, ::2, ::2]
        return view.copy_(x)

    def odd(x):  # rows that no wide load is aligned to
        storage = x.new_zeros(*x.shape[:3], x.shape[3] + 1)
        return storage[..., 1:].copy_(x)

    for change in (strided, odd, lambda x: x.mT.contiguous().mT):
        results = forward_and_backward(*(change(x) for x in (q, k, v)), None, program)
        for ours, theirs in zip(results, expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_grad_lse", [False, True])
def test_what_dk_and_dv_are_told_of_each_query(parts, dtype, with_grad_lse, monkeypatch):
    """LSE and delta, from one of the tiles that cover it; +inf and 0 if it has no key."""
    n = 33
    o, grad_o = torch.randint(-3, 4, (2, 2, 3, n, 16), device=DEVICE).to(dtype)  # exact in fp32
    lse, grad_lse = torch.randint(-9, 10, (2, 2, 3, n), device=DEVICE).float()
    delta = (o.float() * grad_o.float()).sum(-1)
    delta = delta - grad_lse if with_grad_lse else delta
    in_unit = lse if dtype == torch.float32 else lse * math.log2(math.e)
    expected = torch.stack([in_unit, delta], -1)
    dead = torch.rand(2, 3, n, device=DEVICE) < 0.3
    dead[..., -1] = True
    expected[dead] = torch.tensor([math.inf, 0.0], device=DEVICE)
    lse[dead] = -math.inf
    o[dead] = grad_lse[dead] = math.nan
    program = make_program(torch.ones(1, n, n, dtype=torch.bool), (16,), parts)
    assert parts < 2 or program.queries.chained
    assert parts < 3 or program.queries.num_slots
    told = {}
    run_tiles = attention.run_tiles

    def watched(name, side, repeats, arguments):
        run_tiles(name, side, repeats, arguments)
        told[name] = arguments["stats_ptr"].clone()

    monkeypatch.setattr(attention, "run_tiles", watched)
    q = torch.randn_like(o)
    given = grad_lse if with_grad_lse else None
    with guarded_memory(monkeypatch):
        backward(grad_o, given, q, q, q, o, lse, None, None, program, 0.25, 0.0)
    assert torch.equal(told["dq"], expected) and torch.equal(told["dkdv"], expected)


def chain_of_two(first, second, device=DEVICE):
    """A program whose rows are covered by a tile of the keys `first` and one of `second`."""
    groups = []
    for keys in (first, second):
        dense = torch.zeros(16, 16, dtype=torch.bool)
        dense[:, keys] = True
        bits = np.packbits(dense.numpy(), axis=-1, bitorder="little")
        groups.append(TileGroup(0, bits, np.arange(16, dtype=np.int32)[None]))
    queries = build_tile_set(groups, 1, 16, 16)
    keys = make_program(dense[None] | True, (16,)).keys
    side = pack_tiles(queries, np.zeros(1, dtype=np.int64))
    assert side.chained and len(side.groups) == 2 and not side.num_slots
    return KernelProgram(per_head=False, queries=side, keys=keys).to(device)


def test_parts_of_a_gradient_that_fp16_cannot_hold():
    """Their sum can be: 70,000 from each tile, of contrary signs, and 2 more."""
    q, k, v = torch.zeros(3, 1, 1, 16, 16, dtype=torch.float16, device=DEVICE)
    # Uniform attention; ds of a key is (dp - delta) / 16, and dp is the first entry of its v.
    k[..., :8, 0], k[..., 8:, 0] = 280.0, 280.0
    k[..., 0, 1] = 32.0
    v[..., :8, 0], v[..., 8:, 0] = 500.0, -500.0
    program = chain_of_two(slice(0, 8), slice(8, 16))
    o, lse = forward(q, k, v, None, None, program, 1.0, 0.0)
    grad_o = torch.zeros_like(o)
    grad_o[..., 0] = 1.0
    dq, _, _ = backward(grad_o, None, q, k, v, o, lse, None, None, program, 1.0, 0.0)
    assert 8 * 500.0 / 16 * 280.0 > 65504.0
    assert dq.isfinite().all() and dq.dtype == torch.float16
    assert not dq[..., 0].any() and (dq[..., 1] == 1000.0).all()


def test_parts_of_o_that_fp16_cannot_hold():
    """With dropout that of the first tile, a single key, is twice the key's value."""
    q, k, v = torch.zeros(3, 1, 1, 16, 16, dtype=torch.float16, device=DEVICE)
    v[..., 0, :], v[..., 1, :] = 40_000.0, -40_000.0
    program = chain_of_two(slice(0, 1), slice(1, 2))
    seed = torch.tensor([5], device=DEVICE)
    o, _ = forward(q, k, v, None, seed, program, 1.0, 0.5)
    kept = dropout.keep_mask(1, 1, 16, 16, 0.5, seed=seed, device=DEVICE).to(o.dtype)
    assert kept[..., :2].any(2).all()  # either in some row
    assert torch.equal(o, (kept[..., :1] - kept[..., 1:2]).expand_as(o) * 40_000.0)


def test_a_dead_first_tile_leaves_nothing_to_the_second():
    """Its keys are hidden and hold NaN; what it writes is zero, and -inf."""
    q, k, v = torch.randn(3, 1, 1, 16, 16, device=DEVICE)
    key_mask = torch.ones(1, 16, dtype=torch.bool, device=DEVICE)
    for hidden in (slice(0, 8), slice(8, 16)):
        key_mask[:] = True
        key_mask[:, hidden] = False
        poisoned = [x.masked_fill(~key_mask[:, None, :, None], math.nan) for x in (k, v)]
        program = chain_of_two(slice(0, 8), slice(8, 16))
        o, lse = forward(q, *poisoned, key_mask, None, program, 0.25, 0.0)
        expected = expected_attention(
            q, *poisoned, torch.ones(1, 16, 16, dtype=torch.bool, device=DEVICE), scale=0.25,
            key_mask=key_mask,
        )  # fmt: skip
        outcomes = expected.outcomes({"o": o, "lse": lse})
        assert all(outcome.passed for outcome in outcomes), "; ".join(map(str, outcomes))
    key_mask[:] = False
    o, lse = forward(q, k, v, key_mask, None, program, 0.25, 0.0)
    assert not o.any() and (lse == -math.inf).all()


def test_rows_of_several_tiles_are_left_to_the_second_pass(monkeypatch):
    """No tile writes to the place of a row that three tiles cover."""
    case = Case(n=40, m=48, heights=(16, 32), parts=3)
    q, k, v, mask, _ = case.tensors()
    program = make_program(mask, case.heights, case.parts)
    o, lse = forward(q, k, v, None, None, program, 0.25, 0.0)
    monkeypatch.setattr(attention, "run_merge", lambda *arguments: None)
    with guarded_memory(monkeypatch):
        results = forward_and_backward(q, k, v, None, program, (o, lse))
    for side, of_side in ((program.queries, (0, 1, 2)), (program.keys, (3, 4))):
        head, row = side.merges[:, 0].long(), side.merges[:, 1].long()
        left = torch.zeros(results[of_side[0]].shape[1:3], dtype=torch.bool, device=DEVICE)
        left[head, row] = True
        assert left.any() and not left.all()
        for result in (results[i] for i in of_side):
            assert result[:, left].isnan().all() and result[:, ~left].isfinite().all()


def test_what_is_dropped_is_below_the_threshold_and_not_at_it():
    """The threshold is made the very hash of the only element: kept; one more, and it is not."""
    seed = torch.tensor([31], device=DEVICE)
    key, zero = dropout.head_keys(seed, 1, 1)[0], torch.zeros(1, dtype=torch.int64, device=DEVICE)
    low, high = 0, 2**32 - 1  # kept at `low`, dropped at `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if dropout.keep_bits(key, zero, zero, middle) else (low, middle)
    program = make_program(torch.ones(1, 1, 1, dtype=torch.bool), (16,))
    q, k, v = torch.ones(3, 1, 1, 1, 16, device=DEVICE)
    for threshold, kept in ((low, True), (high, False)):
        p = threshold / 2**32
        o, lse = forward(q, k, v, None, seed, program, 1.0, p)
        gradients = backward(v, None, q, k, v, o, lse, None, seed, program, 1.0, p)
        expected = torch.full_like(o, kept / (1.0 - p))
        torch.testing.assert_close(o, expected)
        torch.testing.assert_close(gradients[2], expected)


def test_what_the_backward_pass_gets_may_have_any_strides():
    """grad_o, grad_lse and what forward returned."""
    case = Case(n=17, m=20, heights=(16,))
    q, k, v, mask, _ = case.tensors()
    program = make_program(mask, case.heights)
    o, lse = forward(q, k, v, None, None, program, 0.25, 0.0)
    grad_o, grad_lse = torch.randn_like(o), torch.randn_like(lse)

    def again(grad_o, grad_lse, o, lse):
        return backward(grad_o, grad_lse, q, k, v, o, lse, None, None, program, 0.25, 0.0)

    def strided(x):  # no dimension is contiguous
        return x.new_zeros([2 * size for size in x.shape])[
            (slice(None, None, 2),) * x.dim()
        ].copy_(x)

    def odd(x):  # rows that no wide load is aligned to
        return x.new_zeros(*x.shape[:-1], x.shape[-1] + 1)[..., 1:].copy_(x)

    plain = [grad_o.contiguous(), grad_lse, o, lse]
    expected = again(*plain)
    changed = [[change(x) for x in plain] for change in (strided, lambda x: x.mT.contiguous().mT)]
    for i, x in enumerate(plain):  # one alone is not aligned
        changed.append([*plain[:i], odd(x), *plain[i + 1 :]])
    for given in changed:
        for ours, theirs in zip(again(*given), expected, strict=True):
            assert torch.equal(ours, theirs)
    one = torch.ones(1, device=DEVICE)
    expected = again(torch.ones_like(o).contiguous(), grad_lse, o, lse)
    for ours, theirs in zip(again(one.expand(o.shape), grad_lse, o, lse), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_batches_and_heads_may_share_memory():
    case = Case(n=17, m=20, heights=(16,), one_mask=True, key_mask=True)
    q, k, v, mask, key_mask = case.tensors()
    program = make_program(mask, case.heights)
    shared = [x[:1, :1].expand(2, 2, -1, -1) for x in (q, k, v)]
    one_mask = key_mask[:1].expand(2, -1)
    expected = forward_and_backward(
        *(x.contiguous() for x in shared), one_mask.contiguous(), program
    )
    results = forward_and_backward(*shared, one_mask, program)
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("height", [16, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_key_in_place_of_hidden_ones_may_score_far_above_the_lse(height, dtype):
    """Row 0 does not attend to key 15, whose row is loaded instead of hidden key 0."""
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 0, :2] = mask[0, 1, 15] = True
    q, k, v = torch.zeros(3, 1, 1, 16, 16, dtype=dtype, device=DEVICE)
    q[..., 0, 0], k[..., 15, 0], v[..., 1, :], v[..., 15, :] = 1.0, 200.0, 3.0, 5.0
    key_mask = torch.ones(1, 16, dtype=torch.bool, device=DEVICE)
    key_mask[0, 0] = False
    program = make_program(mask, (height,))
    o, lse = forward(q, k, v, key_mask, None, program, 1.0, 0.0)
    rest = (torch.ones_like(o), None, q, k, v, o, lse, key_mask, None, program, 1.0, 0.0)
    dq, dk, dv = backward(*rest)
    assert o[0, 0, :2, 0].tolist() == [3.0, 5.0] and not o[0, 0, 2:].any()
    assert lse[0, 0, :2].tolist() == [0.0, 0.0]
    assert not dq.any() and not dk.any()  # a row with one key has no choice
    assert dv[0, 0, :, 0].tolist() == [0.0, 1.0, *[0.0] * 13, 1.0]


@pytest.mark.parametrize("scale", [1e-39, -1e-50, 0.0])
def test_a_scale_that_fp32_cannot_hold_counts_as_zero(scale):
    """In a kernel it would make -inf * 0 of every masked score."""
    case = Case(n=17, m=20, heights=(16,), heads=1, kv_heads=1, key_mask=True)
    q, k, v, mask, key_mask = case.tensors()
    program = make_program(mask, case.heights)
    o, lse = forward(q, k, v, key_mask, None, program, scale, 0.0)
    gradients = backward(o, None, q, k, v, o, lse, key_mask, None, program, scale, 0.0)
    allowed = mask.to(DEVICE) & key_mask[:, None, None, :]
    count = allowed.sum(-1).expand(2, 1, -1)
    assert torch.allclose(lse, count.log())
    assert all(x.isfinite().all() for x in (o, *gradients))
    assert not gradients[0].any() and not gradients[1].any()


def test_a_scale_that_is_not_a_number_shows():
    case = Case(n=17, m=20, heights=(16,), heads=1, kv_heads=1, full=1)
    q, k, v, mask, _ = case.tensors()
    program = make_program(mask, case.heights)
    o, lse = forward(q, k, v, None, None, program, math.nan, 0.0)
    gradients = backward(o, None, q, k, v, o, lse, None, None, program, math.nan, 0.0)
    assert all(x.isnan().all() for x in (o, lse, gradients[0]))


@pytest.mark.parametrize(
    ("batch", "heads", "q_len", "kv_len"), [(2, 1, 0, 5), (2, 1, 5, 0), (0, 2, 5, 5), (2, 0, 5, 5)]
)
@pytest.mark.parametrize("with_key_mask", [False, True])
def test_empty_inputs(batch, heads, q_len, kv_len, with_key_mask):
    program = make_program(torch.ones(1, q_len, kv_len, dtype=torch.bool), (16,))
    q = torch.randn(batch, heads, q_len, 16, device=DEVICE)
    k = torch.randn(batch, heads, kv_len, 16, device=DEVICE)
    key_mask = torch.ones(batch, kv_len, dtype=torch.bool, device=DEVICE)
    key_mask = key_mask if with_key_mask else None
    o, lse = forward(q, k, k, key_mask, None, program, 1.0, 0.0)
    assert o.shape == q.shape and lse.shape == q.shape[:3]
    assert not o.any() and (lse == -math.inf).all()
    gradients = backward(o, None, q, k, k, o, lse, key_mask, None, program, 1.0, 0.0)
    for gradient, x in zip(gradients, (q, k, k), strict=True):
        assert gradient.shape == x.shape and not gradient.any()


@pytest.mark.parametrize("pattern", ["longformer", "strided"])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_compiled_plan_by_way_of_sparse_attention(pattern, backend):
    mask = patterns.build(pattern, 80)
    plan = compile_plan(mask, target="cpu", objective="area").to(DEVICE)
    q, k, v, grad_o = torch.randn(4, 1, 1, 80, 16, device=DEVICE)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    o, lse = sparse_attention(*inputs, plan, return_lse=True, backend=backend)
    gradients = torch.autograd.grad(o, inputs, grad_o)
    expected = expected_attention(q, k, v, mask, grad_o=grad_o)
    results = dict(zip(RESULTS, (o, lse, *gradients), strict=True))
    assert all(outcome.passed for outcome in expected.outcomes(results))
