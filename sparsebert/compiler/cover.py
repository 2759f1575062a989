"""Choosing the tiles of one head's mask."""

from __future__ import annotations

import dataclasses

import numpy as np

from sparsebert.compiler import bits as packed
from sparsebert.compiler.cost import CostModel
from sparsebert.tiles import COLUMN_CHUNK, HEIGHTS

_LONG_ROW = 4
"""A row is long if it has more than this many times the entries of the median row."""

_LONG_ROW_HEIGHT = 16
_AREA_HEIGHTS = (16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Cover:
    """Tiles that cover one head's mask.

    Attributes:
        name: how the rows were grouped, in words.
        rows: for each height the rows of its tiles, int32 [T, height], -1 in empty slots.
        area: executed scores, rows x padded columns.
        columns: gathered columns, padded.
        predicted_us: forward time by the cost model.
    """

    name: str
    rows: tuple[np.ndarray, ...]
    area: int
    columns: int
    predicted_us: float

    @property
    def tiles(self) -> dict[int, int]:
        """Tile count by height."""
        total: dict[int, int] = {}
        for rows in self.rows:
            total[rows.shape[1]] = total.get(rows.shape[1], 0) + len(rows)
        return total


def best_cover(bits: np.ndarray, model: CostModel, objective: str) -> Cover:
    """The cheapest cover of a packed mask, by predicted time or by executed area.

    Rows keep their order; rows with nothing to attend are left out, and very long ones (global
    tokens) get tiles of their own, so that they do not widen their neighbours' column lists.
    """
    counts = packed.count(bits)
    rows = np.flatnonzero(counts)
    is_long = counts[rows] > _LONG_ROW * np.median(counts[rows]) if len(rows) else counts[rows] > 0
    heights = _AREA_HEIGHTS if objective == "area" else HEIGHTS
    candidates = [
        _measure(f"rows in order, {h} a tile", bits, [(h, rows)], model) for h in heights
    ]
    if is_long.any():
        split = [(_LONG_ROW_HEIGHT, rows[is_long])]
        candidates += [
            _measure(
                f"rows in order, {h} a tile, {is_long.sum()} long rows apart",
                bits,
                [*split, (h, rows[~is_long])],
                model,
            )
            for h in heights
        ]
    return min(candidates, key=lambda c: c.area if objective == "area" else c.predicted_us)


def _measure(
    name: str, bits: np.ndarray, parts: list[tuple[int, np.ndarray]], model: CostModel
) -> Cover:
    """Cut each part into tiles of its height and add up what they execute."""
    grouped, area, columns, time = [], 0, 0, model.call_us
    for height, rows in parts:
        starts = np.arange(0, len(rows), height)
        union = np.bitwise_or.reduceat(bits[rows], starts, axis=0) if len(rows) else bits[:0]
        width = -(-packed.count(union) // COLUMN_CHUNK) * COLUMN_CHUNK
        used = np.minimum(height, len(rows) - starts)
        time += model.tiles_us(height, used, width)
        area += int(height * width.sum())
        columns += int(width.sum())
        slots = np.full(len(starts) * height, -1, dtype=np.int32)
        slots[: len(rows)] = rows
        grouped.append(slots.reshape(-1, height))
    return Cover(name, tuple(grouped), area, columns, time)
