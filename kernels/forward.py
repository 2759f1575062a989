"""The forward kernel: one program per tile, head and batch.

FlashAttention's loop (Dao et al., 2022) over the tile's gathered columns: first those that every
row attends to, then those with a bit test. Results of rows that this tile alone covers go where
they belong; of two tiles that cover a row the second starts from what the first left there.
Results of more go to scratch, normalised, with their LSE, for `merge.py`.
"""

from __future__ import annotations

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
from .softmax import exponential, finite, log_unit
from .work_item import (
    columns_with_real_keys,
    first_step,
    load_cols,
    load_earlier,
    load_slots,
    load_work_item,
    next_step,
    store_rows,
    words_at,
)

_CONTINUED = tl.constexpr(layout.CONTINUED)


@triton.jit
def _attend(
    acc,  # [BLOCK_M, BLOCK_D] unnormalised output
    total,  # [BLOCK_M] sum of the weights
    maximum,  # [BLOCK_M] running maximum of the scaled scores, in `log_unit`
    q,  # [BLOCK_M, BLOCK_D]
    rows,  # [BLOCK_M] query positions, for dropout
    keys,
    cols,  # [BLOCK_N] key positions
    pairs,  # [BLOCK_N] of the key mask
    dropout,
    words,
    qk_scale,
    HAS_WORDS: tl.constexpr,
    CONST: tl.constexpr,
):
    """One step of BLOCK_N columns."""
    visible, k, v = gather_keys(keys, cols, pairs, CONST)
    s = dot(q, tl.trans(k), None, CONST)  # [BLOCK_M, BLOCK_N]
    if HAS_WORDS:
        s = mask_by_words(s, words, -float("inf"), CONST)
    if CONST.HAS_KEY_MASK:
        if CONST.BLOCK_M < 128:
            s = tl.where(visible[None, :], s, -float("inf"))
        else:  # fewer instructions, but registers that smaller programs need
            s += tl.where(visible, 0.0, -float("inf"))[None, :]

    new_maximum = tl.maximum(maximum, tl.max(s, 1) * qk_scale)
    safe = finite(new_maximum)
    p = exponential(s * qk_scale, safe[:, None], q.dtype == tl.float32)
    shrink = exponential(maximum, safe, q.dtype == tl.float32)
    total = total * shrink + tl.sum(p, 1)
    if CONST.HAS_DROPOUT:
        p = tl.where(keep(dropout, rows[:, None], cols[None, :]), p, 0.0)
    acc = acc * shrink[:, None]
    acc = dot(p.to(v.dtype), v, acc, CONST)
    return acc, total, new_maximum


@triton.jit(
    do_not_specialize=[
        *("stride_qb", "stride_qh", "stride_qn", "stride_kb", "stride_kh", "stride_kn"),
        *("stride_vb", "stride_vh", "stride_vn", "stride_mb"),
        *("first_record", "first_batch"),
        *("num_slots", "num_heads", "group_size", "q_len", "drop_threshold"),
    ]
)
def forward_kernel(
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H_kv, M, D]
    v_ptr,  # [B, H_kv, M, D]
    key_mask_ptr,  # int16 [B, M / 2], see `load_key_mask`
    seed_ptr,  # int64 [1]
    o_ptr,  # [B, N, H, D]
    lse_ptr,  # fp32 [B, H, N], natural
    part_o_ptr,  # fp32 [repeats, num_slots, D]: o of the covering tiles
    part_lse_ptr,  # fp32 [repeats, num_slots]: their LSE
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
    stride_mb,
    first_record,
    first_batch,
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
    k_ptr = head_ptr(k_ptr, item.batch, item.kv_head, stride_kb, stride_kh, ALIGN)
    v_ptr = head_ptr(v_ptr, item.batch, item.kv_head, stride_vb, stride_vh, ALIGN)
    q = load_rows(q_ptr, rows, stride_qn, rows >= 0, CONST)
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

    unit = log_unit(q.dtype == tl.float32)
    qk_scale = scale * unit
    lse_ptr += (item.batch * num_heads + item.head).to(tl.int64) * q_len
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    maximum = tl.full([BLOCK_M], -float("inf"), tl.float32)
    cols = item.first_cols
    # A loop that may run zero times makes ptxas wait after every single wgmma (C7515); hence "if".
    if full > 0:
        pairs, ahead = first_step(item, key_mask_ptr, 0, cols, CONST)
        for start in tl.range(0, full, BLOCK_N):
            acc, total, maximum = _attend(
                acc, total, maximum, q, rows, keys, cols, pairs, dropout, (),
                qk_scale, False, CONST,
            )  # fmt: skip
            cols, pairs, ahead = next_step(item, key_mask_ptr, start, ahead, CONST)
        cols = load_cols(item, full, CONST)
    if width > full:
        pairs, ahead = first_step(item, key_mask_ptr, full, cols, CONST)
        words = words_at(item, full, CONST)
        for start in tl.range(full, width, BLOCK_N):
            acc, total, maximum = _attend(
                acc, total, maximum, q, rows, keys, cols, pairs, dropout,
                words, qk_scale, True, CONST,
            )  # fmt: skip
            words = words_at(item, start + BLOCK_N, CONST)
            cols, pairs, ahead = next_step(item, key_mask_ptr, start, ahead, CONST)

    if item.continues:
        # What the earlier tile left is one more column, with its LSE for a score. Not where the
        # loops begin: ptxas then waits after every single wgmma, too.
        its_rows, slots = load_slots(item, CONST)
        goes_on = slots == _CONTINUED
        earlier = unit * tl.load(lse_ptr + its_rows, mask=goes_on, other=-float("inf"))
        new_maximum = tl.maximum(maximum, earlier)
        safe = finite(new_maximum)
        shrink = exponential(maximum, safe, q.dtype == tl.float32)
        weight = exponential(earlier, safe, q.dtype == tl.float32)
        total = total * shrink + weight
        weight /= keep_scale
        earlier_o = load_earlier(o_ptr, item, q_len, num_heads, CONST)
        acc = acc * shrink[:, None] + earlier_o * weight[:, None]
        maximum = new_maximum
    dead = total == 0.0
    safe_total = tl.where(dead, 1.0, total)
    o = acc * (keep_scale / safe_total)[:, None]
    lse = tl.where(dead, -float("inf"), maximum / unit + tl.log(safe_total))
    rows, written, part = store_rows(
        o, o_ptr, part_o_ptr, item, q_len, num_heads, num_slots, CONST
    )
    tl.store(part_lse_ptr + part, lse, mask=part >= 0)
    tl.store(lse_ptr + rows, lse, mask=written)
