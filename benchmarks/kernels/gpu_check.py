"""A GPU's first run: correctness of the Triton kernels on real shapes, then quick timings.

    python -m benchmarks.kernels.gpu_check              # on CUDA or ROCm, in nine minutes
    python -m benchmarks.kernels.gpu_check --minutes 4  # less of it: what comes first tells most
    python -m benchmarks.kernels.gpu_check --smoke      # anywhere: tiny, in Triton's interpreter

Nothing has to be installed beyond torch and Triton. In this order: one case of every tile height,
the plans that are timed here and in `python -m benchmarks run` (by their times, for this card),
then every tile height, head size, dtype and feature, and plans by area; each forward and backward,
new memory filled with NaN, every element within its bound (`sparsebert.testing`). The same
backward many times, bit for bit; compute-sanitizer, where it is installed and runs; timings.

A timing is made only if its own plan was found right and no case that runs the same kernels was
wrong; what was not made says why. Every result is a row with its provenance, written as it comes
to `gpu_check.jsonl` in `$OUT` or benchmarks/results/, so that a run that is cut short loses
nothing; started again with the same file, commit and machine, it goes on from there. The exit
status is 1 for wrong results alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

if "--smoke" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
import triton

import sparsebert as sb
from benchmarks.harness import named_masks, workers
from benchmarks.harness.errors import in_words, is_fatal
from benchmarks.harness.origin import ROOT, origin, out_folder
from benchmarks.harness.rows import Row, RowFile
from benchmarks.kernels import calls as kernels
from benchmarks.kernels import gpu_cases, gpu_times
from benchmarks.kernels.gpu_cases import KernelCase, key_of
from benchmarks.kernels.gpu_correctness import check_row
from benchmarks.kernels.gpu_summary import as_line, summary
from benchmarks.kernels.gpu_times import Timing

CHECKS_SHARE = 0.55
"""Of the time, what may go to checking cases."""
CASE_SECONDS = 120.0
SANITIZER_SECONDS = 60.0
_FINDINGS = (
    99  # the sanitizer's exit status for errors that it found; its own failures have others
)


class Record:
    """The rows of a run, each on disk as soon as it is there.

    Args:
        path: JSON lines; those of the same machine, versions and (clean) commit count as done.
        origin: the provenance that goes into every row.
    """

    def __init__(self, path: pathlib.Path, origin: Row) -> None:
        self.file = RowFile(path, origin=origin)
        self.rows: list[Row] = []
        self.earlier = self.file.of_this_run() if origin["tree"] == "clean" else []
        self.file.append([])  # a folder that cannot be written to is an error now, not later

    def known(self) -> dict[tuple[Any, ...], Row]:
        """Cases that an earlier run with this file found right."""
        return {
            key_of(row): row
            for row in self.earlier
            if row["check"] == "correct" and row["passed"] is True
        }

    def add(self, row: Row, *, again: bool = True) -> None:
        """Keep and print a row; `again` writes it to the file."""
        self.rows.append(row)
        if again:
            self.file.append([row])
            print(as_line(row), flush=True)


@dataclasses.dataclass(frozen=True)
class Steps:
    """What a run is made of; tests put stand-ins here.

    Attributes:
        check: a case -> its row, or raises `workers.LostDevice`.
        jobs: processes for the cases; most of their time goes to compilers.
        repeats: -> a row.
        sanitize: tool, seconds -> a row.
        timed: a timing, whether there is time left -> rows.
    """

    check: Callable[[KernelCase], Row]
    jobs: int
    repeats: Callable[[], Row]
    sanitize: Callable[[str, float], Row]
    timed: Callable[[Timing, Callable[[], bool]], Iterator[Row]]


def run(
    record: Record,
    steps: Steps,
    cases: Sequence[KernelCase],
    timings: Sequence[Timing],
    *,
    seconds: float,
) -> None:
    """All steps in order within `seconds`; what there was no time for is a row that says so."""
    start = time.monotonic()
    end = start + seconds
    check_cases(record, steps, cases, start + CHECKS_SHARE * seconds)
    record.add(_or_late(steps.repeats, {"check": "same bits"}, end))
    for tool in ("memcheck", "racecheck"):
        left = min(SANITIZER_SECONDS, 0.25 * (end - time.monotonic()))
        step = functools.partial(steps.sanitize, tool, left)
        record.add(_or_late(step, {"check": tool}, end))
    for timing in timings:
        why = gpu_times.why_not(timing, record.rows)
        if why:
            record.add(timing.row | {"why": why})
            continue
        for row in steps.timed(timing, lambda: time.monotonic() < end):
            record.add(row)


def check_cases(record: Record, steps: Steps, cases: Sequence[KernelCase], end: float) -> None:
    """Check all cases that are not known to be right."""
    known = record.known()
    todo = []
    for case in cases:
        if (row := known.get(dataclasses.astuple(case))) is not None:
            record.add(row, again=False)
        else:
            todo.append(case)
    if len(todo) < len(cases):
        print(f"{len(cases) - len(todo)} of {len(cases)} cases were found right before")
    found = workers.results_of(steps.check, todo, steps.jobs, end=end, limit=CASE_SECONDS)
    for case, result in found:
        if isinstance(result, workers.Failure):
            passed = False if result.wrong else None
            result = case.row | {"passed": passed, "why": result.why}
        record.add(result)


def _or_late(step: Callable[[], Row], row: Row, end: float) -> Row:
    """The row with what the step found; that it cannot run here is no wrong result."""
    if time.monotonic() > end:
        return row | {"passed": None, "why": "out of time"}
    try:
        return row | step()
    except Exception as error:
        return row | {"passed": False if is_fatal(error) else None, "why": in_words(error)}


def check_repeats(mask: sb.AttentionMask, repeats: int, device: str) -> Row:
    """The same backward again and again gives the same bits."""
    q, k, v = (torch.randn(2, 4, mask.q_len, 64, device=device).bfloat16() for _ in range(3))
    program = kernels.build_program(sb.compile_plan(mask, objective="area")).to(device)
    o, lse = kernels.forward(q, k, v, None, None, program, 0.125, 0.0)

    def backward() -> tuple[torch.Tensor, ...]:
        return kernels.backward(o, None, q, k, v, o, lse, None, None, program, 0.125, 0.0)

    first = backward()
    for repeat in range(1, repeats):
        if not all(torch.equal(a, b) for a, b in zip(first, backward(), strict=True)):
            return {"passed": False, "why": f"repeat {repeat} differs"}
    return {"passed": True, "repeats": repeats}


def sanitize(tool: str, seconds: float) -> Row:
    """compute-sanitizer over this script's smallest case: only what it finds there is red."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"passed": None, "why": "compute-sanitizer is not installed"}
    command = [program, "--tool", tool, "--error-exitcode", str(_FINDINGS), sys.executable]
    command += ["-m", "benchmarks.kernels.gpu_check", "--one-case"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"passed": None, "why": f"took more than {seconds:.0f} s"}
    said = " ".join((done.stdout + done.stderr).split())
    if done.returncode == _FINDINGS and "Internal Sanitizer Error" not in said:
        return {"passed": False, "why": said[-300:]}
    if done.returncode != 0:
        return {
            "passed": None,
            "why": f"it does not run here, status {done.returncode}: {said[-300:]}",
        }
    return {"passed": True}


