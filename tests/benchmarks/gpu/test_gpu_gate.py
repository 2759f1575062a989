"""The phases that check: their order, what is done again, bad news, and pytest in a process."""

import dataclasses
import json
import sys
import time

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.gpu import (
    compile_cache,
    gpu_cases,
    gpu_gate,
    gpu_repeats,
    gpu_sanitizer,
    gpu_tests,
)
from benchmarks.gpu.gpu_cases import BAND, PLAIN, KernelCase
from benchmarks.gpu.gpu_record import Record
from benchmarks.gpu.gpu_summary import summary
from sparsebert.kernels import launch
from tests.benchmarks.gpu.phases_to_run import ORIGIN

CASES = [KernelCase("16", BAND, n, 64, "bfloat16", PLAIN) for n in (1, 2, 3, 4)]


def record_in(tmp_path, run="r"):
    return Record(tmp_path / "rows.jsonl", {**ORIGIN, "run": run}, device="cpu")


def soon(seconds=100.0):
    return time.monotonic() + seconds


@pytest.fixture
def checked(monkeypatch):
    """The lengths of the cases that were checked; "passed" of each is what `verdicts` says."""
    seen, verdicts = [], {}

    def check_row(case, device):
        seen.append(case.n)
        verdict = verdicts.get(case.n, True)
        if verdict is KeyboardInterrupt:
            raise KeyboardInterrupt
        why = {} if verdict is True else {"why": "out of memory" if verdict is None else "wrong"}
        return case.row | {"passed": verdict, "heights": [16]} | why

    monkeypatch.setattr(gpu_gate, "check_row", check_row)
    monkeypatch.setattr(gpu_gate, "run_tests", lambda record, end: None)
    monkeypatch.setattr(gpu_cases, "smoke_cases", lambda: CASES)
    return seen, verdicts


def test_a_run_that_is_cut_short_loses_nothing_and_goes_on(tmp_path, checked):
    seen, verdicts = checked
    verdicts[3] = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        gpu_gate.gate(100.0, record_in(tmp_path))
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [1, 2]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"check": "corr')  # and the last line is cut off
    del verdicts[3]
    record = record_in(tmp_path, "second")
    gpu_gate.gate(100.0, record)
    assert seen == [1, 2, 3, 3, 4]
    assert [row["n"] for row in record.rows] == [1, 2, 3, 4] and record.is_complete


def test_what_was_wrong_comes_first_in_the_second_run_and_stays_in_the_summary(tmp_path, checked):
    seen, verdicts = checked
    verdicts |= {2: None, 3: False}
    first = record_in(tmp_path)
    gpu_gate.gate(100.0, first)
    assert not first.is_complete and "1 failed, 1 not run" in summary(first.rows)
    verdicts.clear(), seen.clear()
    second = record_in(tmp_path, "second")
    gpu_gate.gate(100.0, second)
    assert seen == [3, 2] and second.is_complete
    text = summary(second.rows)
    assert "4 passed, 0 failed, 0 not run" in text and "it was WRONG before" in text


def test_without_time_no_case_is_checked_and_each_says_so(tmp_path, checked):
    seen, _ = checked
    record = record_in(tmp_path)
    gpu_gate.gate(-1.0, record)
    assert [row["why"] for row in record.rows] == ["out of time"] * 4 and not seen


@pytest.mark.parametrize("change", [{"tree": "dirty"}, {"commit": "d"}, {"processor": "B"}])
def test_only_rows_of_the_same_machine_and_commit_count(tmp_path, change):
    path = tmp_path / "rows.jsonl"
    row = CASES[0].row | {"passed": True}
    record_in(tmp_path).add(row)
    assert record_in(tmp_path, "second").is_right(row)
    assert not Record(path, {**ORIGIN, **change, "run": "second"}).rows
    dirty = Record(path, {**ORIGIN, **change, "run": "third"})
    dirty.add(row)
    assert Record(path, {**ORIGIN, **change, "run": "third"}).is_right(row)  # of this very run


