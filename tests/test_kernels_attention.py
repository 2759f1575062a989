"""The Triton kernels against the fp64 reference, over tiles made by hand.

Without a GPU they run in Triton's interpreter (`conftest.py` asks for it before anything imports
a kernel), with one they run on it. Budgets: at most twice the error of dense attention in the
same dtype, plus one rounding step.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from sparsebert import dropout, patterns
from sparsebert.compiler import compile_plan
from sparsebert.ops import sparse_attention
from sparsebert.reference import reference_attention
from sparsebert.tiles import TileGroup, TileSet, build_tile_set

pytest.importorskip("triton")
from sparsebert.kernels import attention as kernels
from sparsebert.kernels.pack import pack_tiles
from sparsebert.kernels.program import pack_program

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def cover(mask: np.ndarray, heights: tuple[int, ...], parts: int, seed: int) -> TileSet:
    """Tiles of bool [U, rows, cols]: disjoint parts, each with its own row order and height."""
    rng = np.random.default_rng(seed)
    groups = []
    for head, dense in enumerate(mask):
        owner = rng.integers(parts, size=(dense.shape[0], -(-dense.shape[1] // 8)))
        owner = owner.repeat(8, axis=1)[:, : dense.shape[1]]
        for part in range(parts):
            height = heights[part % len(heights)]
            bits = np.packbits(dense & (owner == part), axis=-1, bitorder="little")
            rows = rng.permutation(len(dense)) if parts > 1 else np.arange(len(dense))
            rows = np.pad(rows, (0, -len(rows) % height), constant_values=-1)
            groups.append(TileGroup(head, bits, rows.reshape(-1, height)))
    return build_tile_set(groups, *mask.shape)


def make_program(mask, heights=(64,), parts=1):
    """A program of bool [H, N, M] (or [1, N, M] for any number of heads)."""
    distinct, head_map = np.unique(mask.numpy(), axis=0, return_inverse=True)
    head_map = head_map.reshape(-1)
    queries = cover(distinct, heights, parts, seed=1)
    keys = cover(np.ascontiguousarray(distinct.transpose(0, 2, 1)), heights, parts, seed=2)
    heads, q_len, kv_len = mask.shape
    packed = (pack_tiles(tiles, head_map) for tiles in (queries, keys))
    return pack_program(*packed, q_len, kv_len, heads).to(DEVICE)


@dataclasses.dataclass(frozen=True)
class Case:
    """One combination of features."""

    n: int = 65
    m: int = 65
    heads: int = 2
    kv_heads: int = 2
    d: int = 16
    dtype: torch.dtype = torch.float32
    heights: tuple[int, ...] = (64,)
    parts: int = 1
    full: int = 0  # leading columns that every row attends to
    key_mask: bool = False
    dropout_p: float = 0.0
    one_mask: bool = False  # one mask head for all heads
    grad_lse: bool = False
    transposed: bool = False  # memory order [B, N, H, D]
    scale: float | None = None

    def tensors(self):
        """q, k, v, mask [H or 1, N, M], key_mask, with dead rows and unused keys."""
        generator = torch.Generator().manual_seed(7)

        def normal(heads, length):
            shape = (2, length, heads, self.d) if self.transposed else (2, heads, length, self.d)
            x = torch.randn(shape, generator=generator).to(self.dtype)
            return (x.transpose(1, 2) if self.transposed else x).to(DEVICE)

        q = normal(self.heads, self.n)
        k, v = (normal(self.kv_heads, self.m) for _ in range(2))
        mask_heads = 1 if self.one_mask else self.heads
        mask = torch.rand(mask_heads, self.n, self.m, generator=generator) < 0.2
        mask[:, :, : self.full] = True
        if self.n > 1 and not self.full:
            mask[:, self.n // 2] = False
            mask[:, :, self.m // 3] = False
        key_mask = None
        if self.key_mask:
            key_mask = torch.rand(2, self.m, generator=generator) < 0.7
            key_mask[1, 0] = False
            mask[:, 0] = False  # a row that only the key mask kills
            mask[:, 0, 0] = True
            key_mask = key_mask.to(DEVICE)
        return q, k, v, mask, key_mask


def dense_attention(q, k, v, allowed, scale, keep, dropout_p):
    """Plain dense attention in the dtype of its inputs: what the error is measured against."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q @ k.mT * scale).masked_fill(~allowed, -math.inf)
    dead = ~allowed.any(-1, keepdim=True)
    lse = scores.logsumexp(-1)
    p = scores.masked_fill(dead, 0.0).softmax(-1).masked_fill(~allowed, 0.0)
    if keep is not None:
        p = p * keep / (1.0 - dropout_p)
    return p @ v, lse


