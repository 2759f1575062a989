"""What the search for a cover minimises: executed area, or time by the cost model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from sparsebert.compiler.cost.model import CostModel
from sparsebert.compiler.pieces import Piece, all_tiles
from sparsebert.tiles.format import COLUMN_CHUNK, HEIGHTS
from sparsebert.tiles.outlines import Singles

OBJECTIVES = ("time", "area")

_GPU_LIMITS = (512, 256)

Heights = tuple[int, ...]


class Pricing(Protocol):
    """An objective, and which tiles the search may use for it."""

    @property
    def height_choices(self) -> tuple[Heights, ...]:
        """Sets of tile heights, all heights first; a pass keeps to one of them."""

    @property
    def peel_heights(self) -> Heights:
        """Heights of the groups whose shared columns are peeled off."""

    @property
    def greedy_height(self) -> int:
        """Size of greedily grown groups."""

    @property
    def split_limits(self) -> tuple[int, ...]:
        """Widths to which wide tiles may be split."""

    @property
    def alike(self) -> bool:
        """Whether all pieces of a cover are to take their heights from the same set."""

    @property
    def chunk(self) -> int:
        """Columns by which a tile's price grows."""

    def tile(self, height: int, rows: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Cost of tiles of one height, given real rows [T] and padded columns [T]."""

    def peeled_tile(self, height: int, rows: np.ndarray, width: np.ndarray) -> np.ndarray:
        """The same with the cost of merging their rows with those of other tiles."""

    def total(self, pieces: Sequence[Piece]) -> float:
        """Cost of a cover whose tiles keep the whole machine busy."""

    def balanced_total(self, pieces: Sequence[Piece]) -> float:
        """The same, where a very long tile may keep the machine waiting."""


class Area:
    """Executed entries: row slots times padded columns."""

    height_choices: tuple[Heights, ...] = ((16, 32, 64),)
    peel_heights: Heights = (16, 64)
    greedy_height = 16
    split_limits: tuple[int, ...] = ()
    alike = False
    chunk = COLUMN_CHUNK

    def tile(self, height: int, rows: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Slots times columns."""
        return (height * width).astype(np.float64)

    peeled_tile = tile

    def total(self, pieces: Sequence[Piece]) -> float:
        """The sum over all tiles."""
        return float(sum(piece.cost for piece in pieces))

    balanced_total = total


class Time:
    """Forward time by the cost model, in microseconds."""

    height_choices: tuple[Heights, ...] = ((16, 32, 64, 128), (16,), (32,), (64,), (128,))
    peel_heights: Heights = (16, 64)
    greedy_height = 64

    def __init__(self, model: CostModel, q_len: int, kv_len: int) -> None:
        self._model = model
        self.alike = model.launches
        self.chunk = model.step or COLUMN_CHUNK
        self.split_limits = _GPU_LIMITS if model.launches else ()
        self._lengths = q_len, kv_len

    def tile(self, height: int, rows: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Time of each tile."""
        return self._model.tile_us(height, rows, width)

    def peeled_tile(self, height: int, rows: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Time of each tile and of merging all its rows."""
        forward = self._model.forward
        merge = forward.chain + forward.row if self._model.launches else forward.merge
        return self.tile(height, rows, width) + merge * rows

    def total(self, pieces: Sequence[Piece]) -> float:
        """Time of the whole call."""
        return self._model.cover_us(all_tiles(pieces), *self._lengths, balanced=True)

    def balanced_total(self, pieces: Sequence[Piece]) -> float:
        """The same, waiting for the longest tile."""
        return self._model.cover_us(all_tiles(pieces), *self._lengths)


class GroupPricing(Protocol):
    """An objective where tiles have 16 rows and entries may stand alone.

    Attributes:
        tile: each tile, beside its columns.
        single: each entry that stands alone.
        single_column: each column that single entries of rows that run together share, see
            `Singles`.
        merge: each row of a tile that is in another tile, too.
    """

    tile: float
    single: float
    single_column: float
    merge: float

    def column(self, rows: np.ndarray) -> np.ndarray:
        """Cost of one column of a tile with so many real rows, [T]."""

    def total(self, pieces: Sequence[Piece], singles: Singles) -> float:
        """Cost of a cover."""


class GroupArea:
    """Executed entries; those that stand alone count double.

    A tile computes the scores of a column at least twice as fast as one by one, so a column that
    most rows share belongs into it although it has some scores more.
    """

    tile, single, single_column, merge = 0.0, 2.0, 0.0, 0.0

    def column(self, rows: np.ndarray) -> np.ndarray:
        """All slots."""
        return np.full(len(rows), float(min(HEIGHTS)))

    def total(self, pieces: Sequence[Piece], singles: Singles) -> float:
        """The sum over tiles and single entries."""
        columns = sum(int(tiles.width.sum()) for tiles in all_tiles(pieces))
        return min(HEIGHTS) * columns + self.single * singles.entries


class GroupTime:
    """Forward time by the cost model, in microseconds."""

    def __init__(self, model: CostModel, q_len: int, kv_len: int) -> None:
        self._model = model
        self._lengths = q_len, kv_len
        cost = model.forward
        self.tile, self.merge = cost.tile, cost.merge
        self.single, self.single_column = cost.single, cost.single_column

    def column(self, rows: np.ndarray) -> np.ndarray:
        """Time of one column."""
        cost = self._model.forward
        price: np.ndarray = cost.column + cost.entry[min(HEIGHTS)] * rows
        return price

    def total(self, pieces: Sequence[Piece], singles: Singles) -> float:
        """Time of the whole call."""
        return self._model.cover_us(all_tiles(pieces), *self._lengths, singles=singles)
