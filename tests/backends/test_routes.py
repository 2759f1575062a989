"""What runs is what `plan.explain()` says: each head on the route that the plan chose for it.

Without a GPU in two ways: with fake CUDA tensors, which have all that decides about routes, and
with CPU tensors that are sent where a GPU's would go, the kernels running in Triton's interpreter.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import sparsebert as sb
import sparsebert.api
from sparsebert import autograd as library
from sparsebert.backends import sdpa as plain
from sparsebert.backends.torch_program import MIXED, TORCH, TRITON, FlatProgram, from_tensors
from sparsebert.plan import AttentionPlan
from sparsebert.tiles.assemble import without_heads
from tests.attention.test_sparse_attention import (
    half_dense_mask,
    make_key_mask,
    random_mask,
    run_and_check,
)

pytest.importorskip("triton")
from sparsebert.kernels import attention as kernels
from sparsebert.kernels import pack

OPTIONS = {
    "none": {},
    "padding": {"key_mask": True},
    "dropout": {"dropout_p": 0.3},
    "lse": {"return_lse": True},
    "all": {"key_mask": True, "dropout_p": 0.3, "return_lse": True},
}


def plan_with(mask: sb.AttentionMask, dense: list[bool]) -> AttentionPlan:
    """The plan of a mask whose distinct heads run dense where `dense` says so."""
    plan = sb.compile_plan(mask, target="cpu", objective="area")
    chosen = np.array(dense)
    heads = [
        dataclasses.replace(head, route="dense" if is_dense else "tiles")
        for head, is_dense in zip(plan.report.per_head, dense, strict=True)
    ]
    return AttentionPlan.create(
        mask, plan.head_map, chosen, without_heads(plan.tiles, chosen), target="cpu",
        objective="area", report=dataclasses.replace(plan.report, per_head=tuple(heads)),
    )  # fmt: skip


PLANS = {
    "tiles": lambda: plan_with(half_dense_mask(4, 33, 40), [False, False]),
    "mixed": lambda: plan_with(half_dense_mask(4, 33, 40), [True, False]),
    "dense": lambda: plan_with(half_dense_mask(4, 33, 40), [True, True]),
    "mixed, dead rows": lambda: plan_with(random_mask(4, 33, 40), [False, True, False, True]),
}


def explained(plan: AttentionPlan, route: str) -> list[int]:
    """The heads on a route, as the report says."""
    return sorted(h for head in plan.explain().per_head if head.route == route for h in head.heads)


@pytest.fixture
def routes(monkeypatch):
    """What runs from here on, as lists of (route, head)."""
    ran = []

    def record_op(q, k, v, program, *options):
        kinds = {TORCH: [program], TRITON: [program], MIXED: list(program.parts)}
        for part in kinds[program.sizes[0]]:
            if part.sizes[0] == TRITON:
                items = kernels.from_arrays(part.sizes[1:], part.tensors).queries.items
                ran.append(("kernels", items))
            else:
                whole = from_tensors(*part)
                ran.append(("torch tiles", whole.tile_heads))
                ran.append(("dense", whole.dense_heads))
        return op(q, k, v, program, *options)

    def record_plain(q, k, v, program, *options):
        ran.append(("dense", program.dense_heads))
        if q.is_cuda:
            return torch.empty_like(q)  # fake, and SDPA asks the GPU which kernel to take
        return sdpa(q, k, v, program, *options)

    op, sdpa = library.attention_op, sparsebert.api._plain
    monkeypatch.setattr(library, "attention_op", record_op)
    monkeypatch.setattr(sparsebert.api, "_plain", record_plain)
    return ran


def on_route(ran, plan: AttentionPlan, route: str, real: dict[int, torch.Tensor]) -> list[int]:
    """The heads that ran on a route; `real` has the values of fake tensors."""
    found = set()
    for kind, tensor in ran:
        if kind == route:
            values = real.get(id(tensor), tensor)
            heads = values[:, pack.HEAD] if kind == "kernels" else values
            found |= set(heads.tolist())
    return sorted(found)


def fake_cuda(plan: AttentionPlan) -> tuple[AttentionPlan, dict[int, torch.Tensor]]:
    """The plan with its tensors as a fake GPU's, and their values."""
    real = {}
    for name in ("auto", "mixed", "torch", "triton", "dense"):
        plan.program_for(name)

    def fake(x):
        copy = torch.empty(x.shape, dtype=x.dtype, device="cuda")
        real[id(copy)] = x
        return copy

    programs = {
        name: FlatProgram([fake(x) for x in program.tensors], program.sizes)
        for name, program in plan.programs.items()
    }
    cuda = torch.empty(0, device="cuda").device
    return dataclasses.replace(plan, device=cuda, programs=programs), real


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", PLANS)
def test_a_gpu_runs_each_head_on_its_route(name, options, routes):
    """With fake CUDA tensors."""
    plan = PLANS[name]()
    with FakeTensorMode():
        on_gpu, real = fake_cuda(plan)
        q = torch.empty(2, 4, 33, 16, device="cuda")  # autograd wants a real GPU
        k, v = (torch.empty(2, 2, 40, 16, device="cuda") for _ in range(2))
        given = dict(OPTIONS[options])
        if "key_mask" in given:
            given["key_mask"] = torch.empty(2, 40, dtype=torch.bool, device="cuda")
        result = sb.sparse_attention(q, k, v, on_gpu, **given)
        o = result[0] if isinstance(result, tuple) else result
        assert o.device.type == "cuda"
    assert on_route(routes, plan, "dense", real) == explained(plan, "dense")
    assert on_route(routes, plan, "kernels", real) == explained(plan, "tiles")
    assert on_route(routes, plan, "torch tiles", real) == []