def _on_gpu() -> Steps:
    return Steps(
        check=check_row,
        jobs=max(1, min(12, (os.cpu_count() or 1) - 1)),
        repeats=lambda: check_repeats(named_masks.build("longformer", 512, 1), 1000, "cuda"),
        sanitize=sanitize,
        timed=gpu_times.time_rows,
    )


def _in_interpreter() -> Steps:
    return Steps(
        check=functools.partial(check_row, device="cpu"),
        jobs=0,
        repeats=lambda: check_repeats(named_masks.build("longformer", 40, 1), 2, "cpu"),
        sanitize=lambda tool, seconds: {"passed": None, "why": "smoke"},
        timed=lambda timing, has_time: iter([timing.row | {"why": "not timed: smoke"}]),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run everything; exit status 0, 1 if a result was wrong, 2 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, in the interpreter")
    parser.add_argument("--one-case", action="store_true", help="a single small check")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    options = parser.parse_args(arguments)
    if not options.smoke and not torch.cuda.is_available():
        print("gpu_check: no CUDA or ROCm device; --smoke tries the script without one")
        return 2
    if options.one_case:
        case = KernelCase("64", gpu_cases.BAND, 130, 64, "bfloat16", gpu_cases.PLAIN)
        return 0 if check_row(case)["passed"] else 1
    name = "gpu_check_smoke.jsonl" if options.smoke else "gpu_check.jsonl"
    record = Record(out_folder() / name, {**origin(), "triton": triton.__version__})
    if options.smoke:
        cases, timings = gpu_cases.smoke_cases(), gpu_times.all_timings()[:1]
    else:
        cases, timings = gpu_cases.all_cases(), gpu_times.all_timings()
    steps = _in_interpreter() if options.smoke else _on_gpu()
    try:
        run(record, steps, cases, timings, seconds=60.0 * options.minutes)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here")
    print(summary(record.rows))
    print(f"{len(record.rows)} rows, in {record.file.path}")
    return 1 if any(row.get("passed") is False for row in record.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
