"""A GPU's first and second run: are the kernels right, how fast are they, what would be faster.

    python -m benchmarks.gpu.gpu_check                       # on CUDA or ROCm, in nine minutes
    python -m benchmarks.gpu.gpu_check --seconds 240 --from out/gpu_check.jsonl  # what is left
    python -m benchmarks.gpu.gpu_check --smoke               # anywhere: tiny, interpreted

Nothing has to be installed beyond torch and Triton. The phases of nine minutes, with the second at
which each ends; the same parts of fewer minutes:

     10  machine   the card and all versions
     15  cache     compiled kernels that were carried here (`make gpu-cache`)
     45  compile   what that lacks; beside it and beside the gate, "flex" compiles FlexAttention
     99  gate      the plans that will be timed, at their shapes; every tile height, for the usual
                   head sizes, dtypes and features; the tests that need a GPU
    100  new       what was compiled although nobody had foreseen it
    210  timings   this project, dense attention and other rivals, forward and backward
    250  profile   counters of the kernels, by ncu
    350  sweep     other launch configurations on real plans
    450  wide      every height, head size, dtype and feature
    540  repeats   a thousand times the same bits; compute-sanitizer; whole models

A phase that ends early leaves its time to the others, one that overruns is killed. In every case
new memory is filled with NaN, and every element must lie within its bound (`sparsebert.testing`).
A timing is made only if its own plan was found right and no case that runs the same kernels was
wrong; what was not made says why.

Every result is a row with its provenance, written as it comes to `gpu_check.jsonl` in `$OUT` or
benchmarks/results/, so that a run that is cut short loses nothing. Started again with the same
file, or with it as `--from`, on such a machine, by the same versions and commit, it goes on: what
was wrong first, then what is missing, and complete phases are left out. The exit status is 1 for
wrong results alone, 2 where no GPU answers or an option is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import compile_cache
from benchmarks.gpu.gpu_phases import Phase, Run
from benchmarks.gpu.gpu_record import rows_of
from benchmarks.gpu.gpu_rows import latest
from benchmarks.gpu.gpu_summary import summary
from benchmarks.harness.options import duration
from benchmarks.harness.origin import out_folder
from benchmarks.harness.rows import RowFile

SECONDS = 540.0
RESERVE = 9.0
"""Of the seconds, for what follows the last phase: killing it, if it has to be; the summary."""
_MODULE = "benchmarks.gpu"
_INTERPRETED = {"TRITON_INTERPRET": "1"}
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""A dozen processes share the processor's cores."""

MACHINE = Phase("machine", 10, f"{_MODULE}.gpu_machine:machine", limit=60.0, always=True)
PHASES = (
    Phase("cache", 5, f"{_MODULE}.compile_cache:unpack", limit=20.0, always=True),
    Phase("flex", 0, f"{_MODULE}.flex_warm_up:warm_up", always=True, until="timings"),
    Phase("compile", 30, f"{_MODULE}.precompile:precompile", always=True),
    Phase("gate", 54, f"{_MODULE}.gpu_gate:gate"),
    Phase("new", 1, f"{_MODULE}.compile_cache:count_new", limit=3.0),
    Phase("timings", 110, f"{_MODULE}.gpu_times:timings"),
    Phase("profile", 40, f"{_MODULE}.profile_kernels:profile"),
    Phase("sweep", 100, f"{_MODULE}.sweep:sweep"),
    Phase("wide", 100, f"{_MODULE}.gpu_gate:wide"),
    Phase("repeats", 90, f"{_MODULE}.gpu_repeats:repeats"),
)
"""What follows `MACHINE`, in order."""


def main(arguments: list[str] | None = None) -> int:
    """Run all phases; the exit status is 0, 1 if a result was wrong, 2 without a GPU."""
    start = time.monotonic()
    options = _options(arguments)
    signal.signal(signal.SIGTERM, _stop)
    run = Run(
        [MACHINE, *PHASES],
        options.rows,
        {"run": datetime.datetime.now().isoformat(timespec="seconds")},
        end=start + options.seconds - RESERVE,
        device="cpu" if options.smoke else "cuda",
        earlier=options.earlier,
        environment=_INTERPRETED if options.smoke else _ONE_THREAD | compile_cache.environment(),
    )
    try:
        status = _carry_out(run, options.phases)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here")
        status = 0
    finally:
        run.stop()
    rows = run.record().rows
    print(summary(rows))
    print(f"{len(rows)} rows, in {run.path}; {time.monotonic() - start:.0f} s")
    return status or int(any(row.get("passed") is False for row in latest(rows).values()))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=duration, default=SECONDS, help="for everything (540)")
    parser.add_argument(
        "--from", dest="earlier", type=Path, metavar="FILE", help="rows of an earlier run"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, in the interpreter")
    names = [phase.name for phase in PHASES]
    parser.add_argument("--phases", nargs="+", choices=names, default=names, metavar="PHASE")
    options = parser.parse_args(arguments)
    if options.earlier is not None:
        if not options.earlier.is_file():
            parser.error(f"--from: there is no file {options.earlier}")
        if not _holds_rows(options.earlier):
            parser.error(
                f"--from: {options.earlier} holds no row of a run; give the gpu_check.jsonl that "
                f"came back, or leave --from out"
            )
    name = "gpu_check_smoke.jsonl" if options.smoke else "gpu_check.jsonl"
    options.rows = out_folder() / name
    try:
        RowFile(options.rows).append([])
    except OSError as error:
        where = f"{out_folder()}, which is $OUT" if os.environ.get("OUT") else out_folder()
        parser.error(
            f"rows cannot be written to {where}: {error.strerror}; let OUT be a folder that can "
            f"be written to"
        )
    return options


def _holds_rows(path: Path) -> bool:
    try:
        return bool(rows_of(RowFile(path)))
    except UnicodeDecodeError:
        return False


def _carry_out(run: Run, chosen: Sequence[str]) -> int:
    """All phases, where the first finds a GPU."""
    run.next()
    own = [row for row in run.record().rows if row.get("run") == run.origin["run"]]
    machine = next((row for row in own if row["check"] == "machine"), {"why": "no answer"})
    if machine.get("passed") is not True:
        print(f"gpu_check: {machine['why']}; --smoke tries it without a GPU")
        return 2
    if run.earlier is not None:
        count = len(run.record().rows) - len(own)
        print(f"{count} rows count of what was found before, on such a machine, of this commit")
    run.todo = [phase for phase in run.todo if phase.name in chosen]
    run.leave_out_complete()
    while run.todo:
        run.next()
    return 0


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
