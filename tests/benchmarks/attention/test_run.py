"""A run from the first case to the last, interrupted, and begun again."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.attention import (
    flex_rivals,
    inputs,
    measure_case,
    result_files,
    rivals,
    roofs,
    run,
)
from benchmarks.attention.cases import BOTH, FORWARD, Case
from benchmarks.harness import mkl
from tests import ROOT
from tests.benchmarks.attention.tiny import ROOFS, TINY


def test_a_tiny_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three contenders, two cases; the second run measures only what the first has not."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(flex_rivals, "compiled", lambda: flex_attention)
    monkeypatch.setattr(inputs, "MOST_SETS", 2)
    monkeypatch.setattr(roofs, "measure", lambda *_: ROOFS)
    forward = dataclasses.replace(TINY, direction=FORWARD)
    origin = run.origin("cpu", 0.01)
    store = result_files.Store(tmp_path, origin)
    assert run.run((forward,), "cpu", store, 0.01) == 0
    assert run.run((forward, TINY), "cpu", result_files.Store(tmp_path, origin), 0.01) == 0
    rows = result_files.read(tmp_path)
    assert len(rows) == 2 * len(rivals.rivals_on("cpu"))
    assert [row["date"] for row in rows] == [origin["date"]] * len(rows)
    timed = [row for row in rows if row["ms_50"]]
    refused = [row for row in rows if not row["ms_50"]]
    assert [(r["contender"], r["direction"]) for r in refused] == [
        (rivals.FLEX_FORMULA, FORWARD),
        (rivals.FLEX, BOTH),
        (rivals.FLEX_FORMULA, BOTH),
    ]
    for row in timed:
        assert float(row["ms_20"]) <= float(row["ms_50"]) <= float(row["ms_80"])
        assert float(row["of_bound"]) > 0
    before = (tmp_path / "tiny.csv").read_text()
    other = {**origin, "commit": "another"}
    assert result_files.Store(tmp_path, other).done((TINY,)) == set()
    assert result_files.Store(tmp_path, origin).done((TINY,)) == {TINY.key}
    assert (tmp_path / "tiny.csv").read_text() == before


def test_the_commands_start_from_a_bare_checkout() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "run", "--list", "--device", "cuda"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "paper-short" in done.stdout


def test_an_interrupted_run_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows_of(case: Case, *rest: object) -> list[measure_case.Values]:
        if case.trains:
            raise KeyboardInterrupt
        return [{"contender": rivals.OURS, "ms_50": "1"}]

    monkeypatch.setattr(measure_case, "rows_of", rows_of)
    monkeypatch.setattr(roofs, "measure", lambda *_: ROOFS)
    store = result_files.Store(tmp_path, run.origin("cpu", 0.1))
    forward = dataclasses.replace(TINY, direction=FORWARD)
    assert run.run((forward, TINY), "cpu", store, 0.1) == 130
    assert store.done((forward, TINY)) == {forward.key}
    assert "1 cases are kept" in capsys.readouterr().out
    assert run.run((TINY,), "cpu", result_files.Store(tmp_path / "none", store.origin), 0.1) == 130


def test_a_case_that_fails_is_a_row_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> list[measure_case.Values]:
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setattr(measure_case, "rows_of", fails)
    monkeypatch.setattr(roofs, "measure", lambda *_: ROOFS)
    origin = run.origin("cpu", 0.1)
    assert run.run((TINY,), "cpu", result_files.Store(tmp_path, origin), 0.1) == 1
    (row,) = result_files.read(tmp_path)
    assert row["note"] == "FAILED: RuntimeError: out of memory"
    works = [{"contender": rivals.OURS, "ms_50": "1"}]
    monkeypatch.setattr(measure_case, "rows_of", lambda *_: works)
    assert run.run((TINY,), "cpu", result_files.Store(tmp_path, origin), 0.1) == 0
    (row,) = result_files.read(tmp_path)
    assert row["note"] == ""


def test_a_lost_gpu_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lost(*_: object) -> list[measure_case.Values]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(measure_case, "rows_of", lost)
    monkeypatch.setattr(roofs, "measure", lambda *_: ROOFS)
    with pytest.raises(RuntimeError, match="illegal"):
        run.run((TINY,), "cpu", result_files.Store(tmp_path, run.origin("cpu", 0.1)), 0.1)


def test_settings_stand_beside_each_other_in_a_file(tmp_path: Path) -> None:
    origin = run.origin("cpu", 0.1)
    rows = [{"contender": rivals.OURS, "ms_50": "1"}]
    one = {"threads": "1", "method": "CPU time"}
    settings = (one, {"threads": "2"}, {"threads": "2", "mkl": "avx512"}, {"isa": "avx2"})
    for setting in settings:
        store = result_files.Store(tmp_path, {**origin, **setting})
        assert store.done((TINY,)) == set()
        store.add(TINY, rows)
        assert store.done((TINY,)) == {TINY.key}
    assert len({result_files.setting_of(row) for row in result_files.read(tmp_path)}) == 4
    longer = {**one, "method": "more seconds"}
    for times, at in enumerate(({**one}, longer)):  # in the place of the same setting's rows
        again = result_files.Store(tmp_path, {**origin, **at}, fresh=not times)
        again.add(TINY, [{"contender": rivals.OURS, "ms_50": f"{2 + times}"}])
        found = result_files.read(tmp_path)
        assert sorted(row["ms_50"] for row in found) == ["1", "1", "1", f"{2 + times}"]
    newer = result_files.Store(tmp_path, {**origin, "commit": "another"})
    newer.add(TINY, rows)
    assert [row["commit"] for row in result_files.read(tmp_path)] == ["another"]


def test_each_number_of_threads_and_each_mode_of_mkl_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured, again = [], []

    def measures(cases: object, device: str, store: result_files.Store, *rest: object) -> int:
        measured.append((store.origin["threads"], rest[-1]))
        return 0

    monkeypatch.setattr(run, "run", measures)
    common = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--threads", "1", "2"]
    assert run.main([*common, "--rivals", rivals.SDPA_MASK]) == 0
    assert measured == [("1", (rivals.SDPA_MASK,)), ("2", (rivals.SDPA_MASK,))]
    monkeypatch.setattr(mkl, "run_again", lambda *asked: again.append(asked) or len(again))
    assert run.main([*common, "--mkl", "stock", "avx512"]) == 2
    assert [mode for *_, mode in again] == ["stock", "avx512"]
    assert len(measured) == 2
    with pytest.raises(SystemExit):
        run.main([*common, "--rivals", "nobody"])
    assert "there is no 'nobody'" in capsys.readouterr().err
