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

A phase that ends early leaves its time to the others, one that overruns is killed. If the gate
finds plans wrong and none right, the run ends there: one fault in everything is soon found, and
the time is left for the run after it. In every case new memory is filled with NaN, and every
element must lie within its bound (`sparsebert.testing`). A timing is made only if its own plan was
found right and no case that runs the same kernels was wrong (`--anyway` asks for the former
alone); what was not made says why.

Every result is a row with its provenance, written as it comes to `gpu_check.jsonl` in `$OUT` or
benchmarks/results/, so that a run that is cut short loses nothing. Started again with the same
file, or with it as `--from`, on such a machine, by the same versions and commit, it goes on: what
was wrong first, then what is missing, and complete phases are left out. For a second call before
which $OUT is emptied, a copy of the rows stays in build/gpu_check.jsonl. The exit status is 1 for
wrong results alone, 2 where no GPU answers, an option is wrong or the tree is not clean (see
--anyway).
"""

from __future__ import annotations

import argparse
import contextlib
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
from benchmarks.gpu.gpu_rows import ANYWAY, BY_TIME, latest
from benchmarks.gpu.gpu_summary import summary
from benchmarks.harness.options import duration
from benchmarks.harness.origin import ROOT, out_folder
from benchmarks.harness.rows import Row, RowFile

SECONDS = 540.0
RESERVE = 9.0
"""Of the seconds, for what follows the last phase: killing it, if it has to be; the summary."""
KEPT = ROOT / "build" / "gpu_check.jsonl"
"""A copy of the rows, for a second call on the same machine; $OUT may be empty again by then."""
_MODULE = "benchmarks.gpu"
_INTERPRETED = {"TRITON_INTERPRET": "1"}
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
"""A dozen processes share the processor's cores, and torch.compile starts one more for each."""

MACHINE = Phase("machine", 10, f"{_MODULE}.gpu_machine:machine", limit=120.0, always=True)
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
    """Run all phases; the exit status is 0, 1 if a result was wrong, 2 if nothing was run."""
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
        environment={
            **(_INTERPRETED if options.smoke else _ONE_THREAD | compile_cache.environment()),
            ANYWAY: str(int(options.anyway)),
        },
    )
    try:
        status = _carry_out(run, options.phases, anyway=options.anyway)
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
    parser.add_argument(
        "--anyway",
        action="store_true",
        help="go on though the tree is dirty, or of no known commit, or no plan is right; time "
        "right plans whose kernels are red elsewhere, too (such rows are not for publishing)",
    )
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


def _carry_out(run: Run, chosen: Sequence[str], *, anyway: bool) -> int:
    """All phases, where the first finds a GPU and, but for `anyway`, a clean tree."""
    run.next()
    own = [row for row in run.record().rows if row.get("run") == run.origin["run"]]
    machine = next((row for row in own if row["check"] == "machine"), {"why": "no answer"})
    if machine.get("passed") is not True:
        print(f"gpu_check: {machine['why']}; --smoke tries it without a GPU")
        return 2
    if run.device != "cpu" and machine.get("tree") != "clean" and not anyway:
        print(
            f"gpu_check: the tree must be clean, and is {machine.get('tree')} (commit "
            f"{machine.get('commit')}): no run goes on from such rows and nothing publishes them; "
            "commit first, and where there is no git take build/gpu_cache along, which `make "
            "gpu-cache` stamps with the commit; or --anyway"
        )
        return 2
    if run.earlier is not None:
        count = len(run.record().rows) - len(own)
        print(f"{count} rows count of what was found before, on such a machine, of this commit")
    run.todo = [phase for phase in run.todo if phase.name in chosen]
    run.leave_out_complete()
    while run.todo:
        phase = run.todo[0]
        run.next()
        if run.device != "cpu":
            _keep(run)
        if phase.name == "gate" and not anyway and _is_hopeless(run.record().rows):
            print(
                "gpu_check: no plan that would be timed is right, so the rest waits for one that "
                "is, and leaves its time to another run; or --anyway"
            )
            return 1
    return 0


def _is_hopeless(rows: Sequence[Row]) -> bool:
    """Whether plans were found wrong, and none right that runs kernels."""
    last = latest(row for row in rows if row["check"] == "correct" and row["plan"] == BY_TIME)
    is_right = any(row["passed"] is True and row["heights"] for row in last.values())
    return not is_right and any(row["passed"] is False for row in last.values())


def _keep(run: Run) -> None:
    """Copy the rows to `KEPT`, those of the run that this one goes on from before them."""
    with contextlib.suppress(OSError):  # then a second call has to be given the file
        RowFile(KEPT).write(run.record().rows)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