def test_a_folder_that_cannot_be_written_to_is_an_error_before_anything_runs(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Record(tmp_path / "file" / "rows.jsonl", ORIGIN)


def test_cases_without_memory_are_checked_again_beside_fewer_others(tmp_path, monkeypatch):
    asked = []

    def results_of(check, cases, jobs, *, end, limit):
        asked.append((len(cases), jobs))
        why = {"why": "CUDA out of memory", "passed": None}
        return ((c, c.row | (why if jobs > 3 and c.n < 3 else {"passed": True})) for c in cases)

    monkeypatch.setattr(gpu_gate.workers, "results_of", results_of)
    record = record_in(tmp_path)
    record.device, record.jobs = "cuda", 12
    gpu_gate.check_cases(record, CASES, soon())
    assert asked == [(4, 12), (2, 3)]
    assert all(record.is_right(case.row) for case in CASES) and len(record.rows) == 4


# ------------------------------------------------------------------------------ the tests

TESTS = """
import time, pytest

def test_right(): pass
def test_wrong(): assert 1 == 2, "it is not"
@pytest.mark.skip(reason="one device only")
def test_skipped(): pass
def test_large(): pytest.skip("out of memory: needs 34.4 GB")
@pytest.fixture
def broken(): raise RuntimeError("no fixture")
def test_not_set_up(broken): pass
def test_crowded(): raise MemoryError("CUDA out of memory")
def test_hangs(): time.sleep(600)
def test_never(): pass
"""


def pytest_rows(tmp_path, monkeypatch, seconds, *options, text=TESTS):
    """The rows of these tests, by the test's name."""
    tmp_path.mkdir(exist_ok=True)
    file = tmp_path / "test_made_up.py"
    file.write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu.pytest_rows"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(file), *options]
    monkeypatch.setattr(gpu_tests, "_command", lambda passed, jobs: command)
    monkeypatch.setattr(gpu_tests, "_LEAST", 0.0)
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)  # or the inner run takes itself for a worker
    record = record_in(tmp_path)
    start = time.monotonic()
    gpu_tests.run_tests(record, start + seconds)
    assert time.monotonic() < start + seconds + 2.5
    return {r.get("test", "").rpartition("::")[2] or r["check"]: r for r in record.rows}


def test_each_test_is_a_row_at_once_and_a_hanging_one_costs_those_behind_it(tmp_path, monkeypatch):
    rows = pytest_rows(tmp_path, monkeypatch, 15.0)
    verdicts = {name: row["passed"] for name, row in rows.items()}
    assert verdicts == {
        "test_right": True, "test_wrong": False, "test_skipped": None, "test_not_set_up": None,
        "test_large": None, "test_crowded": None, "test_hangs": None, "tests": None,
    }  # fmt: skip
    assert "it is not" in rows["test_wrong"]["why"]
    assert rows["test_skipped"]["why"].endswith("one device only")
    assert "no fixture" in rows["test_not_set_up"]["why"]
    assert "came to no end" in rows["test_hangs"]["why"] and rows["tests"]["why"] == "out of time"


def test_pytest_in_several_processes_tells_each_test_once(tmp_path, monkeypatch):
    pytest.importorskip("xdist")
    rows = pytest_rows(tmp_path, monkeypatch, 60.0, "-n", "2", "-k", "right or wrong or skipped")
    assert len(rows) == 4 and "some failed" in rows["tests"]["why"]
    assert rows["test_wrong"]["passed"] is False


