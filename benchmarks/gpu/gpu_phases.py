"""Phases, one after the other, within a time that no fault of theirs can lengthen.

Each phase is a function `phase(seconds, record) -> None` and runs in a process of its own, in a
session of its own. One that overruns, hangs in a compiler or in the GPU's driver is killed with
all that it started; its rows are on disk. A phase that ends early leaves its time to those to
come. What it imports is imported while the phase before it runs. This process waits and writes a
row about each phase; it imports no torch, so that nothing here can hang.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.gpu_record import Record
from benchmarks.harness.errors import in_words, is_fatal
from benchmarks.harness.origin import COLUMNS
from benchmarks.harness.rows import Row
from benchmarks.harness.sessions import kill_session

GRACE = 3.0
"""Seconds beyond its own that a phase has for its last rows."""
LEAST = 1.0
"""A phase is not begun with fewer seconds."""
_COMPLETE, _INCOMPLETE, _FAILED = 0, 3, 4


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        name: what its rows and the screen call it.
        seconds: its share of the time, in seconds of `table`'s sum.
        function: "module:function", of the seconds that it has and the record.
        limit: it gets this many seconds if there are twice as many left, not its share.
        always: it runs though an earlier run completed it.
        until: it runs beside the phases that follow, up to the one of this name.
    """

    name: str
    seconds: float
    function: str
    limit: float | None = None
    always: bool = False
    until: str = ""


