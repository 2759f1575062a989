"""The backward kernels: delta, then dQ over query tiles, then dK and dV over key tiles.

Both recompute the probabilities from the LSE (FlashAttention-2, Dao, 2023). dQ runs over the tiles
of the forward pass; dK and dV over the tiles of the transposed mask, whose rows are keys and whose
gathered columns are queries. So every result has one writer and nothing is added atomically. Rows
that several tiles cover go to scratch and are added up by `merge.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import philox
from .tile import (
    dot,
    exponential,
    find_work,
    is_real,
    load_rows,
    log_unit,
    mask_by_words,
    some_real_key,
    store_rows,
)


@triton.jit(
    do_not_specialize=[
        *("stride_ob", "stride_oh", "stride_on", "stride_gb", "stride_gh", "stride_gn"),
        *("num_heads", "q_len"),
    ]
)
def delta_kernel(
    o_ptr,  # [B, H, N, D]
    grad_o_ptr,  # [B, H, N, D]
    lse_ptr,  # fp32 [B, H, N]
    grad_lse_ptr,  # fp32 [B, H, N]; with HAS_GRAD_LSE
    stats_ptr,  # fp32 [B, H, N, 2]
    stride_ob,
    stride_oh,
    stride_on,
    stride_gb,
    stride_gh,
    stride_gn,
    num_heads,
    q_len,
    HAS_GRAD_LSE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    TARGET: tl.constexpr,
):
    """What the other kernels need of each query: its LSE in `log_unit`, and delta.

    delta = rowsum(o * grad_o) - grad_lse. A row with nothing to attend gets +inf and 0, so that
    its probabilities, exp(s - inf), are 0.
    """
    blocks = tl.cdiv(q_len, BLOCK_R)
    program = tl.program_id(0)
    space = (program // blocks).to(tl.int64)
    batch, head = space // num_heads, space % num_heads
    rows = (program % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = rows < q_len
    lse = tl.load(lse_ptr + space * q_len + rows, mask=inside, other=-float("inf"))
    alive = lse > -float("inf")
    o_ptr += (batch * stride_ob + head * stride_oh) * ALIGN
    grad_o_ptr += (batch * stride_gb + head * stride_gh) * ALIGN
    o = load_rows(o_ptr, rows, stride_on, alive, HEAD_DIM, BLOCK_D, ALIGN, False, TARGET)
    do = load_rows(grad_o_ptr, rows, stride_gn, alive, HEAD_DIM, BLOCK_D, ALIGN, False, TARGET)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        delta -= tl.load(grad_lse_ptr + space * q_len + rows, mask=alive, other=0.0)
    lse = tl.where(alive, lse * log_unit(o.dtype == tl.float32), float("inf"))
    stats_ptrs = stats_ptr + (space * q_len + rows)[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(stats_ptrs, tl.join(lse, delta), mask=inside[:, None])


@triton.jit
def _dq_step(
    dq,  # [BLOCK_M, BLOCK_D]
    q,
    do,
    lse,
    delta,
    rows,
    k_ptr,
    v_ptr,
    key_mask_ptr,
    spare,  # a real key to load in place of others, with HAS_KEY_MASK
    cols_ptr,
    words_ptr,
    stride_kn,
    stride_vn,
    qk_scale,
    keep_scale,
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
    """Add what BLOCK_N gathered keys contribute to dQ, without the scale."""
    cols = tl.load(cols_ptr + tl.arange(0, BLOCK_N))
    visible = cols >= 0
    if HAS_KEY_MASK:
        visible = is_real(key_mask_ptr, cols, None)
        cols = tl.where(visible, cols, spare)
    k = load_rows(k_ptr, cols, stride_kn, visible, HEAD_DIM, BLOCK_D, ALIGN, True, TARGET)
    v = load_rows(v_ptr, cols, stride_vn, visible, HEAD_DIM, BLOCK_D, ALIGN, True, TARGET)
    s = dot(q, tl.trans(k), None, PRECISION, TARGET)  # [BLOCK_M, BLOCK_N]
    dp = dot(do, tl.trans(v), None, PRECISION, TARGET)
    p = exponential(s * qk_scale, lse[:, None], k.dtype == tl.float32)
    if HAS_WORDS:
        p = mask_by_words(p, words_ptr, 0.0, HEIGHT, BLOCK_M, BLOCK_N, TARGET)
    if HAS_KEY_MASK:
        # Not a product with 0: p is inf where the key loaded instead scores far above the LSE. And
        # not a selection, which takes more instructions.
        p = tl.minimum(p, tl.where(visible, float("inf"), 0.0)[None, :])
    if HAS_DROPOUT:
        kept = philox.keep(head_key, rows[:, None], cols[None, :], drop_threshold)
        dp = tl.where(kept, dp * keep_scale, 0.0)
    ds = p * (dp - delta[:, None])
    return dot(ds.to(k.dtype), k, dq, PRECISION, TARGET)


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
    grad_o_ptr += (wide_batch * stride_gb + wide_head * stride_gh) * ALIGN
    k_ptr += (wide_batch * stride_kb + kv_head * stride_kh) * ALIGN
    v_ptr += (wide_batch * stride_vb + kv_head * stride_vh) * ALIGN
    stats_ptrs = stats_ptr + ((wide_batch * num_heads + head) * q_len + rows) * 2
    lse = tl.load(stats_ptrs, mask=rows >= 0, other=float("inf"))
    delta = tl.load(stats_ptrs + 1, mask=rows >= 0, other=0.0)
    q = load_rows(q_ptr, rows, stride_qn, rows >= 0, HEAD_DIM, BLOCK_D, ALIGN, False, TARGET)
    do = load_rows(grad_o_ptr, rows, stride_gn, rows >= 0, HEAD_DIM, BLOCK_D, ALIGN, False, TARGET)
    head_key = tl.zeros([], tl.uint32)
    spare = -1
    if HAS_KEY_MASK:
        key_mask_ptr += wide_batch * stride_mb
        spare = some_real_key(key_mask_ptr, cols_ptr, width, BLOCK_N)
        full = tl.where(spare < 0, 0, full)
        width = tl.where(spare < 0, 0, width)
    if HAS_DROPOUT:
        head_key = philox.head_key(seed_ptr, batch, head)

    qk_scale = scale * log_unit(q.dtype == tl.float32)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if full > 0:  # as in the forward kernel
        for start in tl.range(0, full, BLOCK_N):
            dq = _dq_step(
                dq, q, do, lse, delta, rows, k_ptr, v_ptr, key_mask_ptr, spare, cols_ptr + start,
                words_ptr, stride_kn, stride_vn, qk_scale, keep_scale, head_key, drop_threshold,
                False, HAS_KEY_MASK, HAS_DROPOUT, HEAD_DIM, HEIGHT, BLOCK_M, BLOCK_N, BLOCK_D,
                ALIGN, PRECISION, TARGET,
            )  # fmt: skip
    if width > full:
        for start in tl.range(full, width, BLOCK_N):
            dq = _dq_step(
                dq, q, do, lse, delta, rows, k_ptr, v_ptr, key_mask_ptr, spare, cols_ptr + start,
                words_ptr + (start - word_col) // 32 * HEIGHT, stride_kn, stride_vn, qk_scale,
                keep_scale, head_key, drop_threshold, True, HAS_KEY_MASK, HAS_DROPOUT, HEAD_DIM,
                HEIGHT, BLOCK_M, BLOCK_N, BLOCK_D, ALIGN, PRECISION, TARGET,
            )  # fmt: skip
    store_rows(
        dq * scale, dq_ptr, part_dq_ptr, rows, slots_ptr + row_start, slot_base, space, num_slots,
        wide_batch * q_len, num_heads, head, HEAD_DIM, BLOCK_M, BLOCK_D,
    )  # fmt: skip


@triton.jit
def _dkdv_step(
    dk,  # [BLOCK_M, BLOCK_D]
    dv,
    k,
    v,
    rows,
    visible,  # [BLOCK_M], with HAS_KEY_MASK
    q_ptr,
    grad_o_ptr,
    stats_ptr,
    cols_ptr,
    words_ptr,
    stride_qn,
    stride_gn,
    qk_scale,
    keep_scale,
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
    """Add what BLOCK_N gathered queries contribute to dK (without the scale) and dV."""
    cols = tl.load(cols_ptr + tl.arange(0, BLOCK_N))
    stats = tl.load(stats_ptr + cols.to(tl.int64)[:, None] * 2 + tl.arange(0, 2)[None, :])
    lse, delta = tl.split(stats)
    q = load_rows(q_ptr, cols, stride_qn, cols >= 0, HEAD_DIM, BLOCK_D, ALIGN, True, TARGET)
    do = load_rows(grad_o_ptr, cols, stride_gn, cols >= 0, HEAD_DIM, BLOCK_D, ALIGN, True, TARGET)
    s = dot(k, tl.trans(q), None, PRECISION, TARGET)  # [BLOCK_M keys, BLOCK_N queries]
    dp = dot(v, tl.trans(do), None, PRECISION, TARGET)
    p = exponential(s * qk_scale, lse[None, :], k.dtype == tl.float32)
    if HAS_WORDS:
        p = mask_by_words(p, words_ptr, 0.0, HEIGHT, BLOCK_M, BLOCK_N, TARGET)
    if HAS_KEY_MASK:
        p = tl.where(visible[:, None], p, 0.0)
    dropped = p
    if HAS_DROPOUT:
        kept = philox.keep(head_key, cols[None, :], rows[:, None], drop_threshold)
        dropped = tl.where(kept, p * keep_scale, 0.0)
        dp = tl.where(kept, dp * keep_scale, 0.0)
    dv = dot(dropped.to(do.dtype), do, dv, PRECISION, TARGET)
    ds = p * (dp - delta[None, :])  # not before: the two then share a place in shared memory
    dk = dot(ds.to(q.dtype), q, dk, PRECISION, TARGET)
    return dk, dv


@triton.jit(
    do_not_specialize=[
        *("stride_qb", "stride_qh", "stride_qn", "stride_kb", "stride_kh", "stride_kn"),
        *("stride_vb", "stride_vh", "stride_vn", "stride_gb", "stride_gh", "stride_gn"),
        *("stride_mb", "first_item", "num_items", "heads_per_item", "num_slots"),
        *("num_heads", "group_size", "q_len", "kv_len", "drop_threshold"),
    ]
)
def dkdv_kernel(
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H_kv, M, D]
    v_ptr,  # [B, H_kv, M, D]
    grad_o_ptr,  # [B, H, N, D]
    stats_ptr,  # fp32 [B, H, N, 2], from `delta_kernel`
    key_mask_ptr,  # int16 [B, M / 2], see `is_real`
    seed_ptr,  # int64 [1]
    dk_ptr,  # [B, M, H, D], one for each query head
    dv_ptr,  # [B, M, H, D]
    part_dk_ptr,  # fp32 [repeats, num_slots, D]
    part_dv_ptr,  # fp32 [repeats, num_slots, D]
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
    grad_o_ptr += (wide_batch * stride_gb + wide_head * stride_gh) * ALIGN
    k_ptr += (wide_batch * stride_kb + kv_head * stride_kh) * ALIGN
    v_ptr += (wide_batch * stride_vb + kv_head * stride_vh) * ALIGN
    stats_ptr += (wide_batch * num_heads + head) * q_len * 2
    visible = rows >= 0
    if HAS_KEY_MASK:
        key_mask_ptr += wide_batch * stride_mb
        visible = is_real(key_mask_ptr, rows, rows >= 0)
    k = load_rows(k_ptr, rows, stride_kn, visible, HEAD_DIM, BLOCK_D, ALIGN, False, TARGET)
    v = load_rows(v_ptr, rows, stride_vn, visible, HEAD_DIM, BLOCK_D, ALIGN, False, TARGET)
    head_key = tl.zeros([], tl.uint32)
    if HAS_DROPOUT:
        head_key = philox.head_key(seed_ptr, batch, head)

    qk_scale = scale * log_unit(k.dtype == tl.float32)
    dk = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if full > 0:  # as in the forward kernel
        for start in tl.range(0, full, BLOCK_N):
            dk, dv = _dkdv_step(
                dk, dv, k, v, rows, visible, q_ptr, grad_o_ptr, stats_ptr,
                cols_ptr + start, words_ptr, stride_qn, stride_gn, qk_scale, keep_scale, head_key,
                drop_threshold, False, HAS_KEY_MASK, HAS_DROPOUT, HEAD_DIM, HEIGHT, BLOCK_M,
                BLOCK_N, BLOCK_D, ALIGN, PRECISION, TARGET,
            )  # fmt: skip
    if width > full:
        for start in tl.range(full, width, BLOCK_N):
            dk, dv = _dkdv_step(
                dk, dv, k, v, rows, visible, q_ptr, grad_o_ptr, stats_ptr,
                cols_ptr + start, words_ptr + (start - word_col) // 32 * HEIGHT, stride_qn,
                stride_gn, qk_scale, keep_scale, head_key, drop_threshold, True, HAS_KEY_MASK,
                HAS_DROPOUT, HEAD_DIM, HEIGHT, BLOCK_M, BLOCK_N, BLOCK_D, ALIGN, PRECISION, TARGET,
            )  # fmt: skip
    slots_ptr += row_start
    store_rows(
        dk * scale, dk_ptr, part_dk_ptr, rows, slots_ptr, slot_base, space, num_slots,
        wide_batch * kv_len, num_heads, head, HEAD_DIM, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    store_rows(
        dv, dv_ptr, part_dv_ptr, rows, slots_ptr, slot_base, space, num_slots,
        wide_batch * kv_len, num_heads, head, HEAD_DIM, BLOCK_M, BLOCK_D,
    )  # fmt: skip
