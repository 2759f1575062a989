"""A cost model of round numbers, for tests."""

from __future__ import annotations

import dataclasses

from sparsebert.compiler.cost.model import CostModel, PassCost, cost_model
from sparsebert.tiles.format import HEIGHTS

PASS = PassCost(
    call=1.0, shape=2.0, level=3.0, tile=0.5, row=0.01, column=0.1,
    entry=dict.fromkeys(HEIGHTS, 0.001), merge=0.25, mixed=0.125, floor_row=0.0,
    dense_call=0.5, dense_entry=0.01, mask_entry=0.02,
)  # fmt: skip


def a_model(margin: float = 1.0) -> CostModel:
    """A CPU whose constants are round numbers, the backward pass twice the forward pass."""
    backward = {
        name: {h: 2 * t for h, t in value.items()} if name == "entry" else 2 * value
        for name, value in dataclasses.asdict(PASS).items()
    }
    return dataclasses.replace(
        cost_model("cpu"), forward=PASS, backward=PassCost(**backward), margin=margin
    )
