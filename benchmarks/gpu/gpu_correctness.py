"""One case of `gpu_check`: its results, forward and backward, held against the bounds."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import warnings
from typing import Any

import torch

import sparsebert as sb
from benchmarks.gpu.gpu_cases import (
    AREA,
    BAND,
    BATCH,
    DROPOUT,
    GQA,
    HEADS,
    KEY_MASK,
    LARGE,
    KernelCase,
)
from benchmarks.harness import named_masks
from benchmarks.harness.errors import in_words, is_crowded, is_fatal
from benchmarks.harness.rows import Row
from benchmarks.harness.workers import LostDevice
from benchmarks.kernels import calls as kernels
from benchmarks.kernels.band import band, band_program
from sparsebert import dropout
from sparsebert.plan import AttentionPlan, compile_for
from sparsebert.testing import Arithmetic, expected_attention

Results = dict[str, torch.Tensor]

_COMPARED = 2**26
"""Scores of a case up to which all heads are held against the reference."""
_LARGE = 64.0
"""Scores have this standard deviation where they are large."""
_WORDS = 400
"""Characters of a row about what is wrong."""


def check_row(case: KernelCase, device: str = "cuda") -> Row:
    """The case's row; new memory holds NaN, so that nothing is read that was not written.

    Raises LostDevice when no other case can run in this process.
    """
    row = case.row
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mask, work, row["heights"] = _to_run(case, device)
            return row | check_case(
                mask, case.dim, getattr(torch, case.dtype), case.features, device, work,
                case.heads, case.batch,
            )  # fmt: skip
    except (named_masks.NoSuchMask, ImportError) as error:
        return row | {"passed": None, "why": in_words(error)}
    except Exception as error:  # the compiler's own errors have no common class
        if is_fatal(error):
            raise LostDevice(in_words(error)) from error
        return row | {"passed": None if is_crowded(error) else False, "why": in_words(error)}
    finally:
        torch.use_deterministic_algorithms(False)
        if device == "cuda":
            with contextlib.suppress(Exception):  # of a lost GPU: the case's own error counts
                torch.cuda.empty_cache()  # other processes check beside this one


def _to_run(case: KernelCase, device: str) -> tuple[sb.AttentionMask, Any, list[int]]:
    """Its mask, what runs the mask, and the heights of the tiles that run."""
    if case.mask == BAND:
        height = int(case.plan)
        mask = sb.AttentionMask.from_dense(torch.from_numpy(band(case.n, 40)))
        return mask, band_program(case.n, (height,), half_width=40, parts=case.parts), [height]
    mask = named_masks.build(case.mask, case.n, case.heads)
    plan = _plan(mask, case.plan, case.dim, case.heads, device)
    work = kernels.build_program(plan) if case.plan == AREA else plan
    return mask, work, heights_of(plan)


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
    heads: int = HEADS,
    batch: int = BATCH,
) -> Row:
    """Forward and backward on random inputs: whether they are right, and how far off.

    `work` runs the mask: a plan by way of `sparse_attention`, a program by the kernels alone.
    """
    torch.manual_seed(0)
    n = mask.q_len
    kv_heads = heads // 2 if GQA in features else heads
    q, k, v, grad_o = (
        torch.randn(batch, n, h, dim, device=device).to(dtype).transpose(1, 2)
        for h in (heads, kv_heads, kv_heads, heads)
    )
    if features == LARGE:
        q = q * _LARGE
    grad_lse = torch.randn(batch, heads, n, device=device) if "LSE" in features else None
    key_mask = keep = seed = None
    if KEY_MASK in features:
        key_mask = torch.rand(batch, n, device=device) < 0.8
        hidden = ~key_mask[:, None, :, None]
        k, v = k.masked_fill(hidden, math.nan), v.masked_fill(hidden, math.inf)
    p = 0.1 if DROPOUT in features else 0.0
    if p:
        torch.manual_seed(1)
        seed = dropout.draw_seed(device)
        keep = dropout.keep_mask(batch, heads, n, n, p, seed=seed, device=device)
    torch.manual_seed(1)  # `sparse_attention` draws the same seed
    run = _by_kernels if isinstance(work, kernels.KernelProgram) else _by_sparse_attention
    call = _Call(q, k, v, grad_o, grad_lse, key_mask, seed, p)
    work = work.to(device)
    results = run(call, work)
    return compared(results, call, mask, keep, passes_on=passes_on(work))


@dataclasses.dataclass(frozen=True)
class _Call:
    """What attention and its backward pass are called with; shapes as in `sparse_attention`."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    grad_o: torch.Tensor
    grad_lse: torch.Tensor | None
    key_mask: torch.Tensor | None
    seed: torch.Tensor | None
    dropout_p: float


