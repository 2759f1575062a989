"""A warm process in a copy of the project that tries one fault after another.

It has imported the heavy libraries but nothing of the project, and forks for each fault: the
child starts in milliseconds and imports the faulty source afresh. Runs as a script, whose only
import path is the copy. One JSON request a line comes in, one JSON answer a line goes out; the
process ends with its input.
"""

import contextlib
import importlib
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path


class FirstFailure:
    """A pytest plugin that keeps the first test that failed."""

    node = ""

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.node:
            self.node = report.nodeid

    def pytest_collectreport(self, report):
        if report.failed and not self.node:
            self.node = report.nodeid


def run_tests(tests: list[str], arguments: list[str], seconds: float, pipe: int) -> None:
    """The child: pytest in this process, its exit code and first failure written to the pipe."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)  # the end, whatever the fault made hang
    sink = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(sink, stream)
    import pytest

    first = FirstFailure()
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    code = int(pytest.ExitCode.NO_TESTS_COLLECTED)
    for file in tests:  # one by one: what fails early spares the others' collection
        ended = int(pytest.main([*options, file], plugins=[first]))
        if ended != pytest.ExitCode.NO_TESTS_COLLECTED:
            code = ended
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            break
    os.write(pipe, json.dumps({"code": code, "node": first.node}).encode())


CLOCK = itertools.count(int(time.time()))


def write(path: Path, source: str) -> None:
    """Write a source, at a time of its own: Python knows stale byte code by seconds and size."""
    path.write_text(source, encoding="utf-8")
    os.utime(path, 2 * (next(CLOCK),))


def attempt(request: dict) -> dict:
    """Put the fault in, run the tests in a forked child, take the fault out again."""
    path, original = None, ""
    if request["file"]:
        path = Path(request["file"])
        original = path.read_text(encoding="utf-8")
        write(path, request["source"])
    began = time.perf_counter()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.setsid()
            os.close(reading)
            run_tests(request["tests"], request["arguments"], request["seconds"], writing)
            status = 0
        finally:
            os._exit(status)  # no exit handler of the libraries: the answer is written
    os.close(writing)
    try:
        status = os.waitpid(child, 0)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what the tests started themselves
        if path is not None:
            write(path, original)
    with os.fdopen(reading, "rb") as pipe:
        answer = json.loads(pipe.read() or b'{"code": -1, "node": ""}')
    answer["timeout"] = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
    answer["seconds"] = time.perf_counter() - began
    return answer


def main(warm: list[str]) -> None:
    """Import what is heavy, then serve."""
    sys.path[0] = os.getcwd()  # instead of this script's own folder
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the child too, see attempt
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for name in warm:
        with contextlib.suppress(ImportError):  # an extra that is not installed
            importlib.import_module(name)
    loaded = [name for name in sys.modules if name.split(".")[0] == "sparsebert"]
    assert not loaded, f"imported before the fault: {loaded}"
    for line in sys.stdin:
        print(json.dumps(attempt(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