def check(name, ours, dense, exact, size=0.0, score=0.0):
    """Within twice the dense error and one rounding step; -inf exactly.

    Two things round in a gradient that dense attention does not have. A gradient of q or k is a
    sum of terms that may cancel, in a row with one key altogether: their `size` is then what is
    rounded, and not the result. And the backward pass computes fp32 scores again, in another
    order: a rounding of the largest, `score`, is a relative error of the probabilities.
    """
    finite = exact.isfinite()
    assert torch.equal(ours.isfinite(), finite), name
    error = (ours.double() - exact)[finite].abs().max()
    budget = 2 * (dense.double() - exact)[finite].abs().max()
    step = torch.finfo(ours.dtype).eps + torch.finfo(torch.float32).eps * score
    budget += step * max(exact[finite].abs().max(), size)
    assert error <= budget, f"{name}: error {error:.3g}, budget {budget:.3g}"


def run(case: Case) -> None:
    """Forward and backward of one case against the reference."""
    q, k, v, mask, key_mask = case.tensors()
    scale = case.d**-0.5 if case.scale is None else case.scale
    group = case.heads // case.kv_heads
    program = make_program(mask, case.heights, case.parts)
    seed = keep = None
    if case.dropout_p:
        seed = torch.tensor([123456789012345678], device=DEVICE)
        keep = dropout.keep_mask(
            2, case.heads, case.n, case.m, case.dropout_p, seed=seed, device=DEVICE
        )
    allowed = mask.to(DEVICE).expand(2, case.heads, -1, -1)
    if key_mask is not None:
        allowed = allowed & key_mask[:, None, None, :]
    grad_o, grad_lse = torch.randn_like(q), None
    if case.grad_lse:
        alive = allowed.any(-1)
        grad_lse = torch.randn(q.shape[:3], device=DEVICE) * alive

    o, lse = kernels.forward(q, k, v, key_mask, seed, program, scale, case.dropout_p)
    assert o.transpose(1, 2).is_contiguous() and lse.dtype == torch.float32
    gradients = kernels.backward(
        grad_o, grad_lse, q, k, v, o, lse, key_mask, seed, program, scale, case.dropout_p
    )

    results = []
    for dtype, oracle in ((q.dtype, False), (torch.float64, True)):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        if oracle:
            expected_o, expected_lse = reference_attention(
                *inputs, mask, scale=scale, key_mask=key_mask, return_lse=True, keep_mask=keep,
                dropout_p=case.dropout_p,
            )  # fmt: skip
        else:
            expected_o, expected_lse = dense_attention(
                *inputs, allowed, scale, keep, case.dropout_p
            )
        total = (expected_o * grad_o.to(dtype)).sum()
        if grad_lse is not None:
            total = total + (expected_lse.masked_fill(~alive, 0.0) * grad_lse).sum()
        total.backward()
        results.append([expected_o, expected_lse, *(x.grad for x in inputs)])
    delta = (grad_o * o).double().sum(-1).abs().max() * abs(scale)
    sizes = {"dq": delta * k.double().abs().max(), "dk": delta * q.double().abs().max()}
    score = (q.double() @ k.double().repeat_interleave(group, 1).mT).abs().max() * abs(scale)
    dense, exact = ([x.detach() for x in result] for result in results)
    for name, ours, peer, truth in zip(
        ("o", "lse", "dq", "dk", "dv"), (o, lse, *gradients), dense, exact, strict=True
    ):
        assert ours.shape == truth.shape and ours.dtype == (
            lse.dtype if name == "lse" else q.dtype
        )
        is_gradient = name.startswith("d")
        check(name, ours, peer, truth, sizes.get(name, 0.0), score if is_gradient else 0.0)
    assert not o[exact[1] == -math.inf].any()
    assert not gradients[0][exact[1] == -math.inf].any()


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
    "negative scale": Case(n=17, m=33, heights=(16,), scale=-0.7),
    "scale zero": Case(n=17, m=33, heights=(16,), scale=0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_match_the_reference(name):
    run(CASES[name])


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
    results = forward_and_backward(q, k, v, key_mask, program)
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert not results[0][:, :, dead].any() and not results[2][:, :, dead].any()


def forward_and_backward(q, k, v, key_mask, program):
    """o, LSE, dq, dk, dv."""
    o, lse = kernels.forward(q, k, v, key_mask, None, program, 0.25, 0.0)
    grad_o = torch.ones_like(o).contiguous()
    gradients = kernels.backward(grad_o, None, q, k, v, o, lse, key_mask, None, program, 0.25, 0.0)
    return o, lse, *gradients


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
    o, lse = kernels.forward(q, k, v, key_mask, None, program, 1.0, 0.0)
    rest = (torch.ones_like(o), None, q, k, v, o, lse, key_mask, None, program, 1.0, 0.0)
    dq, dk, dv = kernels.backward(*rest)
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
    o, lse = kernels.forward(q, k, v, key_mask, None, program, scale, 0.0)
    gradients = kernels.backward(o, None, q, k, v, o, lse, key_mask, None, program, scale, 0.0)
    allowed = mask.to(DEVICE) & key_mask[:, None, None, :]
    count = allowed.sum(-1).expand(2, 1, -1)
    assert torch.allclose(lse, count.log())
    assert all(x.isfinite().all() for x in (o, *gradients))
    assert not gradients[0].any() and not gradients[1].any()


def test_a_scale_that_is_not_a_number_shows():
    case = Case(n=17, m=20, heights=(16,), heads=1, kv_heads=1, full=1)
    q, k, v, mask, _ = case.tensors()
    program = make_program(mask, case.heights)
    o, lse = kernels.forward(q, k, v, None, None, program, math.nan, 0.0)
    gradients = kernels.backward(o, None, q, k, v, o, lse, None, None, program, math.nan, 0.0)
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
    o, lse = kernels.forward(q, k, k, key_mask, None, program, 1.0, 0.0)
    assert o.shape == q.shape and lse.shape == q.shape[:3]
    assert not o.any() and (lse == -math.inf).all()
    gradients = kernels.backward(o, None, q, k, k, o, lse, key_mask, None, program, 1.0, 0.0)
    for gradient, x in zip(gradients, (q, k, k), strict=True):
        assert gradient.shape == x.shape and not gradient.any()


@pytest.mark.parametrize("pattern", ["longformer", "strided"])
def test_kernels_and_torch_executor_agree_on_a_compiled_plan(pattern):
    """The compiler's own plan by way of `sparse_attention`, each backend within the budget."""
    mask = patterns.build(pattern, 80)
    plan = compile_plan(mask, target="cpu", objective="area").to(DEVICE)
    q, k, v, grad_o = torch.randn(4, 1, 1, 80, 16, device=DEVICE)
    allowed = mask.dense()[0].to(DEVICE)[None]

    def run(attention, dtype):
        inputs = [x.detach().clone().to(dtype).requires_grad_() for x in (q, k, v)]
        o, lse = attention(*inputs)
        (o * grad_o).sum().backward()
        return [o.detach(), lse.detach(), *(x.grad for x in inputs)]

    def dense(*inputs):
        return dense_attention(*inputs, allowed, 0.25, None, 0.0)

    peers = [run(dense, dtype) for dtype in (q.dtype, torch.float64)]
    score = (q @ k.mT).abs().max().double() * 0.25
    for backend in ("triton", "torch"):
        ours = run(
            lambda *inputs, b=backend: sparse_attention(*inputs, plan, return_lse=True, backend=b),
            q.dtype,
        )
        delta = (grad_o * ours[0]).sum(-1).abs().max() * 0.25
        sizes = {"dq": delta * k.abs().max(), "dk": delta * q.abs().max()}
        names = ("o", "lse", "dq", "dk", "dv")
        for name, mine, peer, exact in zip(names, ours, *peers, strict=True):
            step = score if name.startswith("d") else 0.0
            check(f"{name}, {backend}", mine, peer, exact, sizes.get(name, 0.0), step)
