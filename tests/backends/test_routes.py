"""What runs is what `plan.explain()` says: each head on the route that the plan chose for it.

Without a GPU in two ways: with fake CUDA tensors, which have all that decides about routes, and
with CPU tensors that are sent where a GPU's would go, the kernels running in Triton's interpreter.
"""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import sparsebert as sb
from sparsebert import autograd
from sparsebert.backends import execution, registry, routing
from sparsebert.backends.base import CallKind
from sparsebert.backends.program import Program, make_program, unflatten_parts
from sparsebert.compiler.cost.constants import tile_backends
from sparsebert.compiler.schedule import Schedule
from sparsebert.plan import AttentionPlan, compile_for_backend
from tests.attention.cases import make_key_mask, run_and_check
from tests.backends.cases import OPTIONS, PLANS, ROUTES, as_on_a_gpu

pytest.importorskip("triton")
from sparsebert.kernels import layout
from tests.backends.records import records_of


def explained(plan: AttentionPlan, route: str) -> list[int]:
    """The heads on a route, as the report says."""
    return sorted(h for head in plan.explain().per_head if head.route == route for h in head.heads)


@pytest.fixture
def routes(monkeypatch):
    """What runs from here on: routes, and the heads or the kernels' work."""
    ran = []

    def record_op(call, program):
        for part in program.parts:
            if part.backend.name == "triton":
                ran.append(("kernels", part.program.queries))
            else:
                name = "dense" if part.backend.name == "dense" else f"{part.backend.name} tiles"
                ran.append((name, EVERY if part.heads is None else part.heads))
        return op(call, program)

    def record_direct(call, part):
        ran.append(("dense", EVERY if part.heads is None else part.heads))
        if call.q.is_cuda:  # fake, and SDPA asks the GPU which kernel to take
            return call.q.new_empty(2, 4 if part.heads is None else len(part.heads), 33, 16)
        return direct(call, part)

    op, direct = autograd.attention, execution.run_directly
    monkeypatch.setattr(autograd, "attention", record_op)
    monkeypatch.setattr(execution, "run_directly", record_direct)
    return ran


EVERY = torch.arange(4)


def on_route(ran, plan: AttentionPlan, route: str, real: dict[int, torch.Tensor]) -> list[int]:
    """The heads that ran on a route; `real` has the values of fake tensors."""
    found = set()
    for kind, what in ran:
        if kind == route:
            if kind == "kernels":
                side = what._replace(records=real.get(id(what.records), what.records))
                found |= {int(header[layout.HEAD]) for _, header, *_ in records_of(side)}
            else:
                found |= set(real.get(id(what), what).tolist())
    return sorted(found)


