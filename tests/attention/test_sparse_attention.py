"""The contract of sparse_attention, crossed over dtypes, head sizes, lengths and features.

Every case runs all backends of the CPU and is held to the bounds of `sparsebert.testing`.
"""

import itertools

import numpy as np
import pytest
import torch

import sparsebert as sb
from sparsebert import api
from sparsebert.backends import torch_common
from sparsebert.compiler.schedule import Schedule
from sparsebert.plan import AttentionPlan
from sparsebert.tiles.build import TileGroup, build_tile_set
from tests.attention.cases import (
    BACKENDS,
    half_dense_mask,
    make_key_mask,
    make_tensor,
    random_mask,
    run_and_check,
    shared_mask,
)
from tests.backends.cases import ROUTES, runs_by_sdpa
from tests.compiler.plans import singles_plan, tiles_plan

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HEAD_DIMS = (8, 32, 64, 80, 128, 256)
LENGTHS = (1, 63, 64, 65, 130, 512)


MASKS = (random_mask, half_dense_mask, shared_mask)
HEADS = ((1, 1), (4, 2), (3, 3))  # H, H_kv
PADDING = ("none", "right", "left", "middle")
STRIDES = ("contiguous", "heads last", "sliced")
DROPOUT = (0.0, 0.0, 0.3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("length", LENGTHS)
def test_contract(dtype, dim, length, device):
    """On a GPU the plans are for it, and the kernels run too; on a CPU for either cover."""
    on_gpu = device == "cuda"
    backends = BACKENDS + (("triton",) if on_gpu and dtype != torch.float64 else ())
    # Each draw of each case takes its features from a different place in their product.
    case = (DTYPES.index(dtype) * len(HEAD_DIMS) + HEAD_DIMS.index(dim)) * len(LENGTHS)
    features = list(itertools.product(MASKS, HEADS, PADDING, STRIDES, DROPOUT))
    for draw in range(10 if length <= 65 else 2):  # longer ones would take minutes
        pick = (97 * (case + LENGTHS.index(length)) + 31 * draw) % len(features)
        make_mask, (heads, kv_heads), padding, strides, dropout_p = features[pick]
        batch = 2
        torch.manual_seed(draw)
        q = make_tensor(batch, heads, length, dim, dtype, strides).to(device)
        k, v = (
            make_tensor(batch, kv_heads, length, dim, dtype, strides).to(device) for _ in range(2)
        )
        mask = make_mask(heads, length, length)
        make_plan = sb.compile_plan if on_gpu else (singles_plan, tiles_plan)[draw % 2]
        plan = make_plan(mask).to(device)
        key_mask = make_key_mask(padding, batch, length)
        key_mask = None if key_mask is None else key_mask.to(device)
        run_and_check(
            q, k, v, mask, plan, key_mask=key_mask, dropout_p=dropout_p, backends=backends
        )


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("make_mask", MASKS)
@pytest.mark.parametrize(
    ("dtype", "nats", "size"),
    [
        (torch.float32, 200.0, 1.0),
        (torch.float32, 200.0, 1e15),  # of values, and of what flows back
        (torch.bfloat16, 200.0, 1e15),
        (torch.float16, 200.0, 30.0),  # gradients stay below its largest number
        (torch.float64, 200.0, 1e15),
    ],
)
def test_large_scores_and_values(dtype, nats, size, make_mask, padding):
    """Scores far apart both ways, in rows that padding empties in part, altogether or not."""
    q, k, v = (make_tensor(2, h, 70, 16, dtype, "contiguous") for h in (4, 2, 2))
    q[:, :, ::3] *= -1.0
    k[:, :, ::2] = k[:, :, ::2].abs()  # many keys on one side, so that some rows have no large one
    scale = nats / (q.double() @ k.double().repeat_interleave(2, 1).mT).abs().max().item()
    v = v * size
    mask = make_mask(4, 70, 70)
    plan = sb.compile_plan(mask, target="cpu")
    key_mask = make_key_mask(padding, 2, 70)
    for dropout_p in (0.0, 0.3):
        run_and_check(q, k, v, mask, plan, key_mask=key_mask, dropout_p=dropout_p, scale=scale)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_whose_keys_are_far_to_the_right(backend):
    """The kernels of torch step through keys: whole steps are hidden before such a row's first."""
    dense = torch.zeros(5, 1300, dtype=torch.bool)
    dense[0, 1200:], dense[1, 600:610], dense[2, :] = True, True, True
    dense[3, [0, 1299]] = True
    mask = sb.AttentionMask.from_dense(dense)
    plan = sb.compile_plan(mask, target="cpu")
    q, k, v = torch.randn(1, 1, 5, 16), torch.randn(1, 1, 1300, 16), torch.randn(1, 1, 1300, 16)
    for key_mask in (None, torch.arange(1300)[None] >= 700):
        run_and_check(
            20 * q, k, v, mask, plan, key_mask=key_mask, dropout_p=0.0, backends=(backend,)
        )


@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 130), (130, 1), (63, 200), (200, 65)])
@pytest.mark.parametrize("make_mask", MASKS)
def test_rectangular(q_len, kv_len, make_mask):
    q = make_tensor(2, 4, q_len, 16, torch.float32, "contiguous")
    k, v = (make_tensor(2, 2, kv_len, 16, torch.float32, "heads last") for _ in range(2))
    mask = make_mask(4, q_len, kv_len)
    plan = sb.compile_plan(mask, target="cpu")
    key_mask = make_key_mask("middle", 2, kv_len)
    run_and_check(q, k, v, mask, plan, key_mask=key_mask, dropout_p=0.0, scale=0.3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("heads", [(1, 1), (4, 2)])
def test_hidden_rows_reach_nothing(backend, dropout_p, garbage, heads):
    """The same bits whatever stands in k and v rows that no query may attend to."""
    mask = random_mask(heads[0], 70, 90)
    plan = sb.compile_plan(mask, target="cpu")
    key_mask = make_key_mask("middle", 2, 90)
    q = torch.randn(2, heads[0], 70, 16)
    k, v = torch.randn(2, 2, heads[1], 90, 16)
    group = heads[0] // heads[1]
    attended = mask.dense()[0].any(1).view(heads[1], group, 90).any(1)
    hidden = ~(attended[None] & key_mask[:, None, :])
    assert hidden.any()
    assert not hidden.all()

    def run(k, v):
        torch.manual_seed(3)
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        o, lse = sb.sparse_attention(
            *inputs, plan, key_mask=key_mask, dropout_p=dropout_p, return_lse=True,
            backend=backend,
        )  # fmt: skip
        return [o, lse, *torch.autograd.grad(o.square().sum(), inputs)]

    clean = run(k, v)
    poisoned = run(*(x.masked_fill(hidden[..., None], garbage) for x in (k, v)))
    for a, b in zip(clean, poisoned, strict=True):
        assert a.equal(b)
    for gradient in poisoned[3:]:
        assert gradient.masked_select(hidden[..., None]).eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_garbage_in_dead_queries_and_their_gradients_reaches_nothing(backend):
    mask = random_mask(2, 70, 70)
    plan = sb.compile_plan(mask, target="cpu")
    key_mask = make_key_mask("right", 2, 70)
    q, k, v, grad_o = torch.randn(4, 2, 2, 70, 16)
    dead = ~(mask.dense() & key_mask[:, None, None, :]).any(-1)[..., None]

    def run(q, grad_o):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        o = sb.sparse_attention(*inputs, plan, key_mask=key_mask, backend=backend)
        return [o, *torch.autograd.grad(o, inputs, grad_o)]

    nan = float("nan")
    clean, poisoned = run(q, grad_o), run(q.masked_fill(dead, nan), grad_o.masked_fill(dead, nan))
    for a, b in zip(clean, poisoned, strict=True):
        assert a.equal(b)


def plan_of_parts(mask, parts: list[np.ndarray], heights: list[int], make_plan) -> AttentionPlan:
    """A plan whose rows are covered by one tile of every part, in a random row order."""
    report = make_plan(mask).report
    groups = []
    for part, height in zip(parts, heights, strict=True):
        order = np.random.default_rng(0).permutation(len(part)).astype(np.int32)
        slots = np.full(-(-len(order) // height) * height, -1, dtype=np.int32)
        slots[: len(order)] = order
        bits = np.packbits(part, axis=-1, bitorder="little")
        groups.append(TileGroup(0, bits, slots.reshape(-1, height)))
    tiles = build_tile_set(groups, 1, mask.q_len, mask.kv_len)
    one = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool)
    return AttentionPlan(Schedule.create(mask, *one, tiles, report))


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("make_plan", [tiles_plan, singles_plan])
def test_rows_covered_by_several_tiles(make_plan, dropout_p, padding):
    """By whom the plan is for, so that these tiles run."""
    dense = torch.rand(150, 90) < 0.3
    dense[7] = False
    dense[20, 5:] = False
    dense[20, :5] = True  # covered once, while its neighbours are covered four times
    owner = torch.arange(90).expand(150, 90) % 4
    owner[20] = 2
    mask = sb.AttentionMask.from_dense(dense)
    parts = [(dense & (owner == part)).numpy() for part in range(4)]
    plan = plan_of_parts(mask, parts, [16, 32, 64, 128], make_plan)
    assert plan.dense()[0].equal(dense)
    backend = plan.report.backend
    assert plan.schedule.queries(np.ones(1, dtype=bool), singles=backend == "native") is plan.tiles
    dtypes = (torch.float32, torch.float64) if backend == "torch" else DTYPES[:3]
    for dtype in dtypes:
        q = torch.randn(2, 4, 150, 24).to(dtype)
        k, v = torch.randn(2, 2, 2, 90, 24).to(dtype)
        key_mask = make_key_mask(padding, 2, 90)
        run_and_check(
            q, k, v, mask, plan, key_mask=key_mask, dropout_p=dropout_p, backends=(backend,)
        )
    if backend != "torch":
        return
    run = lambda *x: torch.ops.sparsebert.attention(  # noqa: E731
        *x, *plan.program_for(*ROUTES["torch"]).flat, key_mask, None, 0.2, 0.0
    )[0]
    small = [x[:1].detach().requires_grad_() for x in (q, k, v)]
    key_mask = None if key_mask is None else key_mask[:1]
    assert torch.autograd.gradgradcheck(run, small, fast_mode=True)


def test_bounded_steps_change_nothing(monkeypatch):
    mask = random_mask(4, 130, 130)
    plan = sb.compile_plan(mask, target="cpu")
    q, k, v = torch.randn(3, 2, 4, 130, 16, dtype=torch.float64)
    for module in ("torch_tiles", "dense"):
        monkeypatch.setattr(f"sparsebert.backends.{module}.SCRATCH", 5000)
    assert torch_common.SCRATCH > 5000
    run_and_check(q, k, v, mask, plan, key_mask=None, dropout_p=0.2, backends=("torch", "dense"))
    run_and_check(q, k, v, mask, plan, key_mask=None, dropout_p=0.0, backends=("torch", "dense"))


@pytest.mark.parametrize("make", [sb.AttentionMask.from_dense], ids=["mask"])
@pytest.mark.parametrize("fill", [False, True])
def test_empty_and_full_masks(make, fill):
    mask = make(torch.full((33, 47), fill))
    plan = sb.compile_plan(mask, target="cpu")
    q = torch.randn(1, 2, 33, 8)
    k, v = torch.randn(2, 1, 2, 47, 8)
    run_and_check(q, k, v, mask, plan, key_mask=None, dropout_p=0.0)


def test_a_mask_in_place_of_a_plan_and_other_layouts_of_gradients():
    mask = sb.patterns.star(65)
    q, k, v = (torch.randn(1, 2, 65, 8, requires_grad=True) for _ in range(3))
    sb.sparse_attention(q, k, v, mask).sum().backward()  # an expanded gradient
    expected = torch.autograd.grad(sb.reference_attention(q, k, v, mask).sum(), (q, k, v))
    for x, e in zip((q, k, v), expected, strict=True):
        torch.testing.assert_close(x.grad, e)


def test_only_some_inputs_need_gradients():
    mask = sb.patterns.star(65)
    q, k, v = torch.randn(3, 1, 2, 65, 8)
    v.requires_grad_()
    (dv,) = torch.autograd.grad(sb.sparse_attention(q, k, v, mask).sum(), v)
    (expected,) = torch.autograd.grad(sb.reference_attention(q, k, v, mask).sum(), v)
    torch.testing.assert_close(dv, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_explained_choice_is_what_auto_runs(dtype):
    """On this mask some heads run in tiles and some dense, in one plan."""
    mask = half_dense_mask(4, 1024, 1024)
    plan = tiles_plan(mask)
    assert {head.route for head in plan.explain().per_head} == {"tiles", "dense"}
    q, k, v = torch.randn(3, 1, 4, 1024, 16, dtype=dtype)
    run_and_check(q, k, v, mask, plan, key_mask=None, dropout_p=0.2, backends=("auto",))
    run_and_check(q, k, v, mask, plan, key_mask=None, dropout_p=0.0, backends=("auto",))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("make_mask", MASKS)
def test_the_kernels_behind_the_op(dtype, make_mask):
    """In Triton's interpreter where there is no GPU; the kernels have tests of their own."""
    mask = make_mask(4, 33, 47)
    plan = sb.compile_plan(mask, target="cpu")
    q = make_tensor(2, 4, 33, 16, dtype, "heads last")
    k, v = (make_tensor(2, 2, 47, 16, dtype, "contiguous") for _ in range(2))
    key_mask = make_key_mask("middle", 2, 47)
    for dropout_p in (0.0, 0.3):
        run_and_check(
            q, k, v, mask, plan, key_mask=key_mask, dropout_p=dropout_p, backends=("triton",)
        )
    inputs = [x.requires_grad_() for x in (q, k, v)]
    o = sb.sparse_attention(*inputs, plan, backend="triton")
    (dq,) = torch.autograd.grad(o.float().square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"; use backend=.*'torch' or 'dense'"):
        dq.sum().backward()


def test_plain_dense_plans_reach_the_fast_kernel_of_sdpa():
    """On the CPU a mask of three dimensions would send SDPA to a path three times slower."""
    mask = sb.patterns.random(64, density=0.9)
    plan = tiles_plan(mask)  # which run dense
    assert runs_by_sdpa(plan)
    q, k, v = torch.randn(3, 1, 2, 64, 16)
    with torch.profiler.profile() as profile:
        sb.sparse_attention(q, k, v, plan)
    called = {event.name for event in profile.events()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in called


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_mask_is_compiled_once_for_a_device(device):
    """Equal content is enough; a plan moved anew at every call would cost a copy each time."""
    q = torch.empty(1, 1, 40, 8, device=device)
    first, second = (api._plan_of(sb.patterns.star(40), q, q) for _ in range(2))
    assert first is second
    assert first.device.type == device
