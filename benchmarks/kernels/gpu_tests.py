"""The tests that need a GPU (`pytest -m gpu`) within a time, a row each as soon as it is done."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

from benchmarks.harness.origin import ROOT
from benchmarks.harness.rows import Row
from benchmarks.harness.sessions import kill_group
from benchmarks.kernels import pytest_rows
from benchmarks.kernels.gpu_record import Record
from benchmarks.kernels.gpu_rows import latest

_LEAST = 10.0
"""Seconds that pytest needs before its first test begins, in many processes."""
_MARK, _FIRST = "pytest.mark.gpu", "kernels"
"""What files with such tests hold, and the folder of those that come first."""
_FAILED, _USABLE = 1, (0, 1, 5)
"""pytest's exit statuses when it ran: all passed, some failed (Python's, too, when it did not
start), none selected."""


def run_tests(record: Record, end: float) -> None:
    """All tests marked gpu that have not passed; a row that says so where pytest cannot run."""
    if importlib.util.find_spec("pytest") is None:
        record.add(_about_tests("pytest is not installed"), final=True)
        return
    if end - time.monotonic() < _LEAST:
        record.add(_about_tests("out of time"))
        return
    last = latest(row for row in record.rows if row["check"] == "test").values()
    passed = [row["test"] for row in last if row["passed"] is True]
    with tempfile.TemporaryFile() as said:
        before = len(record.rows)
        status = _run_pytest(_command(passed, record.jobs), said, record, end)
        if status in _USABLE and (status != _FAILED or len(record.rows) > before):
            record.add({"check": "tests", "passed": True})
        elif status is None:
            record.add(_about_tests("out of time"))
        else:
            said.seek(0)
            last_words = " ".join(said.read().decode(errors="replace").split())[-300:]
            record.add(_about_tests(f"exit status {status}: {last_words}"))


def _run_pytest(command: list[str], said: IO[bytes], record: Record, end: float) -> int | None:
    """Its exit status, None if it was cut; a row for each test that ended, or was running then."""
    read, write = os.pipe()
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
        pass_fds=(write,), env={**os.environ, pytest_rows.PIPE: str(write)}, process_group=0,
    )  # fmt: skip
    os.close(write)
    running: set[str] = set()
    try:
        for found in _lines(read, end):
            if found.pop("begins", False):
                running.add(found["test"])
                continue
            running.discard(found["test"])
            final = found.pop("final")
            record.add({"check": "test", **found}, final=final)
        status: int | None = process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        status = None
    finally:
        os.close(read)
        kill_group(process)
    for test in sorted(running):
        why = "it, or its process, came to no end"
        record.add({"check": "test", "test": test, "passed": None, "why": why})
    return status


def _about_tests(why: str) -> Row:
    return {"check": "tests", "passed": None, "why": why}


def _command(passed: list[str], jobs: int) -> list[str]:
    """pytest over the files that have such tests, in as many processes as it can."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += ["-p", pytest_rows.__name__]
    if importlib.util.find_spec("xdist") is not None and jobs > 1:
        command += ["-n", str(jobs)]
    if importlib.util.find_spec("hypothesis") is None:  # which the tests' own settings import
        command += ["--noconftest"]
    for test in passed:
        command += ["--deselect", test]
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    files.sort(key=lambda file: _FIRST not in file.parts)
    marked = [file for file in files if _MARK in file.read_text(encoding="utf-8")]
    return command + [file.relative_to(ROOT).as_posix() for file in marked]


def _lines(pipe: int, end: float) -> Iterator[dict[str, Any]]:
    """What the plugin writes, as it comes, until the pipe or the time ends."""
    text = b""
    while (left := end - time.monotonic()) > 0:
        if not select.select([pipe], [], [], left)[0]:
            return
        more = os.read(pipe, 1 << 16)
        if not more:
            return
        *lines, text = (text + more).split(b"\n")
        yield from (json.loads(line) for line in lines)
