"""What `gpu_check` checks: the cases, in order, and one case's results held against the bounds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch

import sparsebert as sb
from benchmarks.attention import cases
from benchmarks.harness import named_masks
from benchmarks.harness.errors import in_words, is_fatal
from benchmarks.harness.rows import Row
from benchmarks.harness.workers import LostDevice
from benchmarks.kernels.band import band, band_program
from sparsebert import dropout
from sparsebert.kernels import attention as kernels
from sparsebert.plan import AttentionPlan
from sparsebert.plan_cache import compile_for
from sparsebert.testing import expected_attention
from sparsebert.tiles.format import HEIGHTS

TIME, AREA = "by time", "by area"
PLAIN, KEY_MASK, DROPOUT, GQA = "plain", "key mask", "dropout", "gqa"
ALL = "key mask, dropout, gqa, LSE"
FEATURES = (PLAIN, KEY_MASK, DROPOUT, GQA, ALL)
BAND = "band"
DTYPES = ("bfloat16", "float16", "float32")
HEAD_DIMS = (64, 32, 128, 16, 8, 40, 72, 80, 96, 256)
QUICK_MASKS = ("star", "longformer", "strided", "log_sparse", named_masks.RANDOM)
QUICK_SHAPES = ((32, 512), (8, 2048))
"""Batch and length of `gpu_check`'s own timings, 12 heads of 64 in bf16."""

_LONGEST = 2048  # of what is compared in fp64; the benchmark itself checks what is longer
_BATCH, _HEADS = 2, 4

Results = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class KernelCase:
    """One thing to check, forward and backward.

    Attributes:
        plan: "by time" (the compiler's plan for the card, by way of `sparse_attention`, as a user
            gets it), "by area" (the kernels alone over such a plan) or a tile height (the kernels
            over a band in tiles of that height).
        mask: its name in `benchmarks.harness.named_masks`, or "band".
        n, dim, dtype: length, head size, and the dtype's name in torch.
        features: of `FEATURES`.
        heads: query heads.
    """

    plan: str
    mask: str
    n: int
    dim: int
    dtype: str
    features: str
    heads: int = _HEADS

    @property
    def row(self) -> Row:
        """The case as columns."""
        return {"check": "correct", **dataclasses.asdict(self)}


def key_of(row: Row) -> tuple[Any, ...]:
    """What tells a checked case from others."""
    return tuple(row[field.name] for field in dataclasses.fields(KernelCase))


def all_cases() -> list[KernelCase]:
    """Everything, the cheapest and most telling first, each once.

    Tile heights; the plans that this script times; those of the benchmark; then every height,
    head size, dtype and feature, for together these are all kernels that can be launched.
    """
    return list(dict.fromkeys(itertools.chain(_first(), timed_cases(), _benchmark(), _rest())))


def timed_cases() -> Iterator[KernelCase]:
    """The plans that `gpu_check` times."""
    for (_, n), mask in itertools.product(QUICK_SHAPES, QUICK_MASKS):
        yield KernelCase(TIME, mask, n, 64, "bfloat16", PLAIN)


def smoke_cases() -> list[KernelCase]:
    """A few tiny ones, for Triton's interpreter."""
    return [
        KernelCase("16", BAND, 40, 16, "float32", PLAIN),
        KernelCase(AREA, "longformer", 40, 16, "float32", ALL),
        KernelCase(TIME, "strided", 40, 16, "float16", PLAIN),
    ]


def _first() -> Iterator[KernelCase]:
    for features, height in itertools.product((PLAIN, ALL), HEIGHTS):
        yield KernelCase(str(height), BAND, 300, 64, "bfloat16", features)


def _benchmark() -> Iterator[KernelCase]:
    for case in cases.select("cuda"):
        if case.length <= _LONGEST and case.mask != named_masks.NONE_LEARNED:
            features = DROPOUT if case.dropout else KEY_MASK if case.padding else PLAIN
            heads = _HEADS
            if case.mask == named_masks.LEARNED_LOOKING or case.mask.startswith(
                named_masks.LEARNED_PREFIX
            ):
                heads = case.heads
            yield KernelCase(TIME, case.mask, case.length, case.dim, case.dtype, features, heads)
    for dtype, features in itertools.product(DTYPES, FEATURES):
        yield KernelCase(TIME, "longformer", 512, 64, dtype, features)


def _rest() -> Iterator[KernelCase]:
    for dim, dtype in itertools.product(HEAD_DIMS, DTYPES):
        for features, height in itertools.product(FEATURES, HEIGHTS):
            yield KernelCase(str(height), BAND, 300, dim, dtype, features)
        for mask in ("longformer", "strided", "random"):
            yield KernelCase(AREA, mask, 512, dim, dtype, PLAIN)
            yield KernelCase(AREA, mask, 512, dim, dtype, ALL)


def check_row(case: KernelCase, device: str = "cuda") -> Row:
    """The case's row; new memory holds NaN, so that nothing is read that was not written.

    Raises LostDevice when no other case can run in this process.
    """
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return case.row | _checked(case, device)
    except (torch.OutOfMemoryError, named_masks.NoSuchMask, ImportError) as error:
        return case.row | {"passed": None, "why": in_words(error)}
    except Exception as error:  # the compiler's own errors have no common class
        if is_fatal(error):
            raise LostDevice(in_words(error)) from error
        return case.row | {"passed": False, "why": in_words(error)}
    finally:
        torch.use_deterministic_algorithms(False)


