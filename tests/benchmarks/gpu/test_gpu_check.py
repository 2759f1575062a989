"""`make gpu` without a GPU: all of it in small, its time table, and a machine that has none."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("triton")
from benchmarks.gpu import gpu_check
from benchmarks.harness.rows import RowFile
from tests import ROOT
from tests.benchmarks.gpu import phases_to_run
from tests.benchmarks.gpu.phases_to_run import ORIGIN, run_of

ABSENT = ("safetensors", "transformers", "tqdm", "matplotlib", "pandas", "pytest")


def start(tmp_path, *options, blocked=()):
    """The command, its rows in a folder; the blocked packages are as if not installed."""
    packages = tmp_path / "packages"
    packages.mkdir(exist_ok=True)
    for name in blocked:
        (packages / f"{name}.py").write_text(f"raise ImportError('no {name}')")
    path = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu.gpu_check", *options], cwd=ROOT,
        env=os.environ | {"OUT": str(tmp_path), "PYTHONPATH": path}, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def read(tmp_path):
    path = tmp_path / "gpu_check_smoke.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_smoke_runs_every_phase_with_torch_and_triton_only(tmp_path):
    process = start(tmp_path, "--smoke", blocked=ABSENT)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    rows = read(tmp_path)
    assert [row["passed"] for row in rows if row["check"] == "correct"] == [True] * 5
    assert any("ms_50" in row for row in rows if row["check"] == "timing")
    phases = [row["phase"] for row in rows if row["check"] == "phase"]
    assert sorted(phases) == sorted(p.name for p in (gpu_check.MACHINE, *gpu_check.PHASES))
    assert all(row["commit"] and row["triton"] and row["run"] for row in rows)
    assert "0 failed" in said and "no pytest" in said


def test_a_run_that_is_told_to_stop_writes_its_summary_and_goes_on_later(tmp_path):
    process = start(tmp_path, "--smoke", "--phases", "gate")
    end = time.monotonic() + 60.0
    while not any(row["check"] == "correct" for row in read(tmp_path)):
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 0 and "goes on from here" in said and "1 passed" in said


def test_a_run_keeps_to_its_seconds(tmp_path):
    begun = time.monotonic()
    process = start(tmp_path, "--smoke", "--seconds", "14", "--phases", "gate", "wide")
    process.communicate(timeout=60)
    assert time.monotonic() - begun < 14.0 + 3.0  # Python's own start on a busy machine
    assert {row["phase"] for row in read(tmp_path) if row["check"] == "phase"} == {
        "machine", "gate", "wide",
    }  # fmt: skip


def test_without_a_gpu_it_says_so_at_once(tmp_path, monkeypatch):
    process = start(tmp_path)
    said = process.communicate(timeout=60)[0]
    if process.returncode != 2:
        pytest.skip("there is one")
    assert "no CUDA or ROCm device" in said


def test_the_phases_fill_nine_minutes_in_the_order_of_the_table():
    phases = (gpu_check.MACHINE, *gpu_check.PHASES)
    ends, end = {}, 0.0
    for phase in phases:
        end += phase.seconds
        if not phase.until:
            ends[phase.name] = int(end)
    rows = [line.split() for line in gpu_check.__doc__.splitlines() if line[:7].strip().isdigit()]
    assert {row[1]: int(row[0]) for row in rows} == ends
    assert end == gpu_check.SECONDS


def test_a_copy_of_the_rows_stays_where_a_second_call_finds_them(tmp_path, monkeypatch):
    kept = tmp_path / "build" / "gpu_check.jsonl"
    monkeypatch.setattr(gpu_check, "KEPT", kept)
    first = run_of([], tmp_path / "a", seconds=9.0)
    first.record().add({"check": "machine", "passed": True, **ORIGIN, "run": "first"})
    gpu_check._keep(first)
    second = run_of([], tmp_path / "b", seconds=9.0, run="second", earlier=kept)
    second.record().add({"check": "tests", "passed": True, "run": "second"})
    for _ in range(3):  # after each phase, though it goes on from that very file
        gpu_check._keep(second)
    assert [(row["check"], row["run"]) for row in RowFile(kept).read()] == [
        ("machine", "first"), ("tests", "second"),
    ]  # fmt: skip
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"KEPT := {gpu_check.KEPT.name}" in text.replace("build/", "")


def carried_out(monkeypatch, folder, *names, anyway):
    """The exit status, and the rows, of phases of `phases_to_run`, the first about the GPU."""
    monkeypatch.setattr(gpu_check, "KEPT", folder / "kept.jsonl")
    run = run_of([phases_to_run.phase(name) for name in names], folder, seconds=60.0)
    try:
        status = gpu_check._carry_out(run, names[1:], anyway=anyway)
    finally:
        run.stop()
    return status, run.record().rows


@pytest.mark.parametrize(
    ("folder", "anyway", "goes_on"),
    [("wrong", False, False), ("wrong", True, True), ("right", False, True)],
)
def test_where_no_plan_is_right_the_time_is_left_for_another_run(
    tmp_path, monkeypatch, capfd, folder, anyway, goes_on
):
    status, rows = carried_out(
        monkeypatch, tmp_path / folder, "clean", "gate", "fine", anyway=anyway
    )
    assert status == (0 if goes_on else 1)
    assert ("no plan that would be timed is right" in capfd.readouterr().out) is not goes_on
    assert any(row["check"] == "a" for row in rows) is goes_on


@pytest.mark.parametrize("anyway", [False, True])
def test_rows_that_nobody_could_publish_are_not_made_unasked(tmp_path, monkeypatch, capfd, anyway):
    status, rows = carried_out(monkeypatch, tmp_path, "dirty", "fine", anyway=anyway)
    assert status == (0 if anyway else 2)
    assert ("must be clean, and is dirty" in capfd.readouterr().out) is not anyway
    assert any(row["check"] == "a" for row in rows) is anyway
