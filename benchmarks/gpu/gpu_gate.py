"""Phases that check: the gate before all timings, and the wide matrix after them."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from benchmarks.gpu import gpu_cases
from benchmarks.gpu.gpu_cases import KernelCase, case_of
from benchmarks.gpu.gpu_correctness import check_row
from benchmarks.gpu.gpu_record import Record
from benchmarks.gpu.gpu_rows import identity, latest
from benchmarks.gpu.gpu_tests import run_tests
from benchmarks.harness import workers
from benchmarks.harness.errors import is_crowded

CASES_SHARE = 0.7
"""Of a phase's time, what the cases may take; the rest is for the tests."""
CASE_SECONDS = 25.0
_MARGIN = 1.0
"""Seconds in which what still runs is ended and its rows are written."""
_CROWDED = 3
"""Processes for cases that found no room beside `Record.jobs` others."""


def gate(seconds: float, record: Record) -> None:
    """What will be timed, every height, the tests that need a GPU; what was wrong comes first."""
    end = time.monotonic() + seconds - _MARGIN
    last = latest(record.rows).values()
    wrong = [case_of(r) for r in last if r["check"] == "correct" and r["passed"] is False]
    mine = gpu_cases.smoke_cases() if record.device == "cpu" else gpu_cases.gate_cases()
    cases = list(dict.fromkeys([*wrong, *mine]))
    check_cases(record, cases, time.monotonic() + CASES_SHARE * seconds)
    run_tests(record, end)


def wide(seconds: float, record: Record) -> None:
    """Everything else that the kernels can be launched for; first the tests that are left."""
    end = time.monotonic() + seconds - _MARGIN
    if record.device == "cpu":
        check_cases(record, [KernelCase("32", gpu_cases.BAND, 33, 16, "float32", "gqa")], end)
        return
    run_tests(record, time.monotonic() + (1.0 - CASES_SHARE) * seconds)
    check_cases(record, gpu_cases.gate_cases() + gpu_cases.wide_cases(), end)


def check_cases(record: Record, cases: Sequence[KernelCase], end: float) -> None:
    """Check all cases that were not found right yet, in their order, a row each."""
    last = latest(record.rows)
    todo = [c for c in cases if last.get(identity(c.row), {}).get("passed") is not True]
    if len(todo) < len(cases):
        print(
            f"{len(cases) - len(todo)} of {len(cases)} cases were found right before", flush=True
        )
    crowded = _checked(record, todo, end, record.jobs)
    if crowded:
        _checked(record, crowded, end, min(_CROWDED, record.jobs))


def _checked(
    record: Record, cases: Sequence[KernelCase], end: float, jobs: int
) -> list[KernelCase]:
    """Add a row for each case, but for those that it returns: they found no room."""
    # Without a GPU nothing can be lost but time, and the interpreter takes little of it.
    jobs = 0 if record.device == "cpu" else jobs
    check = functools.partial(check_row, device=record.device)
    crowded, late = [], []
    for case, result in workers.results_of(check, cases, jobs, end=end, limit=CASE_SECONDS):
        if isinstance(result, workers.Failure):
            result = case.row | {"passed": False if result.wrong else None, "why": result.why}
        why = result.get("why", "")
        if why == workers.OUT_OF_TIME:
            late.append(result)
        elif jobs > _CROWDED and is_crowded(why):
            crowded.append(case)
        else:
            record.add(result)
    record.add_late(late)
    return crowded
