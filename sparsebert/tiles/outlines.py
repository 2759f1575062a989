"""Outlines of tiles: which rows each tile has, and how many columns; not yet which columns.

The search for covers and the cost model work on these; `sparsebert.tiles.build` makes tiles.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sparsebert.masks.bits import Int64Array
from sparsebert.tiles.format import TileSet, pad_columns


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


def outlines_of_head(tiles: TileSet, head: int) -> list[TileOutlines]:
    """The outlines of a head's tiles by height, tallest first."""
    found = []
    for height in np.unique(tiles.height[tiles.head == head])[::-1]:
        index = np.flatnonzero((tiles.head == head) & (tiles.height == height))
        slots = tiles.row_start[index][:, None] + np.arange(height)
        found.append(TileOutlines(tiles.rows[slots], tiles.width[index].astype(np.int64)))
    return found
