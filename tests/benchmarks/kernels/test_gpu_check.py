"""`make gpu` without a GPU: what it checks, in which order, and what becomes of bad news."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
from benchmarks.attention.rivals import OURS, SDPA_MASK
from benchmarks.kernels import gpu_check, gpu_summary
from benchmarks.kernels.gpu_cases import BAND, PLAIN, TIME, KernelCase
from benchmarks.kernels.gpu_times import Timing
from tests import ROOT

ORIGIN = {"processor": "A", "torch": "1", "triton": "2", "commit": "c", "tree": "clean"}

SMOKE = """
import runpy, sys
for name in ("safetensors", "transformers", "tqdm", "matplotlib", "pandas", "pytest"):
    sys.modules[name] = None  # as if not installed
sys.argv = ["gpu_check", "--smoke"]
runpy.run_module("benchmarks.kernels.gpu_check", run_name="__main__")
"""


def test_smoke_needs_torch_and_triton_only(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SMOKE],
        cwd=ROOT, env=os.environ | {"OUT": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "gpu_check_smoke.jsonl")
    assert [row["passed"] for row in rows if row["check"] == "correct"] == [True] * 3
    assert all(row["commit"] and row["triton"] for row in rows)
    assert "4 passed, 0 failed" in done.stdout


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(check, **changes):
    """Stand-ins: everything passes and is timed at once, but for `check`."""
    standard = gpu_check.Steps(
        check=check,
        jobs=0,
        repeats=lambda: {"passed": True},
        sanitize=lambda tool, seconds: {"passed": True},
        timed=lambda timing, has_time: iter([timing.row | {"ms_50": 1.0}]),
    )
    return dataclasses.replace(standard, **changes)


def passing(case, heights=(64,)):
    return case.row | {"passed": True, "heights": list(heights)}


def run(tmp_path, check, cases, timings=(), seconds=1000.0, **changes):
    record = gpu_check.Record(tmp_path / "rows.jsonl", ORIGIN)
    gpu_check.run(record, steps(check, **changes), cases, timings, seconds=seconds)
    return record.rows


STAR, STRIDED = (
    KernelCase(TIME, name, 512, 64, "bfloat16", PLAIN) for name in ("star", "strided")
)
TIMINGS = tuple(
    Timing(contender, mask, 32, 512)
    for contender, mask in ((OURS, "star"), (OURS, "strided"), (SDPA_MASK, "star"))
)


def timed(rows):
    """Whether each timing was made, else why not."""
    return [row.get("why", True) for row in rows if row["check"] == "timing"]


def test_a_red_case_stops_what_depends_on_it_and_nothing_else(tmp_path):
    def check(case):
        bad = {"passed": False, "why": "dq: 3 x its bound", "heights": [64]}
        return case.row | bad if case == STAR else passing(case, [16])

    rows = run(tmp_path, check, [STAR, STRIDED], TIMINGS)
    red = "not timed: red in star, N = 512, plan by time, plain"
    assert timed(rows) == [red, True, True]
    text = gpu_summary.summary(rows)
    assert "1 failed" in text and "dq: 3 x its bound" in text and red in text


@pytest.mark.parametrize(
    ("wrong", "heights", "stops"),
    [
        (KernelCase("64", BAND, 300, 64, "bfloat16", PLAIN), [64], True),
        (KernelCase("64", BAND, 300, 64, "bfloat16", "gqa"), [64], True),
        (
            KernelCase("64", BAND, 300, 64, "bfloat16", PLAIN),
            None,
            True,
        ),  # broke before it was known
        (KernelCase("16", BAND, 300, 64, "bfloat16", PLAIN), [16], False),
        (KernelCase("64", BAND, 300, 32, "bfloat16", PLAIN), [64], False),
        (KernelCase("64", BAND, 300, 64, "float16", PLAIN), [64], False),
        (KernelCase("64", BAND, 300, 64, "bfloat16", "dropout"), [64], False),
    ],
)
def test_a_red_case_stops_timings_that_run_the_same_kernels(tmp_path, wrong, heights, stops):
    def check(case):
        if case != wrong:
            return passing(case)
        return case.row | {"passed": False, "why": "x"} | ({"heights": heights} if heights else {})

    found = timed(run(tmp_path, check, [STAR, wrong], TIMINGS[:1]))
    assert (found != [True]) == stops


def test_what_was_not_checked_is_not_timed(tmp_path):
    def check(case):
        return case.row | {"passed": None, "why": "out of memory"}

    not_checked = "not timed: its plan was not checked"
    assert timed(run(tmp_path, check, [STAR], TIMINGS)) == [not_checked, not_checked, True]


def test_a_run_that_is_cut_short_loses_nothing_and_goes_on(tmp_path):
    cases = [dataclasses.replace(STAR, n=n) for n in (1, 2, 3, 4)]
    seen = []

    def check(case):
        seen.append(case.n)
        if seen == [1, 2, 3]:
            raise KeyboardInterrupt
        return passing(case)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, check, cases)
    assert [row["n"] for row in read(tmp_path / "rows.jsonl")] == [1, 2]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"check": "corr')  # and the last line is cut off
    rows = run(tmp_path, check, cases)
    assert seen == [1, 2, 3, 3, 4]
    assert [row["n"] for row in rows if row["check"] == "correct"] == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_to_is_an_error_before_anything_runs(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        gpu_check.Record(tmp_path / "file" / "rows.jsonl", ORIGIN)
    path = tmp_path / "new" / "rows.jsonl"
    gpu_check.Record(path, ORIGIN)
    assert path.read_text() == ""


@pytest.mark.parametrize("change", [{"tree": "dirty"}, {"commit": "d"}, {"processor": "B"}])
def test_only_rows_of_the_same_run_count_as_done(tmp_path, change):
    path = tmp_path / "rows.jsonl"
    gpu_check.Record(path, ORIGIN).add(passing(STAR))
    wrong = dataclasses.replace(STAR, n=2).row | {"passed": False, "why": "x"}
    gpu_check.Record(path, ORIGIN).add(wrong)
    assert list(gpu_check.Record(path, ORIGIN).known()) == [dataclasses.astuple(STAR)]
    assert not gpu_check.Record(path, ORIGIN | change).known()
    record = gpu_check.Record(path, {**ORIGIN, "tree": "dirty"})
    record.add(passing(STAR))
    assert not gpu_check.Record(path, {**ORIGIN, "tree": "dirty"}).known()


def test_without_time_nothing_is_run_and_everything_says_so(tmp_path):
    def never(*arguments):
        raise AssertionError

    rows = run(
        tmp_path, never, [STAR, STRIDED], TIMINGS[:2], seconds=-1.0, repeats=never, sanitize=never
    )
    assert [row["why"] for row in rows[:5]] == ["out of time"] * 5
    assert timed(rows) == ["not timed: its plan was not checked"] * 2
    assert "0 failed, 5 not run" in gpu_summary.summary(rows)


def sanitizer(tmp_path, monkeypatch, script):
    """A program of that name on the path, and nothing else."""
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return gpu_check.sanitize("memcheck", 5.0 if "sleep" not in script else 0.2)


@pytest.mark.parametrize(
    ("script", "passed", "why"),
    [
        ("exit 0", True, ""),
        ("echo Invalid __global__ write of size 4; exit 99", False, "Invalid __global__ write"),
        ("echo Device not supported; exit 1", None, "status 1: Device not supported"),
        ("echo Error: Internal Sanitizer Error; exit 99", None, "Internal Sanitizer Error"),
        ("exec sleep 60", None, "took more than"),
    ],
)
def test_only_what_the_sanitizer_finds_is_red(tmp_path, monkeypatch, script, passed, why):
    row = sanitizer(tmp_path, monkeypatch, script)
    assert row["passed"] is passed and why in row.get("why", "")


def test_a_missing_sanitizer_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "not installed" in gpu_check.sanitize("memcheck", 5.0)["why"]


def test_a_step_that_breaks_is_not_run_and_a_lost_gpu_is_red(tmp_path):
    def broken():
        raise RuntimeError("no such thing here")

    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    results = [run(tmp_path, passing, [], repeats=step)[0]["passed"] for step in (broken, lost)]
    assert results == [None, False]
