"""Tasks for `benchmarks.harness.workers`, in a module that a new process imports quickly."""

import os
import time

from benchmarks.harness.workers import LostDevice


def double_or(task):
    """Twice a number; other tasks go wrong as they say."""
    if task == "die":
        os._exit(7)
    if task == "hang":
        time.sleep(600)
    if task == "lose":
        raise LostDevice("CUDA error: an illegal memory access was encountered")
    return 2 * task
