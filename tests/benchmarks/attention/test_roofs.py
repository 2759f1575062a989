"""The least time that a machine leaves for a row."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.attention import (
    roofs,
)
from benchmarks.attention.cases import BOTH, FORWARD, Case
from benchmarks.attention.core_peak import CorePeak
from benchmarks.attention.plan_work import Work


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


def test_a_core_that_is_faster_than_torchs_products_is_the_roof() -> None:
    case = Case("g", "s", 2, 3, 100, 16, "star", FORWARD, "float32")
    core = CorePeak(fma_gflop_s=2.0, bf16_gflop_s=4.0, exp_ns=0.5, l2_gb_s=0.2)
    alone = roofs.Roofs(1.0, {"float32": 0.001})
    both = roofs.Roofs(1.0, {"float32": 0.001, "bfloat16": 0.001}, core, threads=2)
    assert roofs.bound(case, 0.5, both).area_ms == pytest.approx(
        roofs.bound(case, 0.5, alone).area_ms / 4.0
    )
    half = dataclasses.replace(case, dtype="bfloat16")
    assert roofs.bound(half, 0.5, both).area_ms == pytest.approx(
        roofs.bound(case, 0.5, alone).area_ms / 8.0
    )


def test_the_share_of_a_cores_peak() -> None:
    case = Case("g", "s", 2, 3, 100, 16, "star", FORWARD, "float32")
    core = CorePeak(fma_gflop_s=2.0, bf16_gflop_s=4.0, exp_ns=0.5, l2_gb_s=0.2)
    limits = roofs.Roofs(1.0, {"float32": 0.001}, core, threads=2)
    work = Work(tile_scores=16000, entry_scores=2000, dense_scores=2000, routes="6 native")
    row = roofs.of_work(case, work, 10.0, limits)
    # 4 * 16 flop for each of 20,000 scores in 10 ms; two cores of 2 GFLOP/s.
    assert float(str(row["gflop_s"])) == pytest.approx(0.128, abs=0.05)
    assert float(str(row["of_peak"])) == pytest.approx(0.128 / 4.0, abs=1e-4)
    assert float(str(row["exp_share"])) == pytest.approx(20000 * 0.5e-6 / 2 / 10.0, abs=1e-4)
    assert float(str(row["moved_mb"])) == pytest.approx(4 * 38400 / 1e6, abs=1e-3)
    assert "of_l2" not in row  # what dense heads read is not counted
    alone = roofs.of_work(case, dataclasses.replace(work, dense_scores=0), 10.0, limits)
    read = 2 * (1000 + 2000) * 64 / 0.010 / 1e9  # two rows of 16 fp32 for each column and entry
    assert float(str(alone["read_gb_s"])) == pytest.approx(read, abs=0.06)
    assert float(str(alone["of_l2"])) == pytest.approx(read / 0.4, abs=1e-3)
    trained = roofs.of_work(dataclasses.replace(case, direction=BOTH), work, 10.0, limits)
    assert float(str(trained["of_peak"])) == pytest.approx(3.5 * 0.128 / 4.0, abs=1e-4)
    assert float(str(trained["exp_share"])) == pytest.approx(0.001, abs=1e-4)
    unknown = roofs.of_work(case, work, 10.0, dataclasses.replace(limits, core=None))
    assert "of_peak" not in unknown and "exp_share" not in unknown


def test_roofs_are_measured() -> None:
    found = roofs.measure("cpu", {"float32", "bfloat16"}, repeats=1)
    assert found.copy_gb_s > 0.1
    assert found.matrix_tflop_s["bfloat16"] >= found.matrix_tflop_s["float32"] > 1e-4
