"""Which tiles the torch backend runs together, as one batch of equal shape.

Tiles with equal numbers of rows and similar widths become a batch, padded to its widest, so that a
few batched matrix products do the work of many tiles. The torch backend makes its batches here and
the cost model prices the same ones, so the two agree by construction.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_SIMILAR = 0.8
"""Widths are similar if the narrower is at least this fraction of the widest of the batch."""


@dataclasses.dataclass(frozen=True)
class Batching:
    """T tiles in B batches, those of the most rows first and then the widest.

    Attributes:
        shape_rank: int64 [T], place of each tile's shape among the different shapes, in the order
            of the batches.
        batch: int64 [T], the batch of each tile.
        rows: int64 [B], rows of a batch's tiles.
        width: int64 [B], columns to which a batch's tiles are padded.
    """

    shape_rank: np.ndarray
    batch: np.ndarray
    rows: np.ndarray
    width: np.ndarray

    @property
    def count(self) -> int:
        """B."""
        return len(self.width)

    def members(self) -> list[np.ndarray]:
        """The tiles of each batch, widest first and then as they were given."""
        order = np.argsort(self.shape_rank, kind="stable")
        ends = np.cumsum(np.bincount(self.batch, minlength=self.count))
        return np.split(order, ends[:-1]) if self.count else []


def batch_tiles(rows: np.ndarray, width: np.ndarray) -> Batching:
    """Batch tiles by their shapes: real rows, int64 [T], and padded columns, int64 [T].

    >>> batching = batch_tiles(np.array([16, 16, 32]), np.array([80, 64, 16]))
    >>> batching.batch.tolist(), batching.rows.tolist(), batching.width.tolist()
    ([1, 1, 0], [32, 16], [16, 80])
    """
    beyond = int(width.max(initial=0)) + 1
    shapes, shape_rank = np.unique(-(rows * beyond + width), return_inverse=True)
    batch_of_shape, firsts = [], [(0, 0)]
    for shape in (-shapes).tolist():
        used, wide = divmod(shape, beyond)
        if used != firsts[-1][0] or wide < _SIMILAR * firsts[-1][1]:
            firsts.append((used, wide))
        batch_of_shape.append(len(firsts) - 2)
    batch = np.array(batch_of_shape, dtype=np.int64)[shape_rank]
    found = np.array(firsts[1:], dtype=np.int64).reshape(-1, 2)
    return Batching(shape_rank, batch, found[:, 0], found[:, 1])
