"""Attention over packed tiles by Triton kernels: the host's side of forward and backward.

It takes arrays and numbers alone. Every result lies in memory as [B, N, H, D]. Nothing here waits
for the device, so a call can be captured in a graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .launch import (
    alignment,
    int16_key_mask,
    run_merge,
    run_tiles,
    strides,
    with_contiguous_rows,
)
from .program import KernelProgram, Side

# In the kernels a smaller one, as fp32, could be 0: a masked score would be -inf * 0, NaN.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


class Options(NamedTuple):
    """The options of a call.

    Attributes:
        scale: factor of the scores.
        key_mask: bool [B, M], True = a real key; None if all are.
        seed: int64 [1], needed with dropout.
        dropout_p: probability to drop, in [0, 1).
        drop_threshold: hash values below it, of 2**32, are dropped.
    """

    scale: float
    key_mask: torch.Tensor | None = None
    seed: torch.Tensor | None = None
    dropout_p: float = 0.0
    drop_threshold: int = 0


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    program: KernelProgram,
    options: Options,
) -> tuple[torch.Tensor, torch.Tensor]:
    """o [B, H, N, D] in q's dtype and LSE fp32 [B, H, N] of q [B, H, N, D], k, v [B, H_kv, M, D].

    Heads without tiles get zeros, and an LSE of -inf.
    """
    batch, heads, q_len, head_dim = q.shape
    dtype = q.dtype
    if options.dropout_p > 0.0:  # else o is a mean of values, in every tile
        dtype = _dtype_of_sums(dtype, program.queries)
    o = q.new_empty(batch, q_len, heads, head_dim, dtype=dtype)
    lse = q.new_empty(batch, heads, q_len, dtype=torch.float32)
    if o.numel() == 0:
        return o.to(q.dtype).transpose(1, 2), lse
    q, scale = _with_positive_scale(q, options.scale)
    repeats, arguments = _arguments(q, k, v, program, options._replace(scale=scale))
    part_o = _scratch(program.queries.num_slots, repeats, head_dim, lse)
    part_lse = _scratch(program.queries.num_slots, repeats, 1, lse)
    arguments |= {"o_ptr": o, "lse_ptr": lse, "part_o_ptr": part_o, "part_lse_ptr": part_lse}
    run_tiles("forward", program.queries, repeats, arguments)
    heads_per_item = arguments["heads_per_item"]
    run_merge(program.queries, repeats, heads_per_item, part_o, o, part_lse, lse)
    return o.to(q.dtype).transpose(1, 2), lse


def backward(
    grad_o: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    program: KernelProgram,
    options: Options,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq [B, H, N, D] in q's dtype, dk and dv [B, H, M, D] of each query head.

    o and lse are what `forward` returned. dk and dv are in k's dtype, or in fp32 where query heads
    share key heads, and are added up afterwards. Queries with an LSE of -inf must hold numbers, in
    q and grad_o.
    """
    _, heads, q_len, head_dim = q.shape
    kv_len = k.shape[2]
    dtype = k.dtype if k.shape[1] == heads else torch.float32
    dq = _new_gradient(q, heads, q_len, q.dtype, program.queries)
    dk, dv = (_new_gradient(k, heads, kv_len, dtype, program.keys) for _ in range(2))
    if q.numel() == 0 or k.numel() == 0:
        return tuple(x.zero_().transpose(1, 2) for x in (dq, dk, dv))
    grad_o = with_contiguous_rows(grad_o)
    q, scale = _with_positive_scale(q, options.scale)
    repeats, arguments = _arguments(q, k, v, program, options._replace(scale=scale), grad_o)
    arguments |= {
        "grad_o_ptr": grad_o,
        "stats_ptr": lse.new_empty(*lse.shape, 2),
        **strides("g", grad_o, arguments["ALIGN"]),
    }
    heads_per_item = arguments["heads_per_item"]
    part_dq = _scratch(program.queries.num_slots, repeats, head_dim, lse)
    of_queries = {
        "o_ptr": o.transpose(1, 2).contiguous(),
        "lse_ptr": lse.contiguous(),
        "grad_lse_ptr": None if grad_lse is None else grad_lse.contiguous(),
        "HAS_GRAD_LSE": grad_lse is not None,
        "dq_ptr": dq,
        "part_dq_ptr": part_dq,
    }
    run_tiles("dq", program.queries, repeats, arguments | of_queries)
    run_merge(program.queries, repeats, heads_per_item, part_dq, dq)
    part_dk, part_dv = (_scratch(program.keys.num_slots, repeats, head_dim, lse) for _ in range(2))
    outputs = {"dk_ptr": dk, "dv_ptr": dv, "part_dk_ptr": part_dk, "part_dv_ptr": part_dv}
    run_tiles("dkdv", program.keys, repeats, arguments | outputs | {"kv_len": kv_len})
    run_merge(program.keys, repeats, heads_per_item, part_dk, dk)
    run_merge(program.keys, repeats, heads_per_item, part_dv, dv)
    dq, dk, dv = dq.to(q.dtype), dk.to(dtype), dv.to(dtype)
    if abs(options.scale) < _SMALLEST_SCALE:
        dq = torch.zeros_like(dq)
    elif options.scale < 0.0:
        dq = -dq
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