def passes_on(work: AttentionPlan | kernels.KernelProgram) -> bool:
    """Whether some tiles go on from rounded results of others, in what was run."""
    if isinstance(work, kernels.KernelProgram):
        return work.queries.chained
    return work.passes_on


def compared(
    results: Results,
    call: _Call,
    mask: sb.AttentionMask,
    keep: torch.Tensor | None,
    *,
    passes_on: bool,
) -> Row:
    """Whether all results lie within their bounds, the worst ratio, and what is out of bounds.

    Each key head of each sequence, with the query heads that share it, is held against the
    reference by itself: in fp64 all at once would not fit a GPU that several processes share. Of
    large cases they are the first, the last and the one in the middle; the others must be numbers.
    """
    (batch, heads, n, _), kv_heads = call.q.shape, call.k.shape[1]
    units = list(itertools.product(range(batch), range(kv_heads)))
    wrong = []
    if batch * heads * n * mask.kv_len > _COMPARED:
        units = [units[0], units[len(units) // 2], units[-1]]
        wrong = [f"{name}: not finite" for name, x in results.items() if not _is_sound(name, x)]
    worst = 0.0
    for b, h in units:
        group = heads // kv_heads
        own, queries = slice(h, h + 1), slice(h * group, (h + 1) * group)
        where = {name: own if name in ("dk", "dv") else queries for name in results}
        expected = expected_attention(
            call.q[b : b + 1, queries], call.k[b : b + 1, own], call.v[b : b + 1, own],
            mask if mask.num_heads == 1 else mask.dense()[0, queries],
            key_mask=None if call.key_mask is None else call.key_mask[b : b + 1],
            keep_mask=None if keep is None else keep[b : b + 1, queries],
            dropout_p=call.dropout_p, grad_o=call.grad_o[b : b + 1, queries],
            grad_lse=None if call.grad_lse is None else call.grad_lse[b : b + 1, queries],
            arithmetic=Arithmetic.of(call.q, passes_on=passes_on),
        )  # fmt: skip
        found = {name: x[b : b + 1, where[name]] for name, x in results.items()}
        outcomes = expected.outcomes(found)
        worst = max(worst, *(outcome.ratio for outcome in outcomes))
        wrong += [
            f"batch {b}, key head {h}: {outcome}" for outcome in outcomes if not outcome.passed
        ]
    row = {"passed": not wrong, "error_over_bound": round(worst, 3)}
    return row | ({"why": "; ".join(wrong)[:_WORDS]} if wrong else {})


def _is_sound(name: str, x: torch.Tensor) -> bool:
    """Without NaN and infinities; the LSE of a query without keys is one."""
    return bool(x.isnan().logical_not().all() if name == "lse" else x.isfinite().all())


def _by_kernels(call: _Call, program: kernels.KernelProgram) -> Results:
    rest = (call.key_mask, call.seed, program, call.q.shape[-1] ** -0.5, call.dropout_p)
    o, lse = kernels.forward(call.q, call.k, call.v, *rest)
    gradients = kernels.backward(call.grad_o, call.grad_lse, call.q, call.k, call.v, o, lse, *rest)
    return {"o": o, "lse": lse, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}


def _by_sparse_attention(call: _Call, plan: AttentionPlan) -> Results:
    """As a user calls it; on the CPU, by the kernels in the interpreter."""
    inputs = [x.detach().requires_grad_() for x in (call.q, call.k, call.v)]
    results = sb.sparse_attention(
        *inputs, plan, key_mask=call.key_mask, dropout_p=call.dropout_p,
        return_lse=call.grad_lse is not None, backend="auto" if call.q.is_cuda else "triton",
    )  # fmt: skip
    outputs = results if isinstance(results, tuple) else (results,)
    upstream = [call.grad_o, call.grad_lse][: len(outputs)]
    gradients = torch.autograd.grad(outputs, inputs, upstream)
    named = dict(zip(("o", "lse"), (x.detach() for x in outputs), strict=False))
    return {**named, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}
