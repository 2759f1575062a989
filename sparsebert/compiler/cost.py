"""The cost model: what a cover, and dense attention, should take.

Constants per target are data, in `cost_model.json`; a target that has none of its own uses "gpu"
(or "cpu"). Times are for the forward pass of one batch and one head with D = 64.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Constants of one target.

    Attributes:
        source: where the constants come from.
        overlapped: arithmetic and gathering run at the same time, as on a GPU, so that a tile
            takes the longer of the two; else their sum.
        call_us: what a call with tiles costs beyond one without.
        dense_entry_ns: time of one score in dense attention.
        entry_ns: time of one score in a tile, by the tile's height.
        column_ns: time to gather one key and value row.
        tile_us: what each tile costs by itself.
    """

    source: str
    overlapped: bool
    call_us: float
    dense_entry_ns: float
    entry_ns: dict[int, float]
    column_ns: float
    tile_us: float

    def tiles_us(self, height: int, rows: np.ndarray, width: np.ndarray) -> float:
        """Time of tiles of one height, given the executed rows and padded columns of each."""
        entries = self.entry_ns[height] * rows * width
        columns = self.column_ns * width
        tile_ns = np.maximum(entries, columns) if self.overlapped else entries + columns
        return float(tile_ns.sum()) * 1e-3 + self.tile_us * len(width)

    def dense_us(self, q_len: int, kv_len: int) -> float:
        """Time of dense attention with the mask."""
        return self.dense_entry_ns * q_len * kv_len * 1e-3


@functools.cache
def cost_model(target: str) -> CostModel:
    """The constants for a target such as "cpu", "sm90" or "gfx942"."""
    text = importlib.resources.files(__package__).joinpath("cost_model.json").read_text()
    models = json.loads(text)
    constants = models.get(target) or models["cpu" if target == "cpu" else "gpu"]
    heights = {int(height): ns for height, ns in constants.pop("entry_ns").items()}
    return CostModel(entry_ns=heights, **constants)


def machine_target() -> str:
    """The target that stands for the machine at hand."""
    if not torch.cuda.is_available():
        return "cpu"
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm{properties.major}{properties.minor}"
