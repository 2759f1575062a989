"""Memory while calls are timed: an allocator that keeps still, and how much a call takes."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Callable

import torch

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


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """The most that torch has allocated at once in a call, beyond what is there before it."""
    return _cpu_peak_bytes(call) if device == "cpu" else _gpu_peak_bytes(call)


def _gpu_peak_bytes(call: Callable[[], object]) -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak_bytes(call: Callable[[], object]) -> int:
    """From the allocations and releases that torch's profiler sees."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        held += change
        peak = max(peak, held)
    return peak
