"""The timings of `gpu_check`: this project in turn with rivals, in which order, and which not.

A timing is made only if its own plan was found right and no case that runs the same kernels is
wrong. Each is a task of a process that can be given up: a compiler or a kernel that hangs costs
its own timing, and another process goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Iterable

from benchmarks.attention.cases import BERT_BASE, DIRECTIONS, PAPER, Case
from benchmarks.attention.flex_rivals import FORMULAS
from benchmarks.attention.rivals import (
    CUDNN,
    FLASH,
    FLEX,
    FLEX_FORMULA,
    FLEX_TUNED,
    OURS,
    SDPA_MASK,
)
from benchmarks.gpu.gpu_cases import (
    GQA,
    LARGE,
    PLAIN,
    SMOKE_LENGTH,
    TIME,
    KernelCase,
    timed_shapes,
)
from benchmarks.gpu.gpu_record import Record
from benchmarks.gpu.gpu_rows import ANYWAY, identity, latest
from benchmarks.gpu.gpu_stopwatch import measured
from benchmarks.harness import workers
from benchmarks.harness.rows import Row

DTYPE = "bfloat16"
TASK_SECONDS = 30.0
"""Of one timing in one direction; compiling FlexAttention anew takes most of it."""
TELLING = 1024
"""Of this length timings come after those of the others."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """One contender, by its name in `rivals`, on one mask and shape; in both directions."""

    contender: str
    mask: str
    batch: int
    n: int
    heads: int = BERT_BASE.heads

    def case(self, direction: str) -> Case:
        """The case of the attention benchmark that it is."""
        return Case(
            "gpu_check", BERT_BASE.name, self.batch, self.heads, self.n, BERT_BASE.dim, self.mask,
            direction, DTYPE,
        )  # fmt: skip

    @property
    def row(self) -> Row:
        """The timing as columns."""
        shape = {"dim": BERT_BASE.dim, "dtype": DTYPE}
        return {"check": "timing", **dataclasses.asdict(self), **shape}

    @property
    def checked_by(self) -> KernelCase:
        """The case that must have passed before this project is timed so."""
        return KernelCase(
            TIME, self.mask, self.n, BERT_BASE.dim, DTYPE, PLAIN, self.heads, self.batch
        )


@dataclasses.dataclass(frozen=True)
class Task:
    """A timing in one direction, beside this project or, if that may not be timed, without it."""

    timing: Timing
    direction: str
    with_ours: bool

    @property
    def contenders(self) -> tuple[str, ...]:
        """Who runs in turn: dense attention beside this project, a rival beside both."""
        name = self.timing.contender
        others = (CUDNN, FLASH) if name == OURS else (name,)
        return (OURS, *others) if self.with_ours else others


def all_timings() -> list[Timing]:
    """The most telling first: this project (beside dense attention), then FlexAttention, for the
    paper's patterns, longest first; then other masks and N = 1024; then the other rivals.
    """
    shapes = list(timed_shapes())
    telling = [s for s in shapes if s[0] in PAPER and s[1] != TELLING]
    others = [s for s in shapes if s not in telling]
    found = []
    for n in dict.fromkeys(n for _, n, _, _ in telling):
        found += [_timing(rival, s) for rival in (OURS, FLEX) for s in telling if s[1] == n]
    found += [_timing(rival, s) for rival in (OURS, FLEX) for s in others]
    in_order = telling + others
    found += [_timing(FLEX_FORMULA, s) for s in in_order if s[0] in FORMULAS]
    found += [_timing(rival, s) for rival in (SDPA_MASK, FLEX_TUNED) for s in in_order]
    return found


def _timing(contender: str, shape: tuple[str, int, int, int]) -> Timing:
    mask, n, heads, batch = shape
    return Timing(contender, mask, batch, n, heads)


def smoke_timings() -> list[Timing]:
    """A tiny one and a rival, for the interpreter."""
    return [Timing(rival, "star", 1, SMOKE_LENGTH, 1) for rival in (OURS, SDPA_MASK)]


def timings(seconds: float, record: Record) -> None:
    """All timings that are not made yet, a row for each contender and direction."""
    end = time.monotonic() + seconds
    wanted = smoke_timings() if record.device == "cpu" else all_timings()
    refused = {timing: why_not(timing, record.rows) for timing in wanted}
    despite: dict[Timing, str] = {}
    if _anyway():
        despite = {t: why for t, why in refused.items() if why and _own_is_right(t, record.rows)}
        refused |= dict.fromkeys(despite, "")
    for timing, direction in missing(wanted, record):
        if refused[timing] and timing.contender == OURS:
            record.add(timing.row | {"direction": direction, "why": refused[timing]})
    todo = [
        Task(timing, direction, with_ours=not refused[timing])
        for timing, direction in missing(wanted, record)
    ]
    run = functools.partial(rows_of, device=record.device)
    jobs = 0 if record.device == "cpu" else 1
    late = []
    for task, result in workers.results_of(run, todo, jobs, end=end, limit=TASK_SECONDS):
        if isinstance(result, workers.Failure):
            row = _row(task) | {"why": f"not timed: {result.why}"}
            if result.why == workers.OUT_OF_TIME:
                late.append(row)
                continue
            rivals = tuple(name for name in task.contenders if name != OURS)
            is_wrong = result.wrong and task.with_ours and not result.why.startswith(rivals)
            result = [row | ({"passed": False} if is_wrong else {})]
        if task.timing in despite:
            result = [row | {"despite": despite[task.timing]} for row in result]
        for row in result:
            record.add(row)
    record.add_late(late)


def missing(wanted: Iterable[Timing], record: Record) -> list[tuple[Timing, str]]:
    """Those that the record has no times of, in each direction; none "despite" something counts,
    but where such are asked for.
    """
    last = latest(record.rows)

    def is_made(timing: Timing, direction: str) -> bool:
        row = last.get(identity(timing.row | {"direction": direction}), {})
        return "ms_50" in row and (_anyway() or "despite" not in row)

    return [
        (timing, direction)
        for timing in wanted
        for direction in DIRECTIONS
        if not is_made(timing, direction)
    ]


def rows_of(task: Task, device: str) -> list[Row]:
    """A row for each contender of a task but this project's own where a rival is asked for."""
    found = measured(task.timing.case(task.direction), task.contenders, device)
    if task.timing.contender != OURS:
        found.pop(OURS, None)
    return [_row(task) | {"contender": name} | values for name, values in found.items()]


