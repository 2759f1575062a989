"""A plugin of pytest that tells each result at once, through a pipe, as JSON lines.

pytest's own report comes when all tests are done, and would be lost if one of them hangs. And a
process that has lost its GPU ends before its next test, which would fail for no fault of its own:
pytest-xdist then starts another one.
"""

from __future__ import annotations

import json
import os
from typing import Any

from benchmarks.harness.errors import is_crowded, is_fatal

PIPE = "SPARSEBERT_TEST_RESULTS"
"""The environment variable with the file descriptor to write to."""
_WORDS = 300
_LOST = 70
"""Exit status of a process that has lost its GPU."""
_state = {"lost": False}


def pytest_runtest_logstart(nodeid: str) -> None:
    """A test begins."""
    _tell({"test": nodeid, "begins": True})


def pytest_runtest_logreport(report: Any) -> None:
    """A test is done, or could not begin.

    It is wrong if it failed in its own body, but for memory that others had taken. One that was
    skipped is done with, but for that reason.
    """
    if report.when == "teardown" or (report.when == "setup" and report.passed):
        return
    why = "" if report.passed else _reason(report)
    crowded = is_crowded(why)
    wrong = report.failed and report.when == "call" and not crowded
    row: dict[str, Any] = {
        "test": report.nodeid,
        "passed": True if report.passed else False if wrong else None,
        "seconds": round(report.duration, 2),
        "final": report.skipped and not crowded,
    }
    _tell(row | ({"why": why} if why else {}))


def pytest_exception_interact(call: Any) -> None:
    """A test failed in this process."""
    _state["lost"] = is_fatal(call.excinfo.value) and not _answers()


def pytest_runtest_setup() -> None:
    """The next test begins in this process."""
    if _state["lost"]:
        os._exit(_LOST)


def _answers() -> bool:
    import torch

    try:
        return float(torch.ones(8, device="cuda").sum()) == 8.0
    except Exception:
        return False


def _reason(report: Any) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(report.longrepr if crash is None else crash.message).strip()[:_WORDS]


def _tell(row: dict[str, Any]) -> None:
    """To the process that waits; those of xdist report to the first, which tells."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.write(int(os.environ[PIPE]), json.dumps(row).encode() + b"\n")
