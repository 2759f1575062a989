"""Outlines of tiles: which rows each tile has, and how many columns; not yet which columns.

The search for covers and the cost model work on these; `sparsebert.tiles.build` makes tiles.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from sparsebert.masks.bits import Int64Array
from sparsebert.tiles.format import TileSet, pad_columns

SINGLES_ROWS = 16
"""Rows whose single entries are taken to share what they load."""


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
        columns: different columns among those of 16 rows that follow each other, summed up: what
            has to be loaded for them.
    """

    entries: int = 0
    columns: int = 0


NO_SINGLES = Singles()


def singles_of_head(tiles: TileSet, head: int) -> Singles:
    """The single entries of a head, counted."""
    first = tiles.entry_start[head * tiles.num_rows : (head + 1) * tiles.num_rows : SINGLES_ROWS]
    edges = np.append(first, tiles.entry_start[(head + 1) * tiles.num_rows])
    cols = tiles.entry_cols[edges[0] : edges[-1]]
    if not len(cols):
        return NO_SINGLES
    block = np.repeat(np.arange(len(first)), np.diff(edges))
    seen = np.zeros((len(first), tiles.num_cols), dtype=bool)
    seen[block, cols] = True
    return Singles(len(cols), int(np.count_nonzero(seen)))


def outlines_of_head(tiles: TileSet, head: int) -> list[TileOutlines]:
    """The outlines of a head's tiles by height, tallest first."""
    found = []
    for height in np.unique(tiles.height[tiles.head == head])[::-1]:
        index = np.flatnonzero((tiles.head == head) & (tiles.height == height))
        slots = tiles.row_start[index][:, None] + np.arange(height)
        found.append(TileOutlines(tiles.rows[slots], tiles.width[index].astype(np.int64)))
    return found