LOSING = """
import pytest

def test_loses_it(): raise RuntimeError("Triton Error [CUDA]: an illegal memory access")
@pytest.mark.parametrize("number", range(4))
def test_behind(number):
    import benchmarks.gpu.pytest_rows as plugin
    assert not plugin._state["lost"]
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which answers")
def test_a_process_that_lost_its_gpu_makes_no_other_test_wrong(tmp_path, monkeypatch):
    pytest.importorskip("xdist")
    rows = pytest_rows(tmp_path, monkeypatch, 60.0, "-n", "1", text=LOSING)
    verdicts = [rows[f"test_behind[{number}]"]["passed"] for number in range(4)]
    assert rows["test_loses_it"]["passed"] is False
    assert verdicts == [None, True, True, True]  # the first did not run: it is done again


def test_a_test_that_found_no_memory_is_run_again(tmp_path, monkeypatch):
    """One that was skipped for another reason is not: another run would not get further."""
    rows = pytest_rows(tmp_path, monkeypatch, 60.0, "-k", "right or large or skipped")
    assert rows["tests"]["passed"] is None and "no memory" in rows["tests"]["why"]
    rows = pytest_rows(tmp_path / "b", monkeypatch, 60.0, "-k", "right or skipped")
    assert rows["tests"]["passed"] is True


def test_a_pytest_that_does_not_run_says_why(tmp_path, monkeypatch):
    rows = pytest_rows(tmp_path, monkeypatch, 60.0, "--no-such-option")
    assert "exit status 4" in rows["tests"]["why"] and "no-such-option" in rows["tests"]["why"]
    monkeypatch.setattr(gpu_tests.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu_tests, "PACKAGES", tmp_path)
    record = record_in(tmp_path / "b")
    gpu_tests.run_tests(record, soon())
    assert "not installed" in record.rows[0]["why"] and record.is_complete


def test_tests_that_passed_are_not_run_again_and_only_files_with_such_tests_are_read():
    command = gpu_tests._command(["tests/kernels/test_gpu.py::test_a"], 12)
    assert command[command.index("--deselect") + 1] == "tests/kernels/test_gpu.py::test_a"
    files = [word for word in command if word.endswith(".py")]
    assert files[:2] == ["tests/kernels/test_gpu.py", "tests/kernels/test_peer_cases.py"]
    assert "tests/masks/test_patterns.py" not in command


def test_a_machine_without_pytest_takes_the_one_that_was_carried(tmp_path, monkeypatch):
    (tmp_path / "pytest").mkdir()
    monkeypatch.setattr(gpu_tests, "PACKAGES", tmp_path)
    assert str(tmp_path) not in gpu_tests._environment().get("PYTHONPATH", "")
    monkeypatch.setattr(gpu_tests.importlib.util, "find_spec", lambda name: None)
    assert gpu_tests._environment()["PYTHONPATH"].endswith(str(tmp_path))
    command = gpu_tests._command([], 12)
    assert "--noconftest" in command and "-n" not in command
    (tmp_path / "xdist").mkdir()
    assert "-n" in gpu_tests._command([], 12)


# ------------------------------------------------------------------------------ sanitizer, repeats


def sanitizer(tmp_path, monkeypatch, script):
    """A program of that name on the path, and nothing else."""
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return gpu_sanitizer.sanitize("memcheck", 5.0 if "sleep" not in script else 0.2)


@pytest.mark.parametrize(
    ("script", "passed", "why"),
    [
        ("exit 0", True, ""),
        ("echo Invalid __global__ write of size 4; exit 99", False, "Invalid __global__ write"),
        ("echo Device not supported; exit 1", None, "status 1: Device not supported"),
        ("echo Error: Internal Sanitizer Error; exit 99", None, "Internal Sanitizer Error"),
        ("sleep 60; true", None, "took more than"),
        ('case "$*" in *kernel-name*) echo no such option; exit 1;; esac', True, ""),
        ('case "$*" in *substring=dq_kernel*) exit 0;; esac; exit 99', True, ""),
    ],
)
def test_only_what_the_sanitizer_finds_is_red(tmp_path, monkeypatch, script, passed, why):
    row = sanitizer(tmp_path, monkeypatch, script)
    assert row["passed"] is passed and why in row.get("why", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_the_sanitizer_runs_is_every_kernel(monkeypatch):
    launched = set()
    for name, launcher in launch._LAUNCHERS.items():
        monkeypatch.setitem(
            launch._LAUNCHERS, name,
            lambda *arguments, name=name, launcher=launcher: [
                launched.add(f"{name}_kernel"), launcher(*arguments)
            ],
        )  # fmt: skip
    gpu_sanitizer.run_kernels("cpu")
    assert launched == set(compile_cache.KERNELS)


def test_a_missing_sanitizer_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(gpu_sanitizer, "_PLACE", tmp_path / "nowhere")
    assert "not installed" in gpu_sanitizer.sanitize("memcheck", 5.0)["why"]


def test_results_that_change_from_call_to_call_are_red(monkeypatch):
    repeat = gpu_repeats.Repeat("star", 9, "fp32", 0.1)
    assert gpu_repeats.check_repeat(repeat, "cpu") == {"passed": True, "repeats": 2}
    backward, noise = gpu_repeats.kernels.backward, iter((0.0, 1e-7))

    def unsteady(*arguments):
        found = backward(*arguments)
        return found[0] + next(noise), *found[1:]

    monkeypatch.setattr(gpu_repeats.kernels, "backward", unsteady)
    row = gpu_repeats.check_repeat(repeat, "cpu")
    assert row == {"passed": False, "why": "repeat 1: dq differ"}
    monkeypatch.setattr(gpu_repeats.kernels, "backward", lambda *arguments: 1 / 0)
    assert gpu_repeats.check_repeat(repeat, "cpu")["passed"] is None


def test_what_the_last_phase_found_right_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_repeats, "whole_models", lambda *arguments: {"passed": True})
    record = record_in(tmp_path)
    gpu_repeats.repeats(100.0, record)
    again = record_in(tmp_path, "second")
    before = len(again.rows)
    gpu_repeats.repeats(100.0, again)
    assert [row["check"] for row in again.rows[before:]] == ["memcheck", "racecheck"]
    assert dataclasses.asdict(gpu_repeats.REPEATS[0])["n"] == 512
