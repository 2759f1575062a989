"""The backward kernel over query tiles: dQ.

It recomputes the probabilities from the LSE (FlashAttention-2, Dao, 2023), over the tiles of the
forward pass. So every result has one writer and nothing is added atomically; rows that several
tiles cover go to scratch and are added up by `merge.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

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
from .work_item import columns_with_real_keys, load_work_item, store_rows, words_at


class _Queries(NamedTuple):
    """A program's query rows, which stay where they are."""

    q: tl.tensor  # [BLOCK_M, BLOCK_D]
    do: tl.tensor  # [BLOCK_M, BLOCK_D]
    lse: tl.tensor  # [BLOCK_M], in `log_unit`
    delta: tl.tensor  # [BLOCK_M]
    rows: tl.tensor  # [BLOCK_M] positions, for dropout


@triton.jit
def _dq_step(
    dq,  # [BLOCK_M, BLOCK_D]
    queries,
    keys,
    dropout,
    cols_ptr,
    words_ptr,
    qk_scale,
    HAS_WORDS: tl.constexpr,
    CONST: tl.constexpr,
):
    """Add what BLOCK_N gathered keys contribute to dQ, without the scale."""
    cols, visible, k, v = gather_keys(keys, cols_ptr, CONST)
    s = dot(queries.q, tl.trans(k), None, CONST)  # [BLOCK_M, BLOCK_N]
    dp = dot(queries.do, tl.trans(v), None, CONST)
    p = exponential(s * qk_scale, queries.lse[:, None], k.dtype == tl.float32)
    if HAS_WORDS:
        p = mask_by_words(p, words_ptr, 0.0, CONST)
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
        *("stride_mb", "first_item", "num_items", "heads_per_item", "num_slots"),
        *("num_heads", "group_size", "q_len", "drop_threshold"),
    ]
)
def dq_kernel(
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H_kv, M, D]
    v_ptr,  # [B, H_kv, M, D]
    grad_o_ptr,  # [B, H, N, D]
    stats_ptr,  # fp32 [B, H, N, 2], from `delta_kernel`
    key_mask_ptr,  # int16 [B, M / 2], see `is_real`
    seed_ptr,  # int64 [1]
    dq_ptr,  # [B, N, H, D]
    part_dq_ptr,  # fp32 [repeats, num_slots, D]
    items_ptr,
    rows_ptr,
    slots_ptr,
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
    first_item,
    num_items,
    heads_per_item,
    num_slots,
    num_heads,
    group_size,
    q_len,
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
        items_ptr, rows_ptr, slots_ptr, cols_ptr, words_ptr, first_item, num_items,
        heads_per_item, group_size, CONST,
    )  # fmt: skip
    rows = item.rows
    q_ptr = head_ptr(q_ptr, item.batch, item.head, stride_qb, stride_qh, ALIGN)
    grad_o_ptr = head_ptr(grad_o_ptr, item.batch, item.head, stride_gb, stride_gh, ALIGN)
    k_ptr = head_ptr(k_ptr, item.batch, item.kv_head, stride_kb, stride_kh, ALIGN)
    v_ptr = head_ptr(v_ptr, item.batch, item.kv_head, stride_vb, stride_vh, ALIGN)
    first_query = (item.batch * num_heads + item.head) * q_len
    stats_ptrs = stats_ptr + (first_query + rows) * 2
    queries = _Queries(
        lse=tl.load(stats_ptrs, mask=rows >= 0, other=float("inf")),
        delta=tl.load(stats_ptrs + 1, mask=rows >= 0, other=0.0),
        q=load_rows(q_ptr, rows, stride_qn, rows >= 0, CONST),
        do=load_rows(grad_o_ptr, rows, stride_gn, rows >= 0, CONST),
        rows=rows,
    )
    if HAS_KEY_MASK:
        key_mask_ptr += item.batch * stride_mb
    full, width, substitute = columns_with_real_keys(item, key_mask_ptr, CONST)
    keys = Keys(
        k_ptr=k_ptr,
        v_ptr=v_ptr,
        stride_kn=stride_kn,
        stride_vn=stride_vn,
        key_mask_ptr=key_mask_ptr,
        substitute=substitute,
    )
    dropout = draw_dropout(
        seed_ptr, item.batch, item.head, drop_threshold, keep_scale, HAS_DROPOUT
    )

    qk_scale = scale * log_unit(q_ptr.dtype.element_ty == tl.float32)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if full > 0:  # as in the forward kernel
        for start in tl.range(0, full, BLOCK_N):
            dq = _dq_step(
                dq, queries, keys, dropout, item.cols_ptr + start, item.words_ptr, qk_scale,
                False, CONST,
            )  # fmt: skip
    if width > full:
        for start in tl.range(full, width, BLOCK_N):
            dq = _dq_step(
                dq, queries, keys, dropout, item.cols_ptr + start, words_at(item, start, HEIGHT),
                qk_scale, True, CONST,
            )  # fmt: skip
    store_rows(dq * scale, dq_ptr, part_dq_ptr, item, q_len, num_heads, num_slots, CONST)