def _checked(case: KernelCase, device: str) -> Row:
    if case.mask == BAND:
        mask = sb.AttentionMask.from_dense(torch.from_numpy(band(case.n, 40)))
        parts = 2 if case.features == ALL else 1  # so that rows are merged, too
        work: Any = band_program(case.n, (int(case.plan),), half_width=40, parts=parts)
        heights = [int(case.plan)]
    else:
        mask = named_masks.build(case.mask, case.n, case.heads)
        work = _plan(mask, case.plan, case.dim, case.heads, device)
        heights = heights_of(work)
        if case.plan == AREA:
            work = kernels.build_program(work)
    found = check_case(
        mask, case.dim, getattr(torch, case.dtype), case.features, device, work, case.heads
    )
    return {"heights": heights, **found}


@functools.lru_cache(maxsize=8)
def _plan(mask: sb.AttentionMask, by: str, dim: int, heads: int, device: str) -> AttentionPlan:
    if by == AREA:
        return sb.compile_plan(mask, objective="area")
    return compile_for(mask, torch.device(device), dim, heads)


def heights_of(plan: AttentionPlan) -> list[int]:
    """The heights of the tiles that a plan runs, of both directions."""
    if plan.dense_heads.all():
        return []
    return sorted({int(h) for tiles in (plan.tiles, plan.transposed) for h in tiles.height})


def check_case(
    mask: sb.AttentionMask,
    dim: int,
    dtype: torch.dtype,
    features: str,
    device: str,
    work: AttentionPlan | kernels.KernelProgram,
    heads: int = _HEADS,
) -> Row:
    """Forward and backward on random inputs: whether they are right, and how far off.

    `work` runs the mask: a plan by way of `sparse_attention`, a program by the kernels alone.
    """
    torch.manual_seed(0)
    n = mask.q_len
    kv_heads = heads // 2 if GQA in features else heads
    q, k, v, grad_o = (
        torch.randn(_BATCH, n, h, dim, device=device).to(dtype).transpose(1, 2)
        for h in (heads, kv_heads, kv_heads, heads)
    )
    grad_lse = torch.randn(_BATCH, heads, n, device=device) if "LSE" in features else None
    key_mask = keep = seed = None
    if KEY_MASK in features:
        key_mask = torch.rand(_BATCH, n, device=device) < 0.8
        hidden = ~key_mask[:, None, :, None]
        k, v = k.masked_fill(hidden, math.nan), v.masked_fill(hidden, math.inf)
    p = 0.1 if DROPOUT in features else 0.0
    if p:
        torch.manual_seed(1)
        seed = dropout.draw_seed(device)
        keep = dropout.keep_mask(_BATCH, heads, n, n, p, seed=seed, device=device)
    torch.manual_seed(1)  # `sparse_attention` draws the same seed
    run = _by_kernels if isinstance(work, kernels.KernelProgram) else _by_sparse_attention
    results = run(q, k, v, grad_o, grad_lse, key_mask, seed, work.to(device), p)
    return compared(
        results,
        expected_attention(
            q, k, v, mask, key_mask=key_mask, keep_mask=keep, dropout_p=p, grad_o=grad_o,
            grad_lse=grad_lse,
        ),
    )  # fmt: skip


def compared(results: Results, expected: Any) -> Row:
    """Whether all results lie within their bounds, the worst ratio, and what is out of bounds."""
    outcomes = expected.outcomes(results)
    wrong = [str(outcome) for outcome in outcomes if not outcome.passed]
    worst = max(outcome.ratio for outcome in outcomes)
    row = {"passed": not wrong, "error_over_bound": round(worst, 3)}
    return row | ({"why": "; ".join(wrong)} if wrong else {})


def _by_kernels(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad_o: torch.Tensor,
    grad_lse: torch.Tensor | None,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    program: kernels.KernelProgram,
    p: float,
) -> Results:
    rest = (key_mask, seed, program, q.shape[-1] ** -0.5, p)
    o, lse = kernels.forward(q, k, v, *rest)
    gradients = kernels.backward(grad_o, grad_lse, q, k, v, o, lse, *rest)
    return {"o": o, "lse": lse, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}


def _by_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad_o: torch.Tensor,
    grad_lse: torch.Tensor | None,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    plan: AttentionPlan,
    p: float,
) -> Results:
    """As a user calls it; on the CPU, by the kernels in the interpreter."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    results = sb.sparse_attention(
        *inputs, plan, key_mask=key_mask, dropout_p=p, return_lse=grad_lse is not None,
        backend="auto" if q.is_cuda else "triton",
    )  # fmt: skip
    outputs = results if isinstance(results, tuple) else (results,)
    upstream = [grad_o, grad_lse][: len(outputs)]
    gradients = torch.autograd.grad(outputs, inputs, upstream)
    named = dict(zip(("o", "lse"), (x.detach() for x in outputs), strict=False))
    return {**named, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}
