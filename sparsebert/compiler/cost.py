"""The cost model: what a cover, and dense attention, should take, forward and backward.

Times are in microseconds for one batch and one head with D = 64, of a call that keeps the whole
machine busy. Constants per target are data, in `cost_model.json`, with their source; a target
that has none of its own uses "cpu" or "sm90". `benchmarks/fit_cost_model.py` fits those of the
CPU to measurements.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from sparsebert.compiler.pieces import Tiles

DEFAULT_GPU = "sm90"

_SAME_SHAPE = 0.8
"""Tiles of equal row count whose widths are within this factor run as one batch on the CPU."""


@dataclasses.dataclass(frozen=True)
class PassCost:
    """Constants of one pass, forward or backward; all times in microseconds.

    Attributes:
        call: a call with tiles, beyond a dense one.
        shape: each different tile shape (a batch of its own in the torch executor).
        tile: each tile.
        row: each row of a tile: loading q, storing the result.
        column: each gathered key and value row.
        entry: each score of a tile, by the tile's height.
        merge: each row of a tile beyond the first tile that covers the row.
        floor_row: least time that a row of q, k, v and o takes to move, on any route.
        dense_call, dense_entry: dense attention, masked: each call, each score.
    """

    call: float
    shape: float
    tile: float
    row: float
    column: float
    entry: dict[int, float]
    merge: float
    floor_row: float
    dense_call: float
    dense_entry: float

    def tiles(
        self, height: int, rows: np.ndarray, width: np.ndarray, *, overlapped: bool
    ) -> np.ndarray:
        """Time of tiles of one height: executed rows [T], padded columns [T]."""
        compute = self.entry[height] * rows * width
        gather = self.column * width + self.row * rows
        busy = np.maximum(compute, gather) if overlapped else compute + gather
        total: np.ndarray = self.tile + busy
        return total

    def dense(self, q_len: int, kv_len: int) -> float:
        """Time of dense attention with the mask."""
        return max(self.dense_call + self.dense_entry * q_len * kv_len, self.floor(q_len, kv_len))

    def floor(self, q_len: int, kv_len: int) -> float:
        """Time to move q, o and k, v once."""
        return self.floor_row * (q_len + kv_len)


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Constants of one target.

    Attributes:
        source: where the constants come from.
        overlapped: arithmetic and gathering run at the same time, as on a GPU, so that a tile
            takes the longer of the two; else their sum.
        empty_rows_cost: a tile computes its empty row slots too.
        programs: tiles that run at the same time.
        copies: batch x heads of the call that `programs` is shared by.
        forward, backward: constants of the passes.
    """

    source: str
    overlapped: bool
    empty_rows_cost: bool
    programs: int
    copies: int
    forward: PassCost
    backward: PassCost

    def tile_us(self, height: int, rows: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Forward time of tiles of one height, [T]."""
        return self._tiles(self.forward, height, rows, width)

    def cover_us(
        self,
        cover: Iterable[Tiles],
        q_len: int,
        kv_len: int,
        *,
        backward: bool = False,
        balanced: bool = False,
    ) -> float:
        """Time of a cover in the forward pass, or in the backward pass alone.

        With `balanced` no program is taken to wait for one with a longer tile.
        """
        cost = self.backward if backward else self.forward
        cover = list(cover)
        work, longest, slots = 0.0, 0.0, 0
        covered = np.zeros(q_len, dtype=bool)
        for tiles in cover:
            rows, width = tiles.real_rows, tiles.padded
            each = self._tiles(cost, tiles.height, rows, width)
            work += float(each.sum())
            longest = max(longest, float(each.max(initial=0.0)))
            slots += int(rows.sum())
            covered[tiles.rows[tiles.rows >= 0]] = True
        # One tile runs on one of the machine's programs, so it takes `programs` times its share
        # of the whole machine; all copies of it run side by side.
        if not balanced:
            work = max(work, longest * self.programs / self.copies)
        work += cost.merge * (slots - int(covered.sum()))
        return max(cost.call + cost.shape * count_shapes(cover) + work, cost.floor(q_len, kv_len))

    def _tiles(
        self, cost: PassCost, height: int, rows: np.ndarray, width: np.ndarray
    ) -> np.ndarray:
        executed = np.full_like(rows, height) if self.empty_rows_cost else rows
        return cost.tiles(height, executed, width, overlapped=self.overlapped)

    def bound_us(self, entries: int, q_len: int, kv_len: int) -> float:
        """No cover of so many entries can take less in the forward pass."""
        arithmetic = min(self.forward.entry.values()) * entries
        return max(arithmetic, self.forward.floor(q_len, kv_len))


def count_shapes(cover: Iterable[Tiles]) -> int:
    """How many batches the torch executor makes of these tiles, about."""
    shapes: set[tuple[int, float]] = set()
    for tiles in cover:
        steps = np.floor(np.log(np.maximum(tiles.padded, 1)) / -np.log(_SAME_SHAPE))
        shapes.update(zip(tiles.real_rows.tolist(), steps.tolist(), strict=True))
    return len(shapes)


def is_target(name: object) -> bool:
    """Whether `name` reads like a machine: "cpu", "sm90", "gfx942" and so on."""
    return isinstance(name, str) and bool(re.fullmatch(r"cpu|sm\d{2,3}|gfx[0-9a-f]{3,4}", name))


@functools.cache
def cost_model(target: str) -> CostModel:
    """The constants for a target such as "cpu", "sm90" or "gfx942"."""
    text = importlib.resources.files(__package__).joinpath("cost_model.json").read_text()
    models = json.loads(text)
    constants = models.get(target, models[DEFAULT_GPU])
    if target not in models:
        constants["source"] = f"that of {DEFAULT_GPU}, none for {target}: {constants['source']}"
    forward, backward = (_pass_cost(constants.pop(name)) for name in ("forward", "backward"))
    return CostModel(**constants, forward=forward, backward=backward)


def _pass_cost(constants: dict[str, Any]) -> PassCost:
    entry = {int(height): us for height, us in constants.pop("entry").items()}
    return PassCost(entry=entry, **constants)


def machine_target() -> str:
    """The target that stands for the machine at hand."""
    if not torch.cuda.is_available():
        return "cpu"
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm{properties.major}{properties.minor}"
