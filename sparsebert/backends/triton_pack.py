"""From a plan's tiles to the arrays that the kernels read.

The TileSet keeps one bit word per *column*; a kernel wants one word per *row*: in the accumulator
of a tensor-core product a thread owns two rows and many columns, so one 32-bit word of a row
serves eight of its elements. `pack_tiles` turns the words round, pads column lists to whole
chunks, and works out which rows several tiles cover.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from sparsebert.kernels.layout import (
    COL_START,
    COLUMN_PAD,
    FULL,
    HEAD,
    ITEM_FIELDS,
    PACKED_HEIGHTS,
    ROW_START,
    SLOT_BASE,
    WIDTH,
    WORD_COL,
    WORD_COLUMNS,
    WORD_ORDER,
    WORD_START,
)
from sparsebert.kernels.program import KernelProgram, Side
from sparsebert.tiles.format import TileSet

_UNPACKED_LIMIT = 1 << 26  # bytes of unpacked bits held at once


@dataclasses.dataclass(frozen=True)
class PackedTiles:
    """All work of one direction of a plan (see `pack_tiles`).

    Attributes:
        items: int64 [W, 8], one work item (a tile run for one head) per row: where its rows,
            columns and words begin; the first column that has words; how many leading columns
            all rows attend to; the width of the list without padding; the head; and what to add
            to `slots` for this head, -1 if every row of the tile is covered by it alone.
        counts: work items of each of `PACKED_HEIGHTS`; the items are sorted so.
        rows: int32, the row of each slot of a tile; -1 for an empty one, and where the tile has
            no entry of the row.
        slots: int32, beside `rows`: where a row that several tiles cover leaves its partial
            result; -1 for a row that is covered once.
        cols: int32, column lists padded to `COLUMN_PAD` by repeating the last column.
        words: int32, for each `WORD_COLUMNS` columns from WORD_COL on one word per row:
            [columns / 32, height] a tile, bits in the order of `WORD_ORDER`.
        merges: int32 [R, 4], the rows that are not covered exactly once, those with the most
            partial results first: (head, row, first partial result, how many).
        num_slots: partial results of all heads together.
        per_head: the heads are listed; else one list (head 0) serves every head.
    """

    items: np.ndarray
    counts: tuple[int, ...]
    rows: np.ndarray
    slots: np.ndarray
    cols: np.ndarray
    words: np.ndarray
    merges: np.ndarray
    num_slots: int
    per_head: bool


def pack_tiles(tiles: TileSet, head_map: np.ndarray) -> PackedTiles:
    """Lay out `tiles` for the kernels; `head_map` says which distinct head each head uses."""
    per_head = len(np.unique(head_map)) > 1
    heads = head_map if per_head else head_map[:1]
    cols, col_start = _pad_columns(tiles)
    words, word_start, word_col, units = _row_words(tiles)
    rows = _rows_in_use(tiles, words, word_start, units)
    slots, slot_count, first_slot = _partial_slots(tiles, rows)

    # Every head that uses a tile gets a work item; the tile's arrays are shared.
    slots_of_head = slot_count.sum(axis=1)[heads]
    slot_base = np.cumsum(slots_of_head) - slots_of_head
    tile_of_slot = np.repeat(np.arange(tiles.num_tiles), np.diff(tiles.row_start))
    partial = np.bincount(tile_of_slot[slots >= 0], minlength=tiles.num_tiles) > 0
    users = [np.flatnonzero(heads == u) for u in range(tiles.num_heads)]
    tile = np.repeat(np.arange(tiles.num_tiles), [len(users[u]) for u in tiles.head])
    head = np.concatenate([users[u] for u in tiles.head]) if len(tile) else tile
    items = np.zeros((len(tile), ITEM_FIELDS), dtype=np.int64)
    items[:, ROW_START] = tiles.row_start[tile]
    items[:, COL_START] = col_start[tile]
    items[:, WORD_START] = word_start[tile]
    items[:, WORD_COL] = word_col[tile]
    items[:, FULL] = tiles.full[tile]
    items[:, WIDTH] = tiles.width[tile]
    items[:, HEAD] = head
    items[:, SLOT_BASE] = np.where(partial[tile], slot_base[head] if len(tile) else 0, -1)
    height = tiles.height[tile]
    return PackedTiles(
        items=items,
        counts=tuple(int((height == h).sum()) for h in PACKED_HEIGHTS),
        rows=rows,
        slots=slots,
        cols=cols,
        words=words,
        merges=_merge_list(heads, slot_count, first_slot, slot_base),
        num_slots=int(slots_of_head.sum()),
        per_head=per_head,
    )


def pack_program(queries: PackedTiles, keys: PackedTiles) -> KernelProgram:
    """A program from the packed tiles of both directions, on the CPU."""
    return KernelProgram(queries.per_head, _side(queries), _side(keys))


def _side(packed: PackedTiles) -> Side:
    arrays = packed.items, packed.rows, packed.slots, packed.cols, packed.words, packed.merges
    tensors = (torch.from_numpy(array) for array in arrays)
    return Side(*tensors, num_slots=packed.num_slots, counts=packed.counts)


def _rows_in_use(
    tiles: TileSet, words: np.ndarray, word_start: np.ndarray, units: np.ndarray
) -> np.ndarray:
    """The rows of all slots, without those that have no entry in their tile.

    A key row that attends to nothing may hold NaN, and should not even be loaded.
    """
    rows = tiles.rows.astype(np.int32)
    for tile in np.flatnonzero(tiles.full == 0):  # else every row has entries
        height = int(tiles.height[tile])
        begin, end = word_start[tile], word_start[tile] + units[tile] * height
        used = np.bitwise_or.reduce(words[begin:end].reshape(-1, height), axis=0) != 0
        slots = slice(tiles.row_start[tile], tiles.row_start[tile + 1])
        rows[slots] = np.where(used, rows[slots], -1)
    return rows


def _partial_slots(tiles: TileSet, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number the partial results of each distinct head, those of a row next to each other.

    Returns the number for each row slot (-1 where the row is covered once), and for each distinct
    head and row how many partial results it has and the first of them. A count of -1 marks a row
    that no tile covers: it has no partial result, but has to be written.
    """
    place = np.repeat(tiles.head.astype(np.int64), np.diff(tiles.row_start)) * tiles.num_rows
    used = np.flatnonzero(rows >= 0)
    place = place[used] + rows[used]
    total = tiles.num_heads * tiles.num_rows
    covered = np.bincount(place, minlength=total).reshape(tiles.num_heads, tiles.num_rows)
    count = np.where(covered > 1, covered, 0)
    first = (np.cumsum(count, axis=1) - count).astype(np.int64)

    slots = np.full(len(rows), -1, dtype=np.int32)
    order = np.argsort(place, kind="stable")  # a row's partial results in the order of its tiles
    ordered = place[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    several = count.reshape(-1)[ordered] > 0
    slots[used[order[several]]] = first.reshape(-1)[ordered[several]] + rank[several]
    return slots, count, np.where(covered == 0, -1, first)


def _merge_list(
    heads: np.ndarray, count: np.ndarray, first: np.ndarray, slot_base: np.ndarray
) -> np.ndarray:
    head, row = np.nonzero((count[heads] > 0) | (first[heads] < 0))
    number = count[heads][head, row]
    start = np.maximum(first[heads][head, row], 0) + slot_base[head]
    order = np.argsort(-number, kind="stable")
    return np.stack([head, row, start, number], axis=1)[order].astype(np.int32)


def _pad_columns(tiles: TileSet) -> tuple[np.ndarray, np.ndarray]:
    """Column lists padded to `COLUMN_PAD`, and where each begins."""
    width = tiles.width.astype(np.int64)
    padded = -(-width // COLUMN_PAD) * COLUMN_PAD
    start = np.cumsum(padded) - padded
    owner = np.repeat(np.arange(tiles.num_tiles), padded)
    rank = np.arange(len(owner)) - start[owner]
    cols = tiles.cols[tiles.col_start[owner] + np.minimum(rank, width[owner] - 1)]
    return cols.astype(np.int32), start


def _row_words(tiles: TileSet) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The bit words row by row.

    Also returns where each tile's words begin, its first column with words, and how many words
    each of its rows has. A kernel may take the full columns in steps of any size up to
    `COLUMN_PAD`, so words begin at a multiple of that, with ones for the full columns left over.
    """
    width = tiles.width.astype(np.int64)
    first = tiles.full // COLUMN_PAD * COLUMN_PAD
    units = (-(-width // COLUMN_PAD) * COLUMN_PAD - first) // WORD_COLUMNS
    sizes = units * tiles.height
    start = np.cumsum(sizes) - sizes
    words = np.zeros(int(sizes.sum()), dtype=np.int32)
    for height in PACKED_HEIGHTS:
        members = np.flatnonzero(tiles.height == height)
        step = max(1, _UNPACKED_LIMIT // (height * int(width.max(initial=1))))
        for part in np.array_split(members, -(-len(members) // step) or 1):
            if len(part) and units[part].sum():
                # Tiles of one height are neighbours in the TileSet, so their words are too.
                begin = start[part[0]]
                words[begin : begin + sizes[part].sum()] = _turn_words(
                    tiles, part, height, first[part], units[part]
                )
    return words, start, first, units


def _turn_words(
    tiles: TileSet, part: np.ndarray, height: int, first: np.ndarray, units: np.ndarray
) -> np.ndarray:
    lines = units * WORD_COLUMNS  # columns with words, of each tile
    line_start = np.cumsum(lines) - lines
    bits = np.zeros((int(lines.sum()), height), dtype=np.uint8)

    words = tiles.words[tiles.word_start[part[0]] : tiles.word_start[part[-1] + 1]]
    tested = tiles.padded_width[part] - tiles.full[part]
    owner = np.repeat(np.arange(len(part)), tested)
    rank = np.arange(len(owner)) - (np.cumsum(tested) - tested)[owner]
    place = line_start[owner] + tiles.full[part][owner] - first[owner] + rank
    unpacked = np.unpackbits(words.reshape(-1, height // 8), axis=1, bitorder="little")
    bits[place] = unpacked

    left_over = tiles.full[part] - first  # full columns that share a step with tested ones
    owner = np.repeat(np.arange(len(part)), left_over)
    rank = np.arange(len(owner)) - (np.cumsum(left_over) - left_over)[owner]
    row_start = tiles.row_start[part]
    is_row = tiles.rows[row_start[:, None] + np.arange(height)] >= 0
    bits[line_start[owner] + rank] = is_row[owner]

    by_row = bits.reshape(-1, WORD_COLUMNS, height)[:, list(WORD_ORDER)].transpose(0, 2, 1)
    packed = np.packbits(by_row, axis=-1, bitorder="little")  # [units, height, 4]
    return np.ascontiguousarray(packed).view("<i4").reshape(-1)
