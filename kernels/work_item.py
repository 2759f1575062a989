"""A program's work item: which tile, for which batch and head, and where its results go."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from . import layout
from .primitives import is_real, packed_ptrs

_ROW_START = tl.constexpr(layout.ROW_START)
_COL_START = tl.constexpr(layout.COL_START)
_WORD_START = tl.constexpr(layout.WORD_START)
_WORD_COL = tl.constexpr(layout.WORD_COL)
_FULL = tl.constexpr(layout.FULL)
_WIDTH = tl.constexpr(layout.WIDTH)
_HEAD = tl.constexpr(layout.HEAD)
_SLOT_BASE = tl.constexpr(layout.SLOT_BASE)
_ITEM_FIELDS = tl.constexpr(layout.ITEM_FIELDS)
_WORD_COLUMNS = tl.constexpr(layout.WORD_COLUMNS)


class WorkItem(NamedTuple):
    """What one program does: BLOCK_M rows of a tile, for one batch and head.

    Attributes:
        batch, head, kv_head: int64, for products with strides; the last is the key head's.
        repeat: which of the repetitions of the work list this is; each has scratch of its own.
        rows: int32 [BLOCK_M], positions; -1 for an empty slot.
        cols_ptr: the tile's gathered columns.
        full: how many of them every row attends to, in whole steps.
        width: how many there are.
        words_ptr: the rows' words, of columns from `word_col` on.
        word_col: the first column that has words.
        slots_ptr, row_start: where the rows' slots begin.
        slot_base: what to add to a slot; negative if no row of the tile has one.
    """

    batch: tl.tensor
    head: tl.tensor
    kv_head: tl.tensor
    repeat: tl.tensor
    rows: tl.tensor
    cols_ptr: tl.tensor
    full: tl.tensor
    width: tl.tensor
    words_ptr: tl.tensor
    word_col: tl.tensor
    slots_ptr: tl.tensor
    row_start: tl.tensor
    slot_base: tl.tensor


@triton.jit
def load_work_item(
    items_ptr,
    rows_ptr,
    slots_ptr,
    cols_ptr,
    words_ptr,
    first_item,
    num_items,
    heads_per_item,
    group_size,
    CONST: tl.constexpr,
):
    """This program's `WorkItem`.

    HEIGHT / BLOCK_M programs share the rows of an item. Programs of one batch and head are
    neighbours, so that they share its keys in the cache.
    """
    BLOCKS: tl.constexpr = CONST.HEIGHT // CONST.BLOCK_M
    program = tl.program_id(0)
    block = program % BLOCKS
    program = program // BLOCKS
    item_ptr = items_ptr + (first_item + program % num_items).to(tl.int64) * _ITEM_FIELDS
    repeat = program // num_items
    head = tl.load(item_ptr + _HEAD).to(tl.int32) + repeat % heads_per_item
    batch = repeat // heads_per_item
    row_start = tl.load(item_ptr + _ROW_START) + block * CONST.BLOCK_M
    cols_ptr += tl.load(item_ptr + _COL_START)
    words_ptr += tl.load(item_ptr + _WORD_START) + block * CONST.BLOCK_M
    word_col = tl.load(item_ptr + _WORD_COL).to(tl.int32)
    full = tl.load(item_ptr + _FULL).to(tl.int32) // CONST.BLOCK_N * CONST.BLOCK_N
    width = tl.load(item_ptr + _WIDTH).to(tl.int32)
    slot_base = tl.load(item_ptr + _SLOT_BASE)
    m = tl.arange(0, CONST.BLOCK_M)
    rows = tl.load(rows_ptr + row_start + m)
    return WorkItem(
        batch=batch.to(tl.int64),
        head=head.to(tl.int64),
        kv_head=(head // group_size).to(tl.int64),
        repeat=repeat,
        rows=rows,
        cols_ptr=cols_ptr,
        full=full,
        width=width,
        words_ptr=words_ptr,
        word_col=word_col,
        slots_ptr=slots_ptr,
        row_start=row_start,
        slot_base=slot_base,
    )


@triton.jit
def words_at(item, column, HEIGHT: tl.constexpr):
    """Where the words of a step begin, whose first column is `column`."""
    return item.words_ptr + (column - item.word_col) // _WORD_COLUMNS * HEIGHT


@triton.jit
def columns_with_real_keys(item, key_mask_ptr, CONST: tl.constexpr):
    """`full` and `width` of a tile over keys, both 0 if the key mask hides all of them.

    And one of the keys that it does not hide, see `Keys.substitute`; -1 if there is none.
    """
    full = item.full
    width = item.width
    substitute = -1
    if CONST.HAS_KEY_MASK:
        found = tl.full([CONST.BLOCK_N], -1, tl.int32)
        for start in tl.range(0, width, CONST.BLOCK_N):
            keys = tl.load(item.cols_ptr + start + tl.arange(0, CONST.BLOCK_N))
            found = tl.maximum(found, tl.where(is_real(key_mask_ptr, keys, None), keys, -1))
        substitute = tl.max(found, 0)
        full = tl.where(substitute < 0, 0, full)
        width = tl.where(substitute < 0, 0, width)
    return full, width, substitute


@triton.jit
def store_rows(
    x,  # [BLOCK_M, BLOCK_D]
    out_ptr,  # [B, length, H, D]
    part_ptr,  # fp32 [repeats, num_slots, D]
    item,
    length,
    num_heads,
    num_slots,
    CONST: tl.constexpr,
):
    """Write a tile's result: to `out` where it is final, else to scratch, for `merge.py`.

    Returns which rows are final, and the places of the others in scratch (valid if not negative).
    """
    slots_ptr = item.slots_ptr + item.row_start
    first_place = item.batch * length
    in_head = tl.arange(0, CONST.BLOCK_D)[None, :] < CONST.HEAD_DIM
    part = tl.full([CONST.BLOCK_M], -1, tl.int64)
    if item.slot_base >= 0:
        slots = tl.load(slots_ptr + tl.arange(0, CONST.BLOCK_M))
        in_scratch = slots >= 0
        part = item.repeat.to(tl.int64) * num_slots + item.slot_base + slots
        part = tl.where(in_scratch, part, -1)
        part_ptrs = packed_ptrs(part_ptr, part, CONST.HEAD_DIM, CONST.BLOCK_D)
        tl.store(part_ptrs, x, mask=(part >= 0)[:, None] & in_head)
    final = (item.rows >= 0) & (part < 0)
    place = (first_place + item.rows) * num_heads + item.head
    out_ptrs = packed_ptrs(out_ptr, place, CONST.HEAD_DIM, CONST.BLOCK_D)
    tl.store(out_ptrs, x.to(out_ptr.dtype.element_ty), mask=final[:, None] & in_head)
    return final, part
