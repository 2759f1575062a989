"""Many independent tasks in a few processes, none of which can take the others with it.

A process that dies, hangs or loses its GPU costs its task alone: another process takes its place.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmarks.harness.errors import in_words, is_fatal

OUT_OF_TIME = "out of time"
"""Why a task has no result, if it was not begun, or not done at the end."""
_PATIENCE = 2.0
"""Seconds for a killed process to go; one that waits for a GPU's driver may never."""


class LostDevice(Exception):
    """Raised by a task's function: the GPU is lost to this process; the message says why."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """In place of a result: `wrong` if the task's own code did it, else it was not carried out."""

    why: str
    wrong: bool = False


def results_of(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    jobs: int,
    *,
    end: float,
    limit: float,
    is_pointless: Callable[[Any], bool] = lambda task: False,
) -> Iterator[tuple[Any, Any]]:
    """Each task with what `function` returned, as they finish, or a `Failure`.

    Args:
        function: of a task; a module's own, so that new processes find it.
        jobs: processes; 0 calls `function` in this one, where nothing protects it.
        end: `time.monotonic()` when nothing is begun any more, and what runs is given up.
        limit: seconds that one task may take.
        is_pointless: asked of a task before it begins; one that is so is left out.
    """
    if jobs == 0:
        for task in tasks:
            if is_pointless(task):
                continue
            late = time.monotonic() > end
            yield task, Failure(OUT_OF_TIME) if late else _call(function, task)
        return
    todo = collections.deque(tasks)
    idle: list[_Worker] = []
    busy: dict[Connection, _Worker] = {}
    try:
        while todo or busy:
            while todo and len(busy) < jobs and time.monotonic() < end:
                if is_pointless(todo[0]):
                    todo.popleft()
                    continue
                worker = idle.pop() if idle else None
                if worker is None or not worker.process.is_alive():
                    worker = _Worker(function)
                worker.begin(todo.popleft())
                busy[worker.pipe] = worker
            if todo and time.monotonic() >= end:
                yield from ((task, Failure(OUT_OF_TIME)) for task in todo)
                todo.clear()
            if not busy:
                continue
            first = min(worker.started for worker in busy.values())
            patience = min(first + limit, end) - time.monotonic()
            for pipe in wait(list(busy), max(0.0, patience)):
                assert isinstance(pipe, Connection)
                worker = busy.pop(pipe)
                result, is_usable = worker.result()
                yield worker.task, result
                (idle.append if is_usable else _Worker.stop)(worker)
            now = time.monotonic()
            late = [w for w in busy.values() if now >= end or now >= w.started + limit]
            for worker in late:
                del busy[worker.pipe]
            _stop_all(late)
            for worker in late:
                took = f"no result after {now - worker.started:.0f} s"
                yield worker.task, Failure(OUT_OF_TIME if now >= end else took)
    finally:
        _stop_all([*idle, *busy.values()])


def _stop_all(workers: Sequence[_Worker]) -> None:
    """Kill all before waiting for the first: to give a GPU back takes each a moment."""
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.stop()


class _Worker:
    """A process and the task that it has."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Any = None
        self.started = 0.0

    def begin(self, task: Any) -> None:
        self.task, self.started = task, time.monotonic()
        with contextlib.suppress(OSError):  # it died; `result` says so
            self.pipe.send(task)

    def result(self) -> tuple[Any, bool]:
        """The result, and whether the process can take another task."""
        try:
            result = self.pipe.recv()
        except (EOFError, OSError):  # the latter where it died before it read its task
            self.process.join(_PATIENCE)
            return Failure(f"its process died, exit status {self.process.exitcode}"), False
        return result, not (isinstance(result, Failure) and result.wrong)

    def stop(self) -> None:
        self.process.kill()
        self.process.join(_PATIENCE)
        self.pipe.close()


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    while True:
        pipe.send(_call(function, pipe.recv()))


def _call(function: Callable[[Any], Any], task: Any) -> Any:
    try:
        return function(task)
    except LostDevice as error:
        return Failure(str(error), wrong=True)
    except Exception as error:  # which the function should have caught
        return Failure(in_words(error), wrong=is_fatal(error))
