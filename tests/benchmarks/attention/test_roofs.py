"""The least time that a machine leaves for a row."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.attention import (
    roofs,
)
from benchmarks.attention.cases import BOTH, FORWARD, Case


def test_the_bounds_follow_their_formulas() -> None:
    case = Case("g", "s", 2, 3, 100, 16, "star", FORWARD, "float32")
    limits = roofs.Roofs(1.0, {"float32": 0.001})  # 1 GB/s, 1 GFLOP/s
    found = roofs.bound(case, 0.5, limits)
    # 4 tensors of 2 * 3 * 100 * 16 * 4 bytes; 4 * 16 flop for each of 0.5 * 100^2 * 6 scores.
    assert found.floor_ms == pytest.approx(4 * 38400 / 1e9 * 1e3)
    assert found.area_ms == pytest.approx(64 * 30000 / 1e9 * 1e3)
    assert found.ms == found.area_ms
    trained = roofs.bound(dataclasses.replace(case, direction=BOTH), 0.5, limits)
    assert trained.floor_ms == pytest.approx(3.0 * found.floor_ms)
    assert trained.area_ms == pytest.approx(3.5 * found.area_ms)
    half = roofs.moved_bytes(dataclasses.replace(case, dtype="bfloat16"))
    assert half * 2 == roofs.moved_bytes(case)
    assert roofs.bound(case, 0.001, limits).ms == found.floor_ms


def test_roofs_are_measured() -> None:
    found = roofs.measure("cpu", {"float32", "bfloat16"}, repeats=1)
    assert found.copy_gb_s > 0.1
    assert found.matrix_tflop_s["bfloat16"] >= found.matrix_tflop_s["float32"] > 1e-4
