"""The backward kernel over key tiles: dK and dV.

Like `dq.py` it recomputes the probabilities from the LSE, but over the tiles of the transposed
mask, whose rows are keys and whose gathered columns are queries. So every result has one writer
here, too.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .philox import draw_dropout, keep
from .primitives import (
    Constants,
    dot,
    head_ptr,
    is_real,
    load_rows,
    mask_by_words,
)
from .softmax import exponential, log_unit
from .work_item import (
    load_cols,
    load_earlier,
    load_work_item,
    store_rows,
    words_at,
)


class _KeyRows(NamedTuple):
    """A program's key rows, which stay where they are."""

    k: tl.tensor  # [BLOCK_M, BLOCK_D]
    v: tl.tensor  # [BLOCK_M, BLOCK_D]
    rows: tl.tensor  # [BLOCK_M] positions, for dropout
    visible: tl.tensor  # [BLOCK_M], whether they are real; with HAS_KEY_MASK


class _Queries(NamedTuple):
    """The queries of one head, to gather rows from."""

    q_ptr: tl.tensor
    grad_o_ptr: tl.tensor
    stats_ptr: tl.tensor
    stride_qn: tl.tensor
    stride_gn: tl.tensor


@triton.jit
def _load_stats(queries, cols):
    """LSE and delta of gathered queries, [BLOCK_N]."""
    stats_ptrs = queries.stats_ptr + cols.to(tl.int64)[:, None] * 2 + tl.arange(0, 2)[None, :]
    return tl.split(tl.load(stats_ptrs))


@triton.jit
def _first_step(item, queries, start, cols, CONST: tl.constexpr):
    """What a loop over queries begins with at column `start`, beside `cols`: see `first_step`.

    The LSE and delta of these queries, and the columns of the next step.
    """
    lse, delta = _load_stats(queries, cols)
    return lse, delta, load_cols(item, start + CONST.BLOCK_N, CONST)


@triton.jit
def _next_step(item, queries, start, ahead, CONST: tl.constexpr):
    """The same, and `cols`, for the step after the one that begins at column `start`."""
    lse, delta = _load_stats(queries, ahead)
    cols = load_cols(item, start + CONST.BLOCK_N, CONST)
    ahead = load_cols(item, start + 2 * CONST.BLOCK_N, CONST)
    return cols, lse, delta, ahead


@triton.jit
def _dkdv_step(
    dk,  # [BLOCK_M, BLOCK_D]
    dv,  # [BLOCK_M, BLOCK_D]
    keys,
    queries,
    cols,  # [BLOCK_N] query positions
    lse,  # [BLOCK_N], in `log_unit`
    delta,  # [BLOCK_N]
    dropout,
    words,
    qk_scale,
    HAS_WORDS: tl.constexpr,
    CONST: tl.constexpr,
):
    """Add what BLOCK_N gathered queries contribute to dK (without the scale) and dV."""
    k, v = keys.k, keys.v
    q = load_rows(queries.q_ptr, cols, queries.stride_qn, None, CONST)
    do = load_rows(queries.grad_o_ptr, cols, queries.stride_gn, None, CONST)
    s = dot(k, tl.trans(q), None, CONST)  # [BLOCK_M keys, BLOCK_N queries]
    dp = dot(v, tl.trans(do), None, CONST)
    p = exponential(s * qk_scale, lse[None, :], k.dtype == tl.float32)
    if HAS_WORDS:
        p = mask_by_words(p, words, 0.0, CONST)
    if CONST.HAS_KEY_MASK:
        p = tl.where(keys.visible[:, None], p, 0.0)
    dropped = p
    if CONST.HAS_DROPOUT:
        kept = keep(dropout, cols[None, :], keys.rows[:, None])
        dropped = tl.where(kept, p * dropout.keep_scale, 0.0)
        dp = tl.where(kept, dp * dropout.keep_scale, 0.0)
    dv = dot(dropped.to(do.dtype), do, dv, CONST)
    ds = p * (dp - delta[None, :])  # not before: the two then share a place in shared memory
    dk = dot(ds.to(q.dtype), q, dk, CONST)
    return dk, dv


