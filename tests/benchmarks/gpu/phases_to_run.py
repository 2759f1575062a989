"""Phases for the tests of `gpu_phases`, in a module that a new process imports quickly."""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.gpu_phases import Phase, Run

MODULE = "tests.benchmarks.gpu.phases_to_run"  # also where it runs as a program
ORIGIN = {
    "processor": "A", "torch": "1", "triton": "2", "sparsebert": "0", "commit": "c",
    "tree": "clean",
}  # fmt: skip


def phase(name, seconds=1.0, function="", **options):
    """The phase that is the function of this name here, or another of them."""
    return Phase(name, seconds, f"{MODULE}:{function or name}", **options)


def run_of(phases, folder, *, seconds, run="first", origin=ORIGIN, earlier=None):
    """A run of phases with its rows in a folder."""
    return Run(
        phases, folder / "rows.jsonl", {**origin, "run": run},
        end=time.monotonic() + seconds, earlier=earlier,
    )  # fmt: skip


def clean(seconds, record):
    """A GPU, and no change."""
    record.add({"check": "machine", "passed": True})


def gate(seconds, record):
    """One plan is wrong, one was not checked, one needs no kernel; in a folder "right" one is."""
    case = {"check": "correct", "plan": "by time", "dim": 64, "dtype": "bf16", "features": ""}
    dense = {"mask": "dense", "n": 3, "passed": True, "heights": []}
    record.add({**case, "mask": "star", "n": 1, "passed": False, "why": "o is wrong"})
    record.add({**case, "mask": "star", "n": 2, "passed": None, "why": "out of time"})
    record.add({**case, **dense})
    if record.file.path.parent.name == "right":
        record.add({**case, "mask": "star", "n": 4, "passed": True, "heights": [64]})


def dirty(seconds, record):
    """A GPU, and changes that no commit has."""
    record.add({"check": "machine", "passed": True, "tree": "dirty"})


def fine(seconds, record):
    record.add({"check": "a", "passed": True, "seconds": seconds})


def waits(seconds, record):
    """Ends when another phase has added a row."""
    end = time.monotonic() + seconds
    while not record.file.read():
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.3)  # that phase ends, too


def undone(seconds, record):
    record.add({"check": "b", "passed": None, "why": "out of time"})


def hangs(seconds, record):
    """A child in a group of its own, a row, and no end."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], process_group=0
    )
    record.add({"check": "before it hangs", "processes": [os.getpid(), child.pid]})
    time.sleep(600)


def dies(seconds, record):
    record.add({"check": "before it dies"})
    os._exit(7)


def raises(seconds, record):
    raise RuntimeError("no such thing here")


def loses(seconds, record):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def main():
    """A run in a process of its own, to be killed: one phase that ends, one that does not."""
    run = run_of([phase("fine"), phase("hangs")], Path(sys.argv[1]), seconds=600.0)
    while run.todo:
        run.next()


if __name__ == "__main__":
    main()
