"""What every benchmark needs: where numbers come from, and timing side by side."""

from __future__ import annotations

import collections
import ctypes
import datetime
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

import sparsebert

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Changes to the results themselves do not make the code that made them another.
_SOURCES = ("--untracked-files=no", "--", ".", ":!benchmarks/results")


def provenance() -> dict[str, str]:
    """Machine, versions, commit and date; goes into every row."""
    return {
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "sparsebert": sparsebert.__version__,
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
        "tree": "dirty" if _git("status", "--porcelain", *_SOURCES) else "clean",
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_MOST_FROM_HEAP = 32 * 2**20  # what glibc allows


def keep_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the system after a call.

    Else the next call faults its pages in again, or does not, as the heap happens to lie: on a CPU
    that made equal calls differ by a third. Does nothing under another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.libc_ver()[0] else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _MOST_FROM_HEAP)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def side_by_side(
    calls: dict[str, Callable[[], object]], *, seconds: float, least: int = 5
) -> dict[str, list[float]]:
    """Time several calls in turn, so that a drifting machine hits all alike.

    Rounds go on until `seconds` have passed and at least `least` are done; each begins with
    another of them (A B C, B C A, ...). In its turn each is called twice and the second call is
    timed: what ran before it leaves its traces in caches and in the memory allocator, which cost
    up to 1.6 times the time after plain torch operations with their large matrices. Returns the
    times of each in milliseconds, round by round.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    order = collections.deque(calls.items())
    rounds = 0
    while rounds < least or time.perf_counter() - start < seconds:
        for name, call in order:
            call()
            before = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - before) * 1e3)
        order.rotate(-1)
        rounds += 1
    return times


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """The 20 %, 50 % and 80 % quantiles."""
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]