def fake_cuda(plan: AttentionPlan) -> tuple[AttentionPlan, dict[int, torch.Tensor]]:
    """The plan with its tensors as a fake GPU's, and their values."""
    real = {}
    for routes in ROUTES.values():
        plan.program_for(*routes)

    def fake(x):
        copy = torch.empty(x.shape, dtype=x.dtype, device="cuda")
        real[id(copy)] = x
        return copy

    def on_gpu(program):
        tensors = [fake(x) for x in program.tensors]
        return make_program(unflatten_parts(tensors, program.numbers, program.names))

    programs = {routes: on_gpu(program) for routes, program in plan.programs.items()}
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", PLANS)
def test_a_cpu_runs_each_head_on_its_route(name, options, dtype, routes):
    plan = PLANS[name]()
    q, k, v = (torch.randn(2, h, n, 16, dtype=dtype) for h, n in ((4, 33), (2, 40), (2, 40)))
    given = dict(OPTIONS[options])
    if "key_mask" in given:
        given["key_mask"] = make_key_mask("middle", 2, 40)
    sb.sparse_attention(q, k, v, plan, **given)
    assert on_route(routes, plan, "dense", {}) == explained(plan, "dense")
    tiles = ROUTES["auto" if dtype == torch.float32 else "auto, fp64"].tiles
    for backend in ("native", "torch"):
        expected = explained(plan, "tiles") if backend == tiles else []
        assert on_route(routes, plan, f"{backend} tiles", {}) == expected
    assert on_route(routes, plan, "kernels", {}) == []


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Calls with CPU tensors are sent where those with CUDA tensors go."""
    as_on_a_gpu(monkeypatch)


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
    monkeypatch.setattr(Schedule, "queries", None)
    monkeypatch.setattr(Schedule, "keys", None)
    assert plan.program_for(*ROUTES["mixed"]) is plan.program_for(*ROUTES["auto"])


def test_calls_make_what_they_run(monkeypatch):
    """Tiles for the torch backend take long to make, and few calls need them."""
    monkeypatch.setattr(Program, "to", lambda self, device: self)
    for device, dtype, chosen in (
        ("cpu", torch.float32, "auto"),
        ("cpu", torch.float64, "auto, fp64"),
        ("cuda", torch.float32, "mixed"),
    ):
        plan = dataclasses.replace(PLANS["tiles"](), device=torch.device(device), programs={})
        plan.program_for(*routing.choose("auto", device, dtype, 16, False))
        tiles = ROUTES[chosen].tiles
        assert set(plan.programs) == {ROUTES[chosen], ROUTES[tiles]}


def test_sdpa_serves_padded_dense_calls_of_a_gpu(monkeypatch):
    """The op's own dense route is for dropout and the LSE."""
    plan = PLANS["dense"]()
    called = []
    monkeypatch.setattr(
        execution, "run_directly", lambda call, part: called.append(call.q) or call.q
    )
    with FakeTensorMode():
        on_gpu, _ = fake_cuda(plan)
        q, k, v = (torch.empty(2, 4, n, 16, device="cuda") for n in (33, 40, 40))
        key_mask = torch.empty(2, 40, dtype=torch.bool, device="cuda")
        sb.sparse_attention(q, k, v, on_gpu, key_mask=key_mask)
    assert len(called) == 1 and called[0] is q


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_plans_are_made_for_the_backend_that_auto_prefers(device):
    """Of those with constants; where none of them can run here, for the first."""
    kind = CallKind(device, torch.float32, 64)
    for target in ("cpu",) if device == "cpu" else ("sm80", "sm90", "sm100", "gfx942"):
        known = [n for n in registry.preferred("tiles", device) if n in tile_backends(target)]
        usable = [name for name in known if not routing.reasons_against(name, kind)]
        planned = routing.planned_for(target)
        assert planned == (usable or tile_backends(target))[0]
        plan = sb.compile_plan(sb.patterns.star(48), target=target)
        assert plan.report.backend == plan.shared_tiles.aim.backend == planned
        assert f"-{target}-{planned}-" in plan.fingerprint


def test_who_cannot_run_here_is_not_planned_for(monkeypatch):
    """And what was found is forgotten when backends come and go."""
    first, *_ = (n for n in registry.preferred("tiles", "cpu") if n in tile_backends("cpu"))
    backend = type(registry.get(first))
    monkeypatch.setattr(registry, "planned", {})
    assert routing.planned_for("cpu") == first
    monkeypatch.setattr(backend, "refuses", lambda self, kind: ["is broken"])
    assert routing.planned_for("cpu") == first  # found before
    registry.register("another", "nowhere")
    registry.unregister("another")
    others = [n for n in registry.preferred("tiles", "cpu")[1:] if n in tile_backends("cpu")]
    kind = CallKind("cpu", torch.float32, 64)
    usable = [name for name in others if not routing.reasons_against(name, kind)]
    assert routing.planned_for("cpu") == (usable or tile_backends("cpu"))[0]
    registry.planned.clear()


def test_plans_for_different_backends_are_different_plans():
    mask = sb.patterns.longformer(96, 16, 2)
    plans = [compile_for_backend(mask, name, target="cpu") for name in tile_backends("cpu")]
    assert len({plan.fingerprint for plan in plans}) == len(plans) == len(set(map(id, plans)))
    again = [compile_for_backend(mask, name, target="cpu") for name in tile_backends("cpu")]
    assert all(one is other for one, other in zip(plans, again, strict=True))
    with pytest.raises(ValueError, match="backend must be one with constants for target 'cpu'"):
        compile_for_backend(mask, "triton", target="cpu")
