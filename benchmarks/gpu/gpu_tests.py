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

from benchmarks.gpu import pytest_rows
from benchmarks.gpu.gpu_record import Record
from benchmarks.gpu.gpu_rows import latest
from benchmarks.harness.errors import is_crowded
from benchmarks.harness.origin import CARRIED, ROOT
from benchmarks.harness.rows import Row
from benchmarks.harness.sessions import kill_group

PACKAGES = CARRIED / "packages"
"""pytest and what it needs, for a machine without them; `make gpu-cache` puts them there."""
_LEAST = 10.0
"""Seconds that pytest needs before its first test begins, in many processes."""
_MARK, _FIRST = "pytest.mark.gpu", "kernels"
"""What files with such tests hold, and the folder of those that come first."""
_GREEN, _FAILED = (0, 5), 1
"""pytest's exit statuses: all passed, none selected; some failed. The last is also Python's own,
when pytest did not start.
"""


def run_tests(record: Record, end: float) -> None:
    """All tests marked gpu that have not passed; a row that says so where pytest cannot run."""
    if record.is_right({"check": "tests"}):
        return
    if not _is_here("pytest"):
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
        crowded = any(is_crowded(row.get("why", "")) for row in record.rows[before:])
        if status in _GREEN and crowded:
            record.add(_about_tests("some found no memory"))
        elif status in _GREEN:
            record.add({"check": "tests", "passed": True})
        elif status == _FAILED and len(record.rows) > before:
            record.add(_about_tests("some failed or could not run"))
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
        pass_fds=(write,), env=_environment() | {pytest_rows.PIPE: str(write)}, process_group=0,
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
    command += ["-p", pytest_rows.__name__, "--continue-on-collection-errors"]
    if _is_here("xdist") and jobs > 1:
        command += ["-n", str(jobs)]
    if not _is_here("hypothesis"):  # which the tests' own settings import
        command += ["--noconftest"]
    for test in passed:
        command += ["--deselect", test]
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    files.sort(key=lambda file: _FIRST not in file.parts)
    marked = [file for file in files if _MARK in file.read_text(encoding="utf-8")]
    return command + [file.relative_to(ROOT).as_posix() for file in marked]


def _is_here(package: str) -> bool:
    return importlib.util.find_spec(package) is not None or (PACKAGES / package).is_dir()


def _environment() -> dict[str, str]:
    """With the packages that were carried, if the machine lacks one of them."""
    if importlib.util.find_spec("pytest") and importlib.util.find_spec("xdist"):
        return dict(os.environ)
    path = [os.environ.get("PYTHONPATH", ""), str(PACKAGES)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


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
