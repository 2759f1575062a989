"""Outlines of tiles: which rows each tile has, and how many columns; not yet which columns.

The search for covers and the cost model work on these; `sparsebert.tiles.build` makes tiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from sparsebert.masks.bits import Int64Array
from sparsebert.tiles.format import HEIGHTS, TileSet, pad_columns

_SEEN = 1 << 24
"""Groups x columns that are counted at once."""


@dataclasses.dataclass(frozen=True)
class TileOutlines:
    """The outlines of tiles of one height.

    Attributes:
        rows: int32 [T, height], -1 where a slot is empty.
        width: int64 [T], columns of each tile, not padded.
    """

    rows: np.ndarray
    width: Int64Array

    @property
    def height(self) -> int:
        """Row slots of a tile."""
        return int(self.rows.shape[1])

    @property
    def real_rows(self) -> Int64Array:
        """Rows that are not empty slots, int64 [T]."""
        real: Int64Array = (self.rows >= 0).sum(axis=1)
        return real

    @property
    def padded(self) -> Int64Array:
        """Columns with padding, int64 [T]."""
        return pad_columns(self.width)


class Singles(NamedTuple):
    """How many entries stand alone, of one head.

    Attributes:
        entries: their number.
        columns: different columns among those of rows that run together, summed up: what has to be
            loaded for them. See `groups_of_rows`.
    """

    entries: int = 0
    columns: int = 0


NO_SINGLES = Singles()


def groups_of_rows(tiles: Iterable[TileOutlines], num_rows: int) -> Int64Array:
    """Which rows run their single entries together, int64 [num_rows]: equal numbers.

    They are the rows of a tile, of the first one that a row is in; and of those in none 16 that
    follow each other.
    """
    group = np.full(num_rows, -1, dtype=np.int64)
    first = 0
    for some in tiles:
        index, slot = np.nonzero(some.rows >= 0)
        rows = some.rows[index, slot]
        new = group[rows] < 0
        group[rows[new]] = first + index[new]
        first += len(some.rows)
    alone = np.flatnonzero(group < 0)
    group[alone] = first + np.arange(len(alone)) // min(HEIGHTS)
    return group


def singles_of_head(tiles: TileSet, head: int) -> Singles:
    """The single entries of a head, counted."""
    start = tiles.entry_start[head * tiles.num_rows : (head + 1) * tiles.num_rows + 1]
    cols = tiles.entry_cols[start[0] : start[-1]]
    if not len(cols):
        return NO_SINGLES
    groups = groups_of_rows(outlines_of_head(tiles, head), tiles.num_rows)
    group = np.repeat(groups, np.diff(start))
    order = np.argsort(group, kind="stable")
    group, cols = group[order], cols[order]
    columns, last = 0, int(group[-1]) + 1
    step = max(1, _SEEN // tiles.num_cols)
    for first in range(0, last, step):
        begin, end = np.searchsorted(group, [first, first + step])
        seen = np.zeros((step, tiles.num_cols), dtype=bool)
        seen[group[begin:end] - first, cols[begin:end]] = True
        columns += int(np.count_nonzero(seen))
    return Singles(len(cols), columns)


def outlines_of_head(tiles: TileSet, head: int) -> list[TileOutlines]:
    """The outlines of a head's tiles by height, tallest first."""
    found = []
    for height in np.unique(tiles.height[tiles.head == head])[::-1]:
        index = np.flatnonzero((tiles.head == head) & (tiles.height == height))
        slots = tiles.row_start[index][:, None] + np.arange(height)
        found.append(TileOutlines(tiles.rows[slots], tiles.width[index].astype(np.int64)))
    return found
