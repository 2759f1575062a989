"""What each objective charges, and what it may use."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparsebert.compiler.cost.model import (
    cost_model,
)
from sparsebert.compiler.pricing import Area, Time
from sparsebert.tiles.format import COLUMN_CHUNK
from tests.compiler.round_costs import PASS, a_model

AREA = Area()


def test_what_each_objective_may_use() -> None:
    """Tiles by time take every height, alone and mixed; splits only where launches would wait."""
    assert AREA.height_choices == ((16, 32, 64),) and AREA.split_limits == ()
    assert AREA.tile(16, np.array([3]), np.array([32])).tolist() == [512.0]
    gpu, cpu = (Time(cost_model(target), 64, 64) for target in ("sm90", "cpu"))
    assert (AREA.greedy_height, AREA.peel_heights) == (16, (16, 64))
    assert (gpu.greedy_height, gpu.peel_heights) == (64, (16, 64))
    assert gpu.height_choices[0] == (16, 32, 64, 128)
    assert sorted(gpu.height_choices[1:]) == [(16,), (32,), (64,), (128,)]
    assert cpu.split_limits == () and gpu.split_limits == (512, 256)
    assert gpu.alike and not cpu.alike and not AREA.alike
    assert (gpu.chunk, cpu.chunk, AREA.chunk) == (64, COLUMN_CHUNK, COLUMN_CHUNK)


def test_peeled_tiles_pay_for_merging() -> None:
    time = Time(a_model(), 64, 64)
    rows, width = np.array([16, 9]), np.array([32, 48])
    merging = time.peeled_tile(16, rows, width) - time.tile(16, rows, width)
    assert merging == pytest.approx(rows * PASS.merge)
    chained = dataclasses.replace(PASS, chain=0.125)
    gpu = Time(dataclasses.replace(a_model(), launches=True, forward=chained), 64, 64)
    merging = gpu.peeled_tile(16, rows, width) - gpu.tile(16, rows, width)
    assert merging == pytest.approx(rows * (PASS.row + 0.125))