def _arguments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    program: KernelProgram,
    options: Options,
    *others: torch.Tensor,
) -> tuple[int, dict[str, Any]]:
    """How often each work list is run, and the arguments that all tile kernels share."""
    q, k, v = (with_contiguous_rows(x) for x in (q, k, v))
    batch, heads, q_len, _ = q.shape
    # For each batch, and for each head if one list serves all; each time with slots of its own.
    heads_per_item = 1 if program.per_head else heads
    align = alignment(q, k, v, *others)
    has_dropout = options.dropout_p > 0.0
    key_mask = options.key_mask
    if key_mask is not None:
        key_mask = int16_key_mask(key_mask)
    return batch * heads_per_item, {
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        "key_mask_ptr": key_mask,
        "seed_ptr": options.seed if has_dropout else None,
        **strides("q", q, align),
        **strides("k", k, align),
        **strides("v", v, align),
        "stride_mb": 0 if key_mask is None else key_mask.stride(0),
        "heads_per_item": heads_per_item,
        "num_heads": heads,
        "group_size": heads // k.shape[1],
        "q_len": q_len,
        "scale": options.scale,
        "keep_scale": 1.0 / (1.0 - options.dropout_p),
        "drop_threshold": options.drop_threshold - 2**31,
        "HAS_KEY_MASK": key_mask is not None,
        "HAS_DROPOUT": has_dropout,
        "ALIGN": align,
    }


def _new_gradient(
    x: torch.Tensor, heads: int, length: int, dtype: torch.dtype, side: Side
) -> torch.Tensor:
    """Memory for a gradient, [B, length, H, D]."""
    dtype = _dtype_of_sums(dtype, side)
    return x.new_empty(x.shape[0], length, heads, x.shape[3], dtype=dtype)


def _dtype_of_sums(dtype: torch.dtype, side: Side) -> torch.dtype:
    """In what a result is kept that tiles may go on from: fp32 in place of fp16.

    A sum that fp16 can hold may have parts that it cannot.
    """
    return torch.float32 if side.chained and dtype == torch.float16 else dtype


def _scratch(num_slots: int, repeats: int, head_dim: int, lse: torch.Tensor) -> torch.Tensor:
    """Room for partial results, fp32; `lse` in its place where a plan has none, to save a call."""
    return lse.new_empty(repeats, num_slots, head_dim) if num_slots else lse


def _with_positive_scale(q: torch.Tensor, scale: float) -> tuple[torch.Tensor, float]:
    """q and scale with the same scores, for the kernels take the maximum before they scale."""
    if abs(scale) < _SMALLEST_SCALE:
        return torch.zeros_like(q), 1.0
    return (-q, -scale) if scale < 0.0 else (q, scale)
