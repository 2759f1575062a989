"""Processes that are ended together with all that they started: groups, and sessions of groups."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_PATIENCE = 2.0
"""Seconds for killed processes to go; one that waits for a GPU's driver may never."""


def run_group(
    command: Sequence[str], seconds: float, *, cwd: Path, environment: Mapping[str, str]
) -> tuple[int | None, str]:
    """Run a command for so long at most; its exit status, None if it was killed, and its output.

    What it started is killed with it, also where it ended by itself. It stays in the caller's
    session. Raises OSError if there is no such program.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
            stdout=said, stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
        status = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(max(0.0, seconds))
        finally:
            kill_group(process)
        said.seek(0)
        return status, said.read().decode(errors="replace").strip()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads its group, with the group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)


def kill_session(leader: int) -> list[int]:
    """Kill all processes of the session of `leader`, but not the caller; those that stay.

    A process that began with `start_new_session=True` leads a session; what it started belongs to
    it, whatever group it is in and whether its parent still lives.
    """
    end = time.monotonic() + _PATIENCE
    while found := _members(leader):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if time.monotonic() > end:
            return found
        time.sleep(0.01)
    return []


def _members(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, IndexError):  # it ended meanwhile
            # "pid (name) state parent group session ...", where a name may hold anything.
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                found.append(int(entry.name))
    return found
