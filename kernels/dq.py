"""The backward kernel over query tiles: dQ, and what dK and dV need of each query.

It recomputes the probabilities from the LSE (FlashAttention-2, Dao, 2023), over the tiles of the
forward pass. So every result has one writer and nothing is added atomically; rows that several
tiles cover are chained or added up as in the forward pass.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from . import layout
from .philox import draw_dropout, keep
from .primitives import (
    Constants,
    Keys,
    dot,
    gather_keys,
    head_ptr,
    load_rows,
    mask_by_words,
)
from .softmax import exponential, log_unit
from .work_item import (
    columns_with_real_keys,
    first_step,
    load_cols,
    load_earlier,
    load_slots,
    load_work_item,
    next_step,
    packed_rows,
    store_rows,
    words_at,
)

_FINAL = tl.constexpr(layout.FINAL)


class _Queries(NamedTuple):
    """A program's query rows, which stay where they are."""

    q: tl.tensor  # [BLOCK_M, BLOCK_D]
    do: tl.tensor  # [BLOCK_M, BLOCK_D]
    lse: tl.tensor  # [BLOCK_M], in `log_unit`
    delta: tl.tensor  # [BLOCK_M]
    rows: tl.tensor  # [BLOCK_M] positions, for dropout


@triton.jit
def _load_stats(
    o_ptr,
    lse_ptr,
    grad_lse_ptr,
    stats_ptr,
    do,
    item,
    q_len,
    num_heads,
    HAS_GRAD_LSE: tl.constexpr,
    CONST: tl.constexpr,
):
    """LSE in `log_unit` and delta of a tile's queries; `dkdv_kernel` finds them in `stats`.

    delta = rowsum(o * grad_o) - grad_lse. A row with nothing to attend gets +inf and 0, so that
    its probabilities, exp(s - inf), are 0. Of several tiles that cover a row one writes.
    """
    rows = item.rows
    index = (item.batch * num_heads + item.head).to(tl.int64) * q_len + rows
    lse = tl.load(lse_ptr + index, mask=rows >= 0, other=-float("inf"))
    o_ptrs = packed_rows(o_ptr, item, rows, q_len, num_heads, CONST)
    in_head = tl.arange(0, CONST.BLOCK_D)[None, :] < CONST.HEAD_DIM
    o = tl.load(o_ptrs, mask=(rows >= 0)[:, None] & in_head, other=0.0)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        delta -= tl.load(grad_lse_ptr + index, mask=rows >= 0, other=0.0)
    alive = lse > -float("inf")
    delta = tl.where(alive, delta, 0.0)
    lse = tl.where(alive, lse * log_unit(do.dtype == tl.float32), float("inf"))
    _, slots = load_slots(item, CONST)
    writes = (rows >= 0) & ((slots == _FINAL) | (slots >= 0) & (slots % 2 == 0))
    tl.store(stats_ptr + index * 2, lse, mask=writes)
    tl.store(stats_ptr + index * 2 + 1, delta, mask=writes)
    return lse, delta


@triton.jit
def _dq_step(
    dq,  # [BLOCK_M, BLOCK_D]
    queries,
    keys,
    cols,  # [BLOCK_N] key positions
    pairs,  # [BLOCK_N] of the key mask
    dropout,
    words,
    qk_scale,
    HAS_WORDS: tl.constexpr,
    CONST: tl.constexpr,
):
    """Add what BLOCK_N gathered keys contribute to dQ, without the scale."""
    visible, k, v = gather_keys(keys, cols, pairs, CONST)
    s = dot(queries.q, tl.trans(k), None, CONST)  # [BLOCK_M, BLOCK_N]
    dp = dot(queries.do, tl.trans(v), None, CONST)
    p = exponential(s * qk_scale, queries.lse[:, None], k.dtype == tl.float32)
    if HAS_WORDS:
        p = mask_by_words(p, words, 0.0, CONST)
    if CONST.HAS_KEY_MASK:
        # Not a product with 0: p is inf where the key loaded instead scores far above the LSE. And
        # not a selection, which takes more instructions.
        p = tl.minimum(p, tl.where(visible, float("inf"), 0.0)[None, :])
    if CONST.HAS_DROPOUT:
        kept = keep(dropout, queries.rows[:, None], cols[None, :])
        dp = tl.where(kept, dp * dropout.keep_scale, 0.0)
    ds = p * (dp - queries.delta[:, None])
    return dot(ds.to(k.dtype), k, dq, CONST)


