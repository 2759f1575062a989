"""A program's work item: which tile, for which batch and head, and where its results go."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from . import layout
from .primitives import load_key_mask, load_words, packed_ptrs, real_of_pairs

_COL_START = tl.constexpr(layout.COL_START)
_WORD_START = tl.constexpr(layout.WORD_START)
_WORD_COL = tl.constexpr(layout.WORD_COL)
_FULL = tl.constexpr(layout.FULL)
_WIDTH = tl.constexpr(layout.WIDTH)
_HEAD = tl.constexpr(layout.HEAD)
_SLOT_BASE = tl.constexpr(layout.SLOT_BASE)
_CONTINUES = tl.constexpr(layout.CONTINUES)
_HEADER_FIELDS = tl.constexpr(layout.HEADER_FIELDS)
_RECORD_UNIT = tl.constexpr(layout.RECORD_UNIT)
_COL_UNIT = tl.constexpr(layout.COL_UNIT)
_WORD_UNIT = tl.constexpr(layout.WORD_UNIT)
_CONTINUED = tl.constexpr(layout.CONTINUED)
_WORD_COLUMNS = tl.constexpr(layout.WORD_COLUMNS)


class WorkItem(NamedTuple):
    """What one program does: BLOCK_M rows of a tile, for one batch and head.

    Attributes:
        batch, head, kv_head: int32; the last is the key head's.
        repeat: which of the repetitions of the work list this is; each has scratch of its own.
        rows: int32 [BLOCK_M], positions; -1 for an empty slot.
        rows_ptr: where they are, for `load_slots`.
        slot_base: what to add to a place in scratch; negative if no row of the tile has one.
        continues: whether the tile goes on from what an earlier one wrote of some of its rows.
        cols_ptr: the tile's gathered columns.
        first_cols: int32 [BLOCK_N], those of its first step.
        full: how many of them every row attends to, in whole steps.
        width: how many there are.
        words_ptr: the rows' words, of columns from `word_col` on.
        word_col: the first column that has words.
    """

    batch: tl.tensor
    head: tl.tensor
    kv_head: tl.tensor
    repeat: tl.tensor
    rows: tl.tensor
    rows_ptr: tl.tensor
    slot_base: tl.tensor
    continues: tl.tensor
    cols_ptr: tl.tensor
    first_cols: tl.tensor
    full: tl.tensor
    width: tl.tensor
    words_ptr: tl.tensor
    word_col: tl.tensor


@triton.jit
def load_work_item(
    records_ptr,
    cols_ptr,
    words_ptr,
    first_record,
    first_batch,
    group_size,
    CONST: tl.constexpr,
):
    """This program's `WorkItem`.

    The grid is (items, heads that share them, batch), and no program divides to find its place;
    HEIGHT / BLOCK_M programs share the rows of an item. Programs of one batch and head are
    neighbours, so that they share its keys in the cache.
    """
    BLOCKS: tl.constexpr = CONST.HEIGHT // CONST.BLOCK_M
    RECORD: tl.constexpr = _HEADER_FIELDS + 2 * CONST.HEIGHT
    program = tl.program_id(0)
    block = program % BLOCKS
    record_ptr = records_ptr + first_record.to(tl.int64) * _RECORD_UNIT
    record_ptr += (program // BLOCKS).to(tl.int64) * RECORD
    head = tl.load(record_ptr + _HEAD) + tl.program_id(1)
    batch = tl.program_id(2) + first_batch
    rows_ptr = record_ptr + _HEADER_FIELDS + block * CONST.BLOCK_M + tl.arange(0, CONST.BLOCK_M)
    cols_ptr += tl.load(record_ptr + _COL_START).to(tl.int64) * _COL_UNIT
    words_ptr += tl.load(record_ptr + _WORD_START).to(tl.int64) * _WORD_UNIT
    return WorkItem(
        batch=batch,
        head=head,
        kv_head=head // group_size,
        repeat=batch * tl.num_programs(1) + tl.program_id(1),
        rows=tl.load(rows_ptr),
        rows_ptr=rows_ptr,
        slot_base=tl.load(record_ptr + _SLOT_BASE),
        continues=tl.load(record_ptr + _CONTINUES),
        cols_ptr=cols_ptr,
        # Asked for before the tile's own rows: else the gathered rows would wait for these, too.
        first_cols=tl.load(cols_ptr + tl.arange(0, CONST.BLOCK_N)),
        full=tl.load(record_ptr + _FULL) // CONST.BLOCK_N * CONST.BLOCK_N,
        width=tl.load(record_ptr + _WIDTH),
        words_ptr=words_ptr + block * CONST.BLOCK_M,
        word_col=tl.load(record_ptr + _WORD_COL),
    )


@triton.jit
def words_at(item, start, CONST: tl.constexpr):
    """The bit words of the step that begins at column `start`.

    Loops load them a step ahead, like columns, and carry them in registers: in shared memory,
    where Triton would put them, there is room for a program more without them.
    """
    offset = (start - item.word_col) // _WORD_COLUMNS * CONST.HEIGHT
    return load_words(item.words_ptr + offset, CONST)


@triton.jit
def load_cols(item, first, CONST: tl.constexpr):
    """BLOCK_N gathered columns, from the one numbered `first` on."""
    return tl.load(item.cols_ptr + first + tl.arange(0, CONST.BLOCK_N))


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
            keys = load_cols(item, start, CONST)
            is_real = real_of_pairs(load_key_mask(key_mask_ptr, keys), keys)
            found = tl.maximum(found, tl.where(is_real, keys, -1))
        substitute = tl.max(found, 0)
        full = tl.where(substitute < 0, 0, full)
        width = tl.where(substitute < 0, 0, width)
    return full, width, substitute


@triton.jit
def first_step(item, key_mask_ptr, start, cols, CONST: tl.constexpr):
    """What a loop over keys begins with at column `start`, beside `cols`: `pairs` and `ahead`.

    The pairs of the key mask that the columns are in, and the columns of the next step. A loop
    carries all three, so that no step waits for an index or a bit of its own: Triton then sees
    loads of keys that depend on no load of the same step, and starts them steps ahead. Without a
    key mask only the columns count; the rest is the same once more.
    """
    pairs = cols
    ahead = cols
    if CONST.HAS_KEY_MASK:
        pairs = load_key_mask(key_mask_ptr, cols)
        ahead = load_cols(item, start + CONST.BLOCK_N, CONST)
    return pairs, ahead


@triton.jit
def next_step(item, key_mask_ptr, start, ahead, CONST: tl.constexpr):
    """`cols`, `pairs` and `ahead` for the step after the one that begins at column `start`.

    Columns are loaded again although `ahead` has them: Triton does not pipeline a loop that hands
    on what it was handed.
    """
    cols = load_cols(item, start + CONST.BLOCK_N, CONST)
    pairs = cols
    if CONST.HAS_KEY_MASK:
        pairs = load_key_mask(key_mask_ptr, ahead)
        ahead = load_cols(item, start + 2 * CONST.BLOCK_N, CONST)
    else:
        ahead = cols
    return cols, pairs, ahead


@triton.jit
def load_slots(item, CONST: tl.constexpr):
    """An item's rows, and what becomes of their results (see `layout`), int32 [BLOCK_M].

    Loaded where they are needed: kept over the loops they would take registers there.
    """
    return tl.load(item.rows_ptr), tl.load(item.rows_ptr + CONST.HEIGHT)


@triton.jit
def packed_rows(x_ptr, item, rows, length, num_heads, CONST: tl.constexpr):
    """Where rows of an item's head are in a tensor [B, length, H, D]: [BLOCK_M, BLOCK_D]."""
    place = (item.batch.to(tl.int64) * length + rows) * num_heads + item.head
    return packed_ptrs(x_ptr, place, CONST.HEAD_DIM, CONST.BLOCK_D)


