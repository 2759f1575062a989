"""The compiler's table: its committed page, and a row of each kind."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.cost import compile_table
from benchmarks.harness.origin import RESULTS
from sparsebert import patterns


def test_the_committed_page_is_made_of_the_committed_rows(tmp_path: Path) -> None:
    shutil.copy(RESULTS / "compile_table.csv", tmp_path)
    page = compile_table.write_page(tmp_path)
    assert page.read_bytes() == (RESULTS / "compile_table.md").read_bytes()


def test_a_row_has_every_column_and_times_if_asked_for() -> None:
    mask = patterns.star(64)
    with_times, without = (compile_table.row("star", mask, timing) for timing in (True, False))
    assert list(with_times) == list(without) == list(compile_table.COLUMNS)
    times = ("plan_ms", "sdpa_ms", "measured")
    assert all(float(str(with_times[name])) > 0 for name in times)
    assert {without[name] for name in times} == {""}
