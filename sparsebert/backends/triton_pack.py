"""From a plan's tiles to the arrays that the kernels read.

The TileSet keeps one bit word per *column*; a kernel wants one word per *row*: in the accumulator
of a tensor-core product a thread owns two rows and many columns, so one 32-bit word of a row
serves eight of its elements. `pack_tiles` turns the words round, pads column lists to whole
chunks, and works out which rows several tiles cover.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from sparsebert.backends.triton_stages import Covering, cover_rows
from sparsebert.kernels.layout import (
    COL_START,
    COL_UNIT,
    COLUMN_PAD,
    CONTINUED,
    CONTINUES,
    FULL,
    HEAD,
    HEADER_FIELDS,
    LOOK_AHEAD,
    PACKED_HEIGHTS,
    RECORD_UNIT,
    SLOT_BASE,
    WIDTH,
    WORD_COL,
    WORD_COLUMNS,
    WORD_ORDER,
    WORD_START,
    WORD_UNIT,
    WORDS_AHEAD,
)
from sparsebert.kernels.program import Group, KernelProgram, Side
from sparsebert.tiles.format import TileSet

_UNPACKED_LIMIT = 1 << 26  # bytes of unpacked bits held at once
_LONG = 1.5  # a tile is long from so many times the mean of its launch on


def pack_tiles(tiles: TileSet, head_map: np.ndarray) -> Side:
    """Lay out `tiles` for the kernels, on the CPU.

    `head_map` says which distinct head each head uses; if it is the same for all, one list of
    work, of head 0, serves them all. `sparsebert.kernels.layout` says what a record holds.

    - `cols`: column lists padded to `COLUMN_PAD` by repeating the last column, and columns to
      look ahead to behind the last list.
    - `words`: for each `WORD_COLUMNS` columns from WORD_COL on one word per row: [columns / 32,
      height] a tile, bits in the order of `WORD_ORDER`.
    - A row's slot holds the row, or -1 where it is empty or the tile has no entry of the row.
    - `merges`: those with the most partial results first: (head, row, first partial result, how
      many). Rows that no tile covers are among them, with none.
    """
    per_head = len(np.unique(head_map)) > 1
    heads = head_map if per_head else head_map[:1]
    cols, col_start = _pad_columns(tiles)
    words, word_start, word_col = _row_words(tiles)
    covering = cover_rows(tiles)

    # Every head that uses a tile gets a work item; the tile's arrays are shared.
    slots_of_head = covering.partials.sum(axis=1)[heads]
    slot_base = np.cumsum(slots_of_head) - slots_of_head
    users = [np.flatnonzero(heads == u) for u in range(tiles.num_heads)]
    tile = np.repeat(np.arange(tiles.num_tiles), [len(users[u]) for u in tiles.head])
    head = np.concatenate([users[u] for u in tiles.head]) if len(tile) else tile
    header = np.zeros((len(tile), HEADER_FIELDS), dtype=np.int32)
    header[:, COL_START] = col_start[tile] // COL_UNIT
    header[:, WORD_START] = word_start[tile] // WORD_UNIT
    header[:, WORD_COL] = word_col[tile]
    header[:, FULL] = tiles.full[tile]
    header[:, WIDTH] = tiles.width[tile]
    header[:, HEAD] = head
    in_scratch = covering.tiles_with(covering.slots >= 0)
    header[:, SLOT_BASE] = np.where(in_scratch[tile], slot_base[head] if len(tile) else 0, -1)
    goes_on = covering.tiles_with(covering.slots == CONTINUED)
    header[:, CONTINUES] = goes_on[tile]

    records: list[np.ndarray] = []
    groups: list[Group] = []
    first = 0
    for stage, height in itertools.product((0, 1), PACKED_HEIGHTS):
        chosen = np.flatnonzero((covering.stage[tile] == stage) & (tiles.height[tile] == height))
        if len(chosen):
            chosen = chosen[_in_order(tiles, tile[chosen], head[chosen])]
            slots = tiles.row_start[tile[chosen]][:, None] + np.arange(height)
            parts = header[chosen], covering.rows[slots], covering.slots[slots]
            records.append(np.concatenate(parts, axis=1).reshape(-1))
            groups.append(Group(height, first, len(chosen)))
            first += records[-1].size // RECORD_UNIT
    merges = _merge_list(heads, covering, slot_base)
    arrays = np.concatenate([*records, np.zeros(0, np.int32)]), cols, words, merges
    return Side(
        *map(torch.from_numpy, arrays),
        num_slots=int(slots_of_head.sum()),
        chained=bool(goes_on.any()),
        groups=tuple(groups),
    )


def pack_program(queries: TileSet, keys: TileSet, head_map: np.ndarray) -> KernelProgram:
    """A program from the tiles of both directions, on the CPU; see `pack_tiles`."""
    per_head = len(np.unique(head_map)) > 1
    return KernelProgram(per_head, pack_tiles(queries, head_map), pack_tiles(keys, head_map))


def _in_order(tiles: TileSet, tile: np.ndarray, head: np.ndarray) -> np.ndarray:
    """The order of the work items of one launch: from head to head.

    In a head the long tiles come first, lest the machine wait for them at the end, and the others
    go from row to row. Those that run at the same time then read the same keys. Long tiles of all
    heads before all others would read all keys once more.
    """
    width = tiles.width[tile]
    is_long = width > _LONG * width.mean()
    return np.lexsort((tiles.rows[tiles.row_start[tile]], ~is_long, head))


def _merge_list(heads: np.ndarray, covering: Covering, slot_base: np.ndarray) -> np.ndarray:
    count, first = covering.partials[heads], covering.first[heads]
    head, row = np.nonzero((count > 0) | ~covering.covered[heads])
    number = count[head, row]
    start = first[head, row] + slot_base[head]
    order = np.argsort(-number, kind="stable")
    return np.stack([head, row, start, number], axis=1)[order].astype(np.int32)


def _pad_columns(tiles: TileSet) -> tuple[np.ndarray, np.ndarray]:
    """Column lists padded to `COLUMN_PAD`, and where each begins; then zeros to look ahead to."""
    width = tiles.width.astype(np.int64)
    padded = -(-width // COLUMN_PAD) * COLUMN_PAD
    start = np.cumsum(padded) - padded
    owner = np.repeat(np.arange(tiles.num_tiles), padded)
    rank = np.arange(len(owner)) - start[owner]
    cols = tiles.cols[tiles.col_start[owner] + np.minimum(rank, width[owner] - 1)]
    return np.pad(cols.astype(np.int32), (0, LOOK_AHEAD)), start


def _row_words(tiles: TileSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bit words row by row.

    Also returns where each tile's words begin, and its first column with words. A kernel may take
    the full columns in steps of any size up to `COLUMN_PAD`, so words begin at a multiple of that,
    with ones for the full columns left over.
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
    return np.pad(words, (0, WORDS_AHEAD)), start, first


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