@triton.jit
def load_earlier(out_ptr, item, length, num_heads, CONST: tl.constexpr):
    """What an earlier tile wrote of the rows that go on from there, fp32; 0 for the others."""
    rows, slots = load_slots(item, CONST)
    pointers = packed_rows(out_ptr, item, rows, length, num_heads, CONST)
    in_head = tl.arange(0, CONST.BLOCK_D)[None, :] < CONST.HEAD_DIM
    goes_on = slots == _CONTINUED
    return tl.load(pointers, mask=goes_on[:, None] & in_head, other=0.0).to(tl.float32)


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
    """Write a tile's result: to `out` where no other tile has to be merged with it, else to
    scratch, for `merge.py`.

    Returns the rows, which of them are in `out`, and the places of the others in scratch (valid
    if not negative).
    """
    in_head = tl.arange(0, CONST.BLOCK_D)[None, :] < CONST.HEAD_DIM
    rows, slots = load_slots(item, CONST)
    part = tl.full([CONST.BLOCK_M], -1, tl.int64)
    if item.slot_base >= 0:
        part = item.repeat.to(tl.int64) * num_slots + item.slot_base + (slots >> 1)
        part = tl.where(slots >= 0, part, -1)
        part_ptrs = packed_ptrs(part_ptr, part, CONST.HEAD_DIM, CONST.BLOCK_D)
        tl.store(part_ptrs, x, mask=(part >= 0)[:, None] & in_head)
    written = (rows >= 0) & (slots < 0)
    out_ptrs = packed_rows(out_ptr, item, rows, length, num_heads, CONST)
    tl.store(out_ptrs, x.to(out_ptr.dtype.element_ty), mask=written[:, None] & in_head)
    return rows, written, part