@triton.jit(
    do_not_specialize=[
        *("stride_qb", "stride_qh", "stride_qn", "stride_kb", "stride_kh", "stride_kn"),
        *("stride_vb", "stride_vh", "stride_vn", "stride_gb", "stride_gh", "stride_gn"),
        *("stride_mb", "first_record", "first_batch"),
        *("num_slots", "num_heads", "group_size", "q_len", "drop_threshold"),
    ]
)
def dq_kernel(
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H_kv, M, D]
    v_ptr,  # [B, H_kv, M, D]
    grad_o_ptr,  # [B, H, N, D]
    o_ptr,  # [B, N, H, D]
    lse_ptr,  # fp32 [B, H, N]
    grad_lse_ptr,  # fp32 [B, H, N]; with HAS_GRAD_LSE
    key_mask_ptr,  # int16 [B, M / 2], see `load_key_mask`
    seed_ptr,  # int64 [1]
    dq_ptr,  # [B, N, H, D]
    stats_ptr,  # fp32 [B, H, N, 2]
    part_dq_ptr,  # fp32 [repeats, num_slots, D]
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
    scale,
    keep_scale,
    drop_threshold,
    HAS_KEY_MASK: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEIGHT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    PRECISION: tl.constexpr,
    TARGET: tl.constexpr,
):
    """dQ of one tile of query rows."""
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
    q = load_rows(q_ptr, rows, stride_qn, rows >= 0, CONST)
    do = load_rows(grad_o_ptr, rows, stride_gn, rows >= 0, CONST)
    lse, delta = _load_stats(
        o_ptr, lse_ptr, grad_lse_ptr, stats_ptr, do, item, q_len, num_heads, HAS_GRAD_LSE, CONST
    )
    queries = _Queries(q=q, do=do, lse=lse, delta=delta, rows=rows)
    if HAS_KEY_MASK:
        key_mask_ptr += item.batch.to(tl.int64) * stride_mb
    full, width, substitute = columns_with_real_keys(item, key_mask_ptr, CONST)
    keys = Keys(
        k_ptr=k_ptr,
        v_ptr=v_ptr,
        stride_kn=stride_kn,
        stride_vn=stride_vn,
        substitute=substitute,
    )
    dropout = draw_dropout(
        seed_ptr, item.batch, item.head, drop_threshold, keep_scale, HAS_DROPOUT
    )

    qk_scale = scale * log_unit(q_ptr.dtype.element_ty == tl.float32)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    cols = item.first_cols
    if full > 0:  # as in the forward kernel
        pairs, ahead = first_step(item, key_mask_ptr, 0, cols, CONST)
        for start in tl.range(0, full, BLOCK_N):
            dq = _dq_step(dq, queries, keys, cols, pairs, dropout, (), qk_scale, False, CONST)
            cols, pairs, ahead = next_step(item, key_mask_ptr, start, ahead, CONST)
        cols = load_cols(item, full, CONST)
    if width > full:
        pairs, ahead = first_step(item, key_mask_ptr, full, cols, CONST)
        words = words_at(item, full, CONST)
        for start in tl.range(full, width, BLOCK_N):
            dq = _dq_step(
                dq, queries, keys, cols, pairs, dropout, words, qk_scale,
                True, CONST,
            )  # fmt: skip
            words = words_at(item, start + BLOCK_N, CONST)
            cols, pairs, ahead = next_step(item, key_mask_ptr, start, ahead, CONST)
    dq *= scale
    if item.continues:
        dq += load_earlier(dq_ptr, item, q_len, num_heads, CONST)
    store_rows(dq, dq_ptr, part_dq_ptr, item, q_len, num_heads, num_slots, CONST)