@triton.jit(
    do_not_specialize=[
        *("stride_qb", "stride_qh", "stride_qn", "stride_kb", "stride_kh", "stride_kn"),
        *("stride_vb", "stride_vh", "stride_vn", "stride_gb", "stride_gh", "stride_gn"),
        *("stride_mb", "first_record", "first_batch"),
        *("num_slots", "num_heads", "group_size", "q_len", "kv_len", "drop_threshold"),
    ]
)
def dkdv_kernel(
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H_kv, M, D]
    v_ptr,  # [B, H_kv, M, D]
    grad_o_ptr,  # [B, H, N, D]
    stats_ptr,  # fp32 [B, H, N, 2], from `dq_kernel`
    key_mask_ptr,  # int16 [B, M / 2], see `load_key_mask`
    seed_ptr,  # int64 [1]
    dk_ptr,  # [B, M, H, D], one for each query head
    dv_ptr,  # [B, M, H, D]
    part_dk_ptr,  # fp32 [repeats, num_slots, D]
    part_dv_ptr,  # fp32 [repeats, num_slots, D]
    records_ptr,
    cols_ptr,
    words_ptr,
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_gb,
    stride_gh,
    stride_gn,
    stride_mb,
    first_record,
    first_batch,
    num_slots,
    num_heads,
    group_size,
    q_len,
    kv_len,
    scale,
    keep_scale,
    drop_threshold,
    HAS_KEY_MASK: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEIGHT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    TARGET: tl.constexpr,
):
    """dK and dV of one tile of key rows, for one query head."""
    CONST: tl.constexpr = Constants(
        HAS_KEY_MASK=HAS_KEY_MASK,
        HAS_DROPOUT=HAS_DROPOUT,
        HEAD_DIM=HEAD_DIM,
        HEIGHT=HEIGHT,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        BLOCK_D=BLOCK_D,
        ALIGN=ALIGN,
        PRECISION=PRECISION,
        TARGET=TARGET,
    )
    item = load_work_item(
        records_ptr, cols_ptr, words_ptr, first_record, first_batch, group_size, CONST
    )  # fmt: skip
    rows = item.rows
    q_ptr = head_ptr(q_ptr, item.batch, item.head, stride_qb, stride_qh, ALIGN)
    grad_o_ptr = head_ptr(grad_o_ptr, item.batch, item.head, stride_gb, stride_gh, ALIGN)
    k_ptr = head_ptr(k_ptr, item.batch, item.kv_head, stride_kb, stride_kh, ALIGN)
    v_ptr = head_ptr(v_ptr, item.batch, item.kv_head, stride_vb, stride_vh, ALIGN)
    stats_ptr += (item.batch * num_heads + item.head).to(tl.int64) * q_len * 2
    queries = _Queries(
        q_ptr=q_ptr,
        grad_o_ptr=grad_o_ptr,
        stats_ptr=stats_ptr,
        stride_qn=stride_qn,
        stride_gn=stride_gn,
    )
    visible = rows >= 0
    if HAS_KEY_MASK:
        key_mask_ptr += item.batch.to(tl.int64) * stride_mb
        visible = is_real(key_mask_ptr, rows, rows >= 0)
    keys = _KeyRows(
        k=load_rows(k_ptr, rows, stride_kn, visible, CONST),
        v=load_rows(v_ptr, rows, stride_vn, visible, CONST),
        rows=rows,
        visible=visible,
    )
    dropout = draw_dropout(
        seed_ptr, item.batch, item.head, drop_threshold, keep_scale, HAS_DROPOUT
    )

    qk_scale = scale * log_unit(k_ptr.dtype.element_ty == tl.float32)
    dk = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    full, width = item.full, item.width
    cols = item.first_cols
    if full > 0:  # as in the forward kernel
        lse, delta, ahead = _first_step(item, queries, 0, cols, CONST)
        for start in tl.range(0, full, BLOCK_N):
            dk, dv = _dkdv_step(
                dk, dv, keys, queries, cols, lse, delta, dropout, (), qk_scale,
                False, CONST,
            )  # fmt: skip
            cols, lse, delta, ahead = _next_step(item, queries, start, ahead, CONST)
        cols = load_cols(item, full, CONST)
    if width > full:
        lse, delta, ahead = _first_step(item, queries, full, cols, CONST)
        words = words_at(item, full, CONST)
        for start in tl.range(full, width, BLOCK_N):
            dk, dv = _dkdv_step(
                dk, dv, keys, queries, cols, lse, delta, dropout, words,
                qk_scale, True, CONST,
            )  # fmt: skip
            words = words_at(item, start + BLOCK_N, CONST)
            cols, lse, delta, ahead = _next_step(item, queries, start, ahead, CONST)
    dk *= scale
    if item.continues:
        dk += load_earlier(dk_ptr, item, kv_len, num_heads, CONST)
        dv += load_earlier(dv_ptr, item, kv_len, num_heads, CONST)
    store_rows(dk, dk_ptr, part_dk_ptr, item, kv_len, num_heads, num_slots, CONST)
    store_rows(dv, dv_ptr, part_dv_ptr, item, kv_len, num_heads, num_slots, CONST)