class Run:
    """Phases and the time for all of them.

    Args:
        phases: in order.
        path: of the rows.
        origin: the provenance of a row, "run" at least; the rest comes from the first row of check
            "machine", since asking a GPU for its name may take for ever.
        end: `time.monotonic()` by which all of them have ended, but for `GRACE`.
        device: "cuda", or "cpu" in the interpreter.
        earlier: a file of an earlier run, see `Record`.
        environment: of the phases' processes, beside this one's.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        path: Path,
        origin: Mapping[str, str],
        *,
        end: float,
        device: str = "cuda",
        earlier: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.todo = list(phases)
        self.path, self.origin, self.end = path, dict(origin), end
        self.device, self.earlier = device, earlier
        self.environment = {**os.environ, **(environment or {})}
        self._beside: list[_Process] = []
        self._ready: dict[str, _Process] = {}

    def record(self) -> Record:
        """The rows up to now."""
        return Record(self.path, self.origin, device=self.device, earlier=self.earlier)

    def leave_out_complete(self) -> None:
        """Take out of the phases to come those that the rows say are complete."""
        last = {r["phase"]: r for r in self.record().rows if r["check"] == "phase"}
        complete = {name for name, row in last.items() if row["passed"] is True}
        for phase in list(self.todo):
            if phase.name in complete and not phase.always:
                self.todo.remove(phase)
                print(f"left out: {phase.name} is complete", flush=True)
        names = ["", *(phase.name for phase in self.todo)]
        self.todo = [phase for phase in self.todo if phase.until in names]

    def next(self) -> None:
        """Run the first of the phases to come, as long as it may take."""
        phase = self.todo[0]
        for process in [p for p in self._beside if p.phase.until == phase.name]:
            self._finish(process, time.monotonic())
        seconds = self._seconds(phase)
        self.todo.pop(0)
        if seconds < LEAST:
            row = {"check": "phase", "phase": phase.name, "passed": None, "why": "out of time"}
            self.record().add(row)
            return
        process = self._ready.pop(phase.name, None) or self._process(phase)
        process.begin(seconds, self.origin)
        if phase.until:
            self._beside.append(process)
            return
        self._prepare_next()
        self._finish(process, process.deadline)

    def stop(self) -> None:
        """End all processes that are left."""
        for process in self._beside:
            self._finish(process, time.monotonic())
        for process in self._ready.values():
            process.kill()
        self._ready.clear()

    def _prepare_next(self) -> None:
        """Let the next phase in turn, and those that begin beside it, import what they need."""
        for phase in self.todo:
            if phase.name not in self._ready:
                self._ready[phase.name] = self._process(phase)
            if not phase.until:
                break

    def _process(self, phase: Phase) -> _Process:
        return _Process(phase, self.path, self.device, self.earlier, self.environment)

    def _seconds(self, phase: Phase) -> float:
        """Its part of what is left, by the shares of all that are to come."""
        left = self.end - time.monotonic()
        in_turn = [p for p in self.todo if not p.until]
        whole = sum(p.seconds for p in in_turn) or 1.0
        if phase.until:  # as long as those that it runs beside
            names = [p.name for p in self.todo]
            until = names.index(phase.until) if phase.until in names else len(names)
            return left * sum(p.seconds for p in self.todo[:until] if not p.until) / whole
        share = left * phase.seconds / whole
        return share if phase.limit is None else max(share, min(phase.limit, left / 2))

    def _finish(self, process: _Process, deadline: float) -> None:
        """Wait for a process, end all of its session, and say what became of it."""
        try:
            row = process.outcome(deadline)
        finally:
            process.kill()
            if process in self._beside:
                self._beside.remove(process)
        self._complete_origin()
        self.record().add(row)

    def _complete_origin(self) -> None:
        if "commit" not in self.origin:
            for row in self.record().rows:
                mine = row["check"] == "machine" and row["run"] == self.origin["run"]
                if mine and "commit" in row:  # else the phase failed before it knew
                    self.origin |= {name: row[name] for name in (*COLUMNS, "triton")}


class _Process:
    """The process of one phase; it has imported what it needs and waits until it may begin."""

    def __init__(
        self,
        phase: Phase,
        path: Path,
        device: str,
        earlier: Path | None,
        environment: Mapping[str, str],
    ) -> None:
        self.phase = phase
        self.files = {"path": str(path), "earlier": str(earlier or ""), "device": device}
        command = [sys.executable, "-m", "benchmarks.gpu.gpu_phases", phase.function]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env=dict(environment), text=True,
            start_new_session=True,
        )  # fmt: skip
        self.seconds, self.deadline, self.started = 0.0, 0.0, 0.0

    def begin(self, seconds: float, origin: Mapping[str, str]) -> None:
        self.started = time.monotonic()
        self.seconds, self.deadline = seconds, self.started + seconds + GRACE
        message = {**self.files, "phase": self.phase.name, "seconds": seconds, "origin": origin}
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; `outcome` says so
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def outcome(self, deadline: float) -> Row:
        """Wait until then; the row about the phase."""
        try:
            status: int | None = self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = None
        row: dict[str, Any] = {"check": "phase", "phase": self.phase.name, "passed": None}
        row |= {
            "took_s": round(time.monotonic() - self.started, 1),
            "of_s": round(self.seconds, 1),
        }
        if status == _COMPLETE:
            return row | {"passed": True}
        known = {
            None: "cut: it did not end in its time",
            _INCOMPLETE: "some of it is wrong or was not done",
            _FAILED: "it failed, as its row says",
        }
        return row | {"why": known.get(status, f"its process died, exit status {status}")}

    def kill(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        kill_session(self.process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the driver may hold on to it
            self.process.wait(0.1)


def _serve(function: str) -> int:
    """The process of a phase: import, wait for the word to begin, run."""
    error: Exception | None = None
    try:
        module, _, name = function.partition(":")
        run = getattr(importlib.import_module(module), name)
    except Exception as caught:
        error = caught
    line = sys.stdin.readline()
    if not line:
        return 0
    threading.Thread(target=_end_with_parent, daemon=True).start()
    message = json.loads(line)
    earlier = Path(message["earlier"]) if message["earlier"] else None
    record = Record(
        Path(message["path"]), message["origin"], phase=message["phase"],
        device=message["device"], earlier=earlier,
    )  # fmt: skip
    try:
        if error is not None:
            raise error
        run(message["seconds"], record)
    except Exception as caught:  # what a phase does not expect is a row as well
        passed = False if is_fatal(caught) else None
        record.add({"check": message["phase"], "passed": passed, "why": in_words(caught)})
        return _FAILED
    return _COMPLETE if record.is_complete else _INCOMPLETE


def _end_with_parent() -> None:
    """A run that is killed leaves nothing behind that holds the GPU."""
    sys.stdin.read()
    kill_session(os.getsid(0))
    os._exit(1)


if __name__ == "__main__":
    status = _serve(sys.argv[1])
    sys.stdout.flush()
    os._exit(status)  # not by way of what a driver does at exit, which may hang
