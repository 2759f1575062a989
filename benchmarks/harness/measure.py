"""What every benchmark needs: where numbers come from, and a memory allocator that keeps still."""

from __future__ import annotations

import ctypes
import datetime
import platform
import subprocess
from pathlib import Path

import torch

import sparsebert
from sparsebert.machine import processor

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Changes to the results themselves do not make the code that made them another.
_SOURCES = ("--untracked-files=no", "--", ".", ":!benchmarks/results")


def provenance() -> dict[str, str]:
    """Machine, versions, commit and date; goes into every row."""
    return {
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "sparsebert": sparsebert.__version__,
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
        "tree": "dirty" if _git("status", "--porcelain", *_SOURCES) else "clean",
        "date": datetime.date.today().isoformat(),
    }


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
