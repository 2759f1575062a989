"""Tasks for `benchmarks.harness.workers`, in a module that a new process imports quickly."""

import os
import time

from benchmarks.harness.workers import LostDevice


class Unreadable:
    """What a new process cannot read: it dies before it asks for a task."""

    def __call__(self, task):
        return task

    def __reduce__(self):
        return os._exit, (8,)


def double_or(task):
    """Twice a number; other tasks go wrong as they say."""
    if task == "die":
        os._exit(7)
    if task == "hang":
        time.sleep(600)
    if task == "fail":
        raise ValueError("no such thing")
    if task == "fail for want of a GPU":
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
    if task == "lose":
        raise LostDevice("CUDA error: an illegal memory access was encountered")
    return 2 * task