def _row(task: Task) -> Row:
    return task.timing.row | {"direction": task.direction}


def why_not(timing: Timing, rows: Iterable[Row]) -> str:
    """Why this project must not be timed so, given the rows of what was checked; "" if it may.

    Its own case must have passed, and none that runs the same compiled kernels may be wrong.
    """
    case = timing.checked_by
    checked = latest(row for row in rows if row["check"] == "correct")
    own = checked.get(identity(case.row))
    if own is None or own["passed"] is None:
        return "not timed: its plan was not checked"
    heights = set(own.get("heights", ()))
    for row in checked.values():
        if row["passed"] is False and _shares_kernels(row, case, heights):
            what = f"{row['mask']}, N = {row['n']}, plan {row['plan']}, {row['features']}"
            return f"not timed: red in {what}"
    return ""


def _anyway() -> bool:
    return os.environ.get(ANYWAY) == "1"


def _own_is_right(timing: Timing, rows: Iterable[Row]) -> bool:
    return latest(rows).get(identity(timing.checked_by.row), {}).get("passed") is True


def _shares_kernels(row: Row, case: KernelCase, heights: set[int]) -> bool:
    if identity(row) == identity(case.row):
        return True
    # Grouped heads and large scores are the same kernels; key mask and dropout are others.
    same = (row["dim"], row["dtype"]) == (case.dim, case.dtype)
    if not same or row["features"] not in (PLAIN, GQA, LARGE):
        return False
    its = row.get("heights")  # none if its plan runs dense
    if its is None:  # it did not come so far as to say
        if not row["plan"].isdigit():
            return True
        its = [int(row["plan"])]
    return not heights.isdisjoint(its)
