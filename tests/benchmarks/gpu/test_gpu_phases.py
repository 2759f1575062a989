"""Phases within a time: one that overruns, hangs or dies costs its own time and loses no row."""

import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.gpu import gpu_phases
from tests import ROOT
from tests.benchmarks.gpu.phases_to_run import ORIGIN, phase, run_of


def carried_out(run):
    try:
        while run.todo:
            run.next()
    finally:
        run.stop()
    return run.record().rows


def about(rows, name):
    """The row about a phase."""
    (row,) = [row for row in rows if row["check"] == "phase" and row["phase"] == name]
    return row


def is_gone(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


def wait_for(what, seconds=10.0):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


def test_a_phase_that_goes_wrong_costs_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_phases, "GRACE", 0.3)
    names = ("dies", "raises", "loses", "hangs", "undone", "fine")
    start = time.monotonic()
    rows = carried_out(run_of([phase(name) for name in names], tmp_path, seconds=12.0))
    assert time.monotonic() - start < 12.0 + gpu_phases.GRACE
    assert [about(rows, name)["passed"] for name in names] == [None] * 5 + [True]
    assert "exit status 7" in about(rows, "dies")["why"]
    assert "cut" in about(rows, "hangs")["why"]
    checks = {row["check"]: row for row in rows if row["check"] != "phase"}
    assert {"before it dies", "before it hangs", "a", "b"} <= set(checks)
    assert (checks["raises"]["passed"], checks["loses"]["passed"]) == (None, False)
    assert all(is_gone(process) for process in checks["before it hangs"]["processes"])
    assert all(row["commit"] == "c" and row["run"] == "first" for row in rows)


def test_time_that_is_left_over_goes_to_those_to_come(tmp_path):
    phases = [phase("fine", 10.0), phase("undone", 10.0), phase("raises", 20.0, limit=50.0)]
    run = run_of(phases, tmp_path, seconds=100.0)
    rows = carried_out(run)
    given = [about(rows, name)["of_s"] for name in ("fine", "undone", "raises")]
    assert given[0] == pytest.approx(25.0, abs=1.0)
    assert given[1] == pytest.approx(33.0, abs=2.0)  # a third of all that is left
    assert given[2] > 95.0 - 5.0  # its share is more than its limit


def test_a_phase_with_a_limit_gets_it_where_its_share_is_less(tmp_path):
    phases = [phase("fine", 1.0, limit=40.0), phase("undone", 99.0)]
    assert about(carried_out(run_of(phases, tmp_path, seconds=100.0)), "fine")["of_s"] > 39.0
    phases = [phase("fine", 1.0, limit=80.0), phase("undone", 99.0)]
    rows = carried_out(run_of(phases, tmp_path / "b", seconds=100.0))
    assert about(rows, "fine")["of_s"] == pytest.approx(50.0, abs=1.0)


def test_without_time_nothing_begins_and_every_phase_says_so(tmp_path):
    rows = carried_out(run_of([phase("fine"), phase("hangs")], tmp_path, seconds=0.5))
    assert [row["why"] for row in rows] == ["out of time"] * 2


@pytest.mark.parametrize(("name", "passed"), [("fine", True), ("hangs", None)])
def test_a_phase_beside_others_ends_before_the_one_that_it_is_named_for(tmp_path, name, passed):
    phases = [phase(name, 0.0, until="undone"), phase("waits"), phase("undone")]
    rows = carried_out(run_of(phases, tmp_path, seconds=20.0))
    order = [row["phase"] for row in rows if row["check"] == "phase"]
    assert order == ["waits", name, "undone"]
    assert about(rows, name)["passed"] is passed
    assert about(rows, name)["of_s"] == pytest.approx(10.0, abs=1.0)


def test_what_is_complete_is_left_out_of_the_next_run(tmp_path):
    phases = [phase("fine"), phase("undone"), phase("raises", always=True)]
    carried_out(run_of(phases, tmp_path, seconds=20.0))
    file = tmp_path / "rows.jsonl"
    for folder, earlier in ((tmp_path, None), (tmp_path / "another", file)):
        again = run_of(phases, folder, seconds=20.0, run="second", earlier=earlier)
        again.leave_out_complete()
        assert [p.name for p in again.todo] == ["undone", "raises"]
    for change in ({"tree": "dirty"}, {"commit": "d"}, {"processor": "B"}):
        other = run_of(phases, tmp_path, seconds=1.0, run="second", origin=ORIGIN | change)
        other.leave_out_complete()
        assert len(other.todo) == 3


def test_a_run_that_is_killed_leaves_its_rows_and_no_process(tmp_path):
    command = [sys.executable, "-m", "tests.benchmarks.gpu.phases_to_run", str(tmp_path)]
    killed = subprocess.Popen(command, cwd=ROOT)
    reader = run_of([], tmp_path, seconds=0.0)

    def hanging():
        return [row for row in reader.record().rows if row["check"] == "before it hangs"]

    (row,) = wait_for(hanging)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    wait_for(lambda: all(is_gone(process) for process in row["processes"]))
    again = run_of([phase("fine"), phase("hangs")], tmp_path, seconds=1.0, run="second")
    again.leave_out_complete()
    assert [p.name for p in again.todo] == ["hangs"]
