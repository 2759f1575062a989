"""The forward kernel: one program per tile, head and batch.

FlashAttention's loop (Dao et al., 2022) over the tile's gathered columns: first those that every
row attends to, then those with a bit test. Rows that this tile alone covers are final; the others
go to scratch, normalised, with their LSE, for `merge.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import philox
from .tile import (
    dot,
    exponential,
    find_work,
    finite,
    is_real,
    load_rows,
    log_unit,
    mask_by_words,
    some_real_key,
    store_rows,
)


@triton.jit
def _attend(
    acc,  # [BLOCK_M, BLOCK_D] unnormalised output
    total,  # [BLOCK_M] sum of the weights
    maximum,  # [BLOCK_M] running maximum of the scaled scores, in `log_unit`
    q,  # [BLOCK_M, BLOCK_D]
    rows,  # [BLOCK_M] query positions, for dropout
    k_ptr,
    v_ptr,
    key_mask_ptr,
    spare,  # a real key to load in place of others, with HAS_KEY_MASK
    cols_ptr,
    words_ptr,
    stride_kn,
    stride_vn,
    qk_scale,
    head_key,
    drop_threshold,
    HAS_WORDS: tl.constexpr,
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
    """One step of BLOCK_N columns; the pointers are at its first column and words."""
    cols = tl.load(cols_ptr + tl.arange(0, BLOCK_N))
    visible = cols >= 0
    if HAS_KEY_MASK:
        visible = is_real(key_mask_ptr, cols, None)
        cols = tl.where(visible, cols, spare)
    k = load_rows(k_ptr, cols, stride_kn, visible, HEAD_DIM, BLOCK_D, ALIGN, True, TARGET)
    v = load_rows(v_ptr, cols, stride_vn, visible, HEAD_DIM, BLOCK_D, ALIGN, True, TARGET)
    s = dot(q, tl.trans(k), None, PRECISION, TARGET)  # [BLOCK_M, BLOCK_N]
    if HAS_WORDS:
        s = mask_by_words(s, words_ptr, -float("inf"), HEIGHT, BLOCK_M, BLOCK_N, TARGET)
    if HAS_KEY_MASK:
        if BLOCK_M < 128:
            s = tl.where(visible[None, :], s, -float("inf"))
        else:  # fewer instructions, but registers that smaller programs need
            s += tl.where(visible, 0.0, -float("inf"))[None, :]

    new_maximum = tl.maximum(maximum, tl.max(s, 1) * qk_scale)
    safe = finite(new_maximum)
    p = exponential(s * qk_scale, safe[:, None], q.dtype == tl.float32)
    shrink = exponential(maximum, safe, q.dtype == tl.float32)
    total = total * shrink + tl.sum(p, 1)
    if HAS_DROPOUT:
        kept = philox.keep(head_key, rows[:, None], cols[None, :], drop_threshold)
        p = tl.where(kept, p, 0.0)
    acc = acc * shrink[:, None]
    acc = dot(p.to(v.dtype), v, acc, PRECISION, TARGET)
    return acc, total, new_maximum


@triton.jit(
    do_not_specialize=[
        *("stride_qb", "stride_qh", "stride_qn", "stride_kb", "stride_kh", "stride_kn"),
        *("stride_vb", "stride_vh", "stride_vn", "stride_mb"),
        *("first_item", "num_items", "heads_per_item", "num_slots"),
        *("num_heads", "group_size", "q_len", "drop_threshold"),
    ]
)
def forward_kernel(
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H_kv, M, D]
    v_ptr,  # [B, H_kv, M, D]
    key_mask_ptr,  # int16 [B, M / 2], see `is_real`
    seed_ptr,  # int64 [1]
    o_ptr,  # [B, N, H, D]
    lse_ptr,  # fp32 [B, H, N], natural
    part_o_ptr,  # fp32 [repeats, num_slots, D]: o of the covering tiles
    part_lse_ptr,  # fp32 [repeats, num_slots]: their LSE
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
    stride_mb,
    first_item,
    num_items,
    heads_per_item,
    num_slots,
    num_heads,
    group_size,  # query heads per key head
    q_len,
    scale,  # positive
    keep_scale,  # 1 / (1 - p)
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
    item_ptr, part, head, batch, space = find_work(
        items_ptr, first_item, num_items, heads_per_item, HEIGHT // BLOCK_M
    )
    row_start = tl.load(item_ptr + 0) + part * BLOCK_M
    cols_ptr += tl.load(item_ptr + 1)
    words_ptr += tl.load(item_ptr + 2) + part * BLOCK_M
    word_col = tl.load(item_ptr + 3).to(tl.int32)
    full = tl.load(item_ptr + 4).to(tl.int32) // BLOCK_N * BLOCK_N
    width = tl.load(item_ptr + 5).to(tl.int32)
    slot_base = tl.load(item_ptr + 7)

    m = tl.arange(0, BLOCK_M)
    rows = tl.load(rows_ptr + row_start + m)
    wide_batch, wide_head = batch.to(tl.int64), head.to(tl.int64)
    kv_head = (head // group_size).to(tl.int64)
    q_ptr += (wide_batch * stride_qb + wide_head * stride_qh) * ALIGN
    k_ptr += (wide_batch * stride_kb + kv_head * stride_kh) * ALIGN
    v_ptr += (wide_batch * stride_vb + kv_head * stride_vh) * ALIGN
    q = load_rows(q_ptr, rows, stride_qn, rows >= 0, HEAD_DIM, BLOCK_D, ALIGN, False, TARGET)
    head_key = tl.zeros([], tl.uint32)
    spare = -1
    if HAS_KEY_MASK:
        key_mask_ptr += wide_batch * stride_mb
        spare = some_real_key(key_mask_ptr, cols_ptr, width, BLOCK_N)
        full = tl.where(spare < 0, 0, full)
        width = tl.where(spare < 0, 0, width)
    if HAS_DROPOUT:
        head_key = philox.head_key(seed_ptr, batch, head)

    unit = log_unit(q.dtype == tl.float32)
    qk_scale = scale * unit
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    maximum = tl.full([BLOCK_M], -float("inf"), tl.float32)
    # A loop that may run zero times makes ptxas wait after every single wgmma (C7515); hence "if".
    if full > 0:
        for start in tl.range(0, full, BLOCK_N):
            acc, total, maximum = _attend(
                acc, total, maximum, q, rows, k_ptr, v_ptr, key_mask_ptr, spare, cols_ptr + start,
                words_ptr, stride_kn, stride_vn, qk_scale, head_key, drop_threshold, False,
                HAS_KEY_MASK, HAS_DROPOUT, HEAD_DIM, HEIGHT, BLOCK_M, BLOCK_N, BLOCK_D, ALIGN,
                PRECISION, TARGET,
            )  # fmt: skip
    if width > full:
        for start in tl.range(full, width, BLOCK_N):
            acc, total, maximum = _attend(
                acc, total, maximum, q, rows, k_ptr, v_ptr, key_mask_ptr, spare, cols_ptr + start,
                words_ptr + (start - word_col) // 32 * HEIGHT,
                stride_kn, stride_vn, qk_scale, head_key, drop_threshold, True,
                HAS_KEY_MASK, HAS_DROPOUT, HEAD_DIM, HEIGHT, BLOCK_M, BLOCK_N, BLOCK_D, ALIGN,
                PRECISION, TARGET,
            )  # fmt: skip

    dead = total == 0.0
    safe_total = tl.where(dead, 1.0, total)
    o = acc * (keep_scale / safe_total)[:, None]
    lse = tl.where(dead, -float("inf"), maximum / unit + tl.log(safe_total))
    final, part = store_rows(
        o, o_ptr, part_o_ptr, rows, slots_ptr + row_start, slot_base, space, num_slots,
        wide_batch * q_len, num_heads, head, HEAD_DIM, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    tl.store(part_lse_ptr + part, lse, mask=part >= 0)
    lse_ptrs = lse_ptr + (wide_batch * num_heads + head) * q_len + rows
    tl.store(lse_ptrs, lse, mask=final)