@pytest.mark.parametrize(
    ("backend", "dtype", "route"),
    [
        ("triton", torch.float32, "kernels"),
        ("torch", torch.float32, "torch tiles"),
        ("dense", torch.float32, "dense"),
        ("auto", torch.float64, "as explained"),  # which the kernels do not take
    ],
)
def test_other_backends_of_a_gpu(backend, dtype, route, routes):
    plan = PLANS["mixed"]()
    with FakeTensorMode():
        on_gpu, real = fake_cuda(plan)
        q = torch.empty(2, 4, 33, 16, device="cuda", dtype=dtype)
        k, v = (torch.empty(2, 4, 40, 16, device="cuda", dtype=dtype) for _ in range(2))
        sb.sparse_attention(q, k, v, on_gpu, backend=backend, return_lse=True)
    for each in ("kernels", "torch tiles", "dense"):
        expected = [0, 1, 2, 3] if each == route else []
        if route == "as explained" and each != "kernels":
            expected = explained(plan, each.removeprefix("torch "))
        assert on_route(routes, plan, each, real) == expected


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", PLANS)
def test_a_cpu_runs_each_head_on_its_route(name, options, routes):
    plan = PLANS[name]()
    q, k, v = torch.randn(2, 4, 33, 16), torch.randn(2, 2, 40, 16), torch.randn(2, 2, 40, 16)
    given = dict(OPTIONS[options])
    if "key_mask" in given:
        given["key_mask"] = make_key_mask("middle", 2, 40)
    sb.sparse_attention(q, k, v, plan, **given)
    assert on_route(routes, plan, "dense", {}) == explained(plan, "dense")
    assert on_route(routes, plan, "torch tiles", {}) == explained(plan, "tiles")
    assert on_route(routes, plan, "kernels", {}) == []


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Calls with CPU tensors are sent where those with CUDA tensors go."""
    monkeypatch.setattr(sparsebert.api, "_on_gpu", lambda q: True)


@pytest.mark.parametrize(
    ("name", "kv_heads", "dropout_p", "padding", "dtype"),
    [
        ("mixed", 2, 0.0, "none", torch.float32),
        ("mixed", 2, 0.3, "middle", torch.float32),
        ("mixed", 4, 0.0, "middle", torch.bfloat16),
        ("mixed", 2, 0.3, "none", torch.bfloat16),
        ("mixed, dead rows", 4, 0.3, "none", torch.float32),
        ("mixed, dead rows", 2, 0.0, "middle", torch.float16),
        ("dense", 2, 0.3, "middle", torch.float32),
        ("dense", 2, 0.0, "middle", torch.bfloat16),
    ],
)
def test_mixed_calls_are_right(name, kv_heads, dropout_p, padding, dtype, like_a_gpu):
    """Forward, LSE and backward; heads that share a key head may be on different routes."""
    plan = PLANS[name]()
    q = torch.randn(2, 33, 4, 16).to(dtype).transpose(1, 2)
    k, v = (torch.randn(2, kv_heads, 40, 16).to(dtype) for _ in range(2))
    run_and_check(
        q, k, v, plan.mask, plan, key_mask=make_key_mask(padding, 2, 40), dropout_p=dropout_p,
        backends=("auto",),
    )  # fmt: skip


@pytest.mark.parametrize("return_lse", [False, True])
def test_mixed_calls_compile_into_one_graph_and_keep_their_bits(return_lse, like_a_gpu):
    plan = PLANS["mixed"]()  # its mixed program is not made yet
    inputs = [torch.randn(1, h, n, 16, requires_grad=True) for h, n in ((4, 33), (2, 40), (2, 40))]
    key_mask = make_key_mask("right", 2, 40)[:1]

    def run(*inputs):
        result = sb.sparse_attention(*inputs, plan, key_mask=key_mask, return_lse=return_lse)
        return result if return_lse else (result,)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, run, run):
        o, *lse = function(*inputs)
        results.append([o, *lse, *torch.autograd.grad(o.square().sum(), inputs)])
    for a, b, c in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
        assert b.equal(c)


def test_garbage_that_no_head_may_see_stays_out_of_mixed_calls(like_a_gpu):
    plan = PLANS["mixed, dead rows"]()
    key_mask = make_key_mask("middle", 2, 40)
    q, (k, v) = torch.randn(2, 4, 33, 16), torch.randn(2, 2, 4, 40, 16)
    allowed = plan.mask.dense() & key_mask[:, None, None, :]
    hidden, dead = ~allowed.any(2)[..., None], ~allowed.any(3)[..., None]

    def run(q, k, v):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        o, lse = sb.sparse_attention(*inputs, plan, key_mask=key_mask, return_lse=True)
        return [o, lse, *torch.autograd.grad(o.square().sum(), inputs)]

    clean = run(q, k, v)
    k, v = k.masked_fill(hidden, torch.inf), v.masked_fill(hidden, torch.nan)
    for a, b in zip(clean, run(q.masked_fill(dead, torch.nan), k, v), strict=True):
        assert a.equal(b)


def test_a_dense_plan_never_makes_tiles(monkeypatch):
    """Neither on a GPU nor for its options, though kernels could run them."""
    plan = PLANS["dense"]()
    monkeypatch.setattr("sparsebert.compiler.compile.compile_tiles", None)
    assert plan.program_for("mixed") is plan.program_for("auto")


def test_plans_are_prepared_for_what_runs(monkeypatch):
    """Tiles for the torch executor take long to make, and a GPU's calls do not need them."""
    monkeypatch.setattr(FlatProgram, "to", lambda self, device: self)
    for device, expected in (("cpu", {"auto"}), ("cuda", {"mixed", "triton"})):
        plan = dataclasses.replace(PLANS["tiles"](), device=torch.device(device), programs={})
        plan.prepare("auto")
        assert set(plan.programs) == expected


def test_sdpa_serves_padded_dense_calls_of_a_gpu(monkeypatch):
    """The executor's own dense route is for dropout and the LSE."""
    plan = PLANS["dense"]()
    called = []
    monkeypatch.setattr(plain, "attention", lambda q, *rest: called.append(q) or q)
    with FakeTensorMode():
        on_gpu, _ = fake_cuda(plan)
        q, k, v = (torch.empty(2, 4, n, 16, device="cuda") for n in (33, 40, 40))
        key_mask = torch.empty(2, 40, dtype=torch.bool, device="cuda")
        sb.sparse_attention(q, k, v, on_gpu, key_mask=key_mask)
    assert len(called) == 1 and called[0] is q
