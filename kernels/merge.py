"""Rows that no tile covers, or several: the second, deterministic pass.

A row's partial results lie next to each other in scratch. The forward pass combines them through
their LSEs, o = sum_i exp(lse_i - lse) o_i, which is exact; gradients just add up. A row without
any partial result gets zeros, and an LSE of -inf.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import layout
from .primitives import packed_ptrs
from .softmax import exponential, finite

_HEAD = tl.constexpr(layout.MERGE_HEAD)
_ROW = tl.constexpr(layout.MERGE_ROW)
_FIRST = tl.constexpr(layout.MERGE_FIRST)
_COUNT = tl.constexpr(layout.MERGE_COUNT)
_FIELDS = tl.constexpr(layout.MERGE_FIELDS)


@triton.jit(
    do_not_specialize=["num_merges", "heads_per_item", "num_slots", "num_heads", "num_rows"]
)
def merge_kernel(
    part_ptr,  # fp32 [repeats, num_slots, D]
    part_lse_ptr,  # fp32 [repeats, num_slots]; with HAS_LSE
    out_ptr,  # [B, num_rows, H, D]
    lse_ptr,  # fp32 [B, H, num_rows]; with HAS_LSE
    merges_ptr,  # int32 [num_merges, 4]: head, row, first partial result, how many
    num_merges,
    heads_per_item,
    num_slots,
    num_heads,
    num_rows,
    HAS_LSE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks = tl.cdiv(num_merges, BLOCK_R)
    program = tl.program_id(0)
    repeat = (program // blocks).to(tl.int64)
    entry = (program % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    valid = entry < num_merges
    entry_ptrs = merges_ptr + entry.to(tl.int64) * _FIELDS
    head = tl.load(entry_ptrs + _HEAD, mask=valid, other=0) + repeat % heads_per_item
    row = tl.load(entry_ptrs + _ROW, mask=valid, other=0)
    first = tl.load(entry_ptrs + _FIRST, mask=valid, other=0)
    count = tl.load(entry_ptrs + _COUNT, mask=valid, other=0)
    in_head = (tl.arange(0, BLOCK_D) < HEAD_DIM)[None, :]

    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    maximum = tl.full([BLOCK_R], -float("inf"), tl.float32)
    for i in tl.range(0, tl.max(count, 0)):
        has = i < count
        part = repeat * num_slots + first + i
        piece_ptrs = packed_ptrs(part_ptr, part, HEAD_DIM, BLOCK_D)
        piece = tl.load(piece_ptrs, mask=has[:, None] & in_head, other=0.0)
        if HAS_LSE:
            lse = tl.load(part_lse_ptr + part, mask=has, other=-float("inf"))
            new_maximum = tl.maximum(maximum, lse)
            safe = finite(new_maximum)
            shrink = exponential(maximum, safe, True)
            weight = exponential(lse, safe, True)
            acc = acc * shrink[:, None] + piece * weight[:, None]
            total = total * shrink + weight
            maximum = new_maximum
        else:
            acc += piece

    batch = repeat // heads_per_item
    if HAS_LSE:
        dead = total == 0.0
        safe_total = tl.where(dead, 1.0, total)
        acc = acc / safe_total[:, None]
        lse = tl.where(dead, -float("inf"), maximum + tl.log(safe_total))
        tl.store(lse_ptr + (batch * num_heads + head) * num_rows + row, lse, mask=valid)
    place = (batch * num_rows + row) * num_heads + head
    out_ptrs = packed_ptrs(out_ptr, place, HEAD_DIM, BLOCK_D)
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=valid[:, None] & in_head)
