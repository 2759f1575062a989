"""One case: a row for each contender, whatever becomes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.attention import (
    measure_case,
    rivals,
    roofs,
)
from benchmarks.attention.cases import select
from benchmarks.attention.contender import CaseSetup, Ready
from benchmarks.harness import named_masks
from sparsebert.kernels.cpu.library import load
from tests.benchmarks.attention.tiny import ROOFS, TINY


def test_without_learned_masks_a_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_masks, "LEARNED", Path("nowhere"))
    case = next(c for c in select("cpu") if c.mask == named_masks.NONE_LEARNED)
    (row,) = measure_case.rows_of(case, "cpu", ROOFS, 0.0)
    assert "learned_masks" in str(row["note"])
    assert "ms_50" not in row


def test_a_contender_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setup: CaseSetup) -> Ready:
        raise RuntimeError("no such kernel\nand much more")

    entries = [r for r in rivals.RIVALS if r.name in (rivals.OURS, rivals.EAGER)]
    bad = dataclasses.replace(entries[1], prepare=broken)
    monkeypatch.setattr(measure_case, "rivals_on", lambda device: (entries[0], bad))
    ours, failed = measure_case.rows_of(TINY, "cpu", ROOFS, 0.0)
    assert failed["note"] == "RuntimeError: no such kernel"
    assert "ms_50" not in failed
    assert float(str(ours["speedup"])) == 1.0


def test_a_rival_that_is_not_asked_for_is_a_row() -> None:
    rows = {
        str(row["contender"]): row
        for row in measure_case.rows_of(TINY, "cpu", ROOFS, 0.0, (rivals.SDPA_MASK,))
    }
    assert "ms_50" in rows[rivals.OURS] and "ms_50" in rows[rivals.SDPA_MASK]
    assert rows[rivals.SDPA_DENSE]["note"] == "left out of this run (--rivals)"
    assert "ms_50" not in rows[rivals.SDPA_DENSE]


def test_our_rows_say_what_is_computed_and_how_fast() -> None:
    ours, *others = measure_case.rows_of(TINY, "cpu", ROOFS, 0.0, ())
    assert all("gflop_s" not in row for row in others)
    if "gflop_s" not in ours:  # tiles that other kernels run
        assert not load().isa
        return
    tiles, entries = (int(str(ours[name])) for name in ("tile_scores", "entry_scores"))
    every = TINY.batch * TINY.heads * TINY.length**2
    scores = (tiles + entries) / every or 1.0  # without tiles it runs dense
    expected = roofs.flop(TINY, scores) / float(str(ours["ms_50"])) / 1e6
    assert float(str(ours["gflop_s"])) == pytest.approx(expected, abs=0.06)
    assert "of_peak" not in ours  # these roofs know no peak


def test_a_wrong_result_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(
        rivals.RIVALS[0], prepare=lambda setup: Ready(lambda q, k, v: q + k + v, 1.0)
    )
    monkeypatch.setattr(measure_case, "rivals_on", lambda device: (wrong,))
    (row,) = measure_case.rows_of(TINY, "cpu", ROOFS, 0.0)
    assert str(row["note"]).startswith("WRONG: o is off by ")
    assert "ms_50" not in row


def test_launch_bound_rows_are_marked_and_graphs_compared() -> None:
    def entry(name: str, ms: float, graph_ms: float) -> measure_case._Entry:
        rival = next(rival for rival in rivals.RIVALS if rival.name == name)
        ready = Ready(lambda q, k, v: q, 0.5)
        times = [ms] * 4
        return measure_case._Entry(rival, {}, ready, times=times, graph_ms=graph_ms, peak_mb=7.0)

    ours, theirs = entry(rivals.OURS, 0.05, 0.01), entry(rivals.FLASH, 0.06, 0.05)
    rows = [each.row(TINY, ROOFS, ours) for each in (ours, theirs)]
    assert [r["launch_bound"] for r in rows] == ["yes", "no"]
    assert [r["speedup"] for r in rows] == ["1.000", "1.200"]
    assert [r["graph_speedup"] for r in rows] == ["1.000", "5.000"]
    assert [r["peak_mb"] for r in rows] == ["7.0", "7.0"]
