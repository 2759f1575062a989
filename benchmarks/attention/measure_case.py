"""One case of the attention benchmark: correctness, first calls, times, roofs, as rows.

Contenders run in turn in one process. Each has sets of inputs that together are larger than the
last cache, and takes the next set at every call, so that no cache flatters. Ratios are medians of
the ratios of single rounds. With one CPU thread times are that thread's CPU time.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.attention import roofs
from benchmarks.attention.cases import Case, build_mask
from benchmarks.attention.contender import CaseSetup, Ready
from benchmarks.attention.correctness import ResultCheck, Tensors
from benchmarks.attention.inputs import (
    call_of,
    compiled_plan,
    key_mask_of,
    sets_of,
)
from benchmarks.attention.plan_work import Work, work_of
from benchmarks.attention.rivals import OURS, Rival, rivals_on
from benchmarks.harness import gpu_timing, named_masks
from benchmarks.harness.errors import in_a_line, is_fatal
from benchmarks.harness.memory import peak_bytes
from sparsebert.reporting.timing import own_clock, quantiles, side_by_side

ROUNDS = 3  # at least
Values = dict[str, object]


def rows_of(
    case: Case,
    device: str,
    limits: roofs.Roofs,
    seconds: float,
    chosen: tuple[str, ...] | None = None,
) -> Iterator[Values]:
    """A row for every contender of a case, this project's first.

    Args:
        seconds: least time spent on the rounds of the case.
        chosen: names of the rivals that run, None for all; the others' rows say so.
    """
    try:
        mask = build_mask(case)
    except named_masks.NoSuchMask as error:
        yield {"contender": OURS, "note": str(error)}
        return
    plan, compile_ms = compiled_plan(
        mask, device, case.dim, case.heads, torch.get_num_threads() if device == "cpu" else None
    )
    report = plan.explain()
    predicted = report.predicted_step_speedup if case.trains else report.predicted_speedup
    common = {
        "parameters": named_masks.parameters(mask),
        "density": f"{mask.density:.4f}",
        "compile_ms": f"{compile_ms:.1f}",
        "predicted_speedup": f"{predicted:.3f}",
        "roof_gb_s": f"{limits.copy_gb_s:.1f}",
        "roof_tflop_s": f"{limits.matrix_tflop_s[case.dtype]:.4g}",
    }
    inputs = sets_of(case, device)
    key_mask = key_mask_of(case, device)
    setup = CaseSetup(case, mask, plan, inputs[0][:3], key_mask)
    check = ResultCheck(case, mask, inputs[0][:3], inputs[0][3], key_mask)

    entries = [
        _Entry(rival, common, left_out=chosen is not None and rival.name not in (OURS, *chosen))
        for rival in rivals_on(device)
    ]
    if device == "cpu":
        dtype = getattr(torch, case.dtype)
        entries[0].work = work_of(plan, case.heads, case.batch, dtype, key_mask)
    # One cycle for all: else the first of a round would bring the inputs into the cache for the
    # others.
    sets = itertools.cycle(inputs)
    for entry in entries:
        entry.prepare(setup, check, sets)
    ours = entries[0]
    running = [entry for entry in entries if entry.call is not None]
    if ours.call is not None:  # without our time there is nothing to compare
        _measure(running, device, seconds, len(inputs))
    for entry in entries:
        yield entry.row(case, limits, ours)
    if device == "cuda":
        torch.cuda.empty_cache()


@dataclasses.dataclass
class _Entry:
    """A contender of one case on its way to a row."""

    rival: Rival
    common: Values
    ready: Ready | None = None
    call: Callable[[], object] | None = None
    first_ms: float = 0.0
    peak_mb: float | None = None
    times: list[float] = dataclasses.field(default_factory=list)
    graph_ms: float | None = None
    note: str = ""
    left_out: bool = False
    work: Work | None = None

    def prepare(self, setup: CaseSetup, check: ResultCheck, sets: Iterator[Tensors]) -> None:
        """Build it, call it once, check its results; on failure the note says why."""
        case = setup.case
        self.note = self.rival.refusal(case, setup.device.type)
        if not self.note and self.left_out:
            self.note = "left out of this run (--rivals)"
        if self.note:
            return
        try:
            ready = self.rival.prepare(setup)
            call = call_of(ready.attention, sets, case.trains)
            with ready.around():
                _wait(setup.device.type)
                start = time.perf_counter()
                call()
                _wait(setup.device.type)
                self.first_ms = (time.perf_counter() - start) * 1e3
                # A rival's own dropout draws other numbers than the reference.
                if self.rival.masked and (self.rival.name == OURS or not case.dropout):
                    self.note = check.refusal(
                        ready.attention, stores_scores=ready.stores_scores,
                        plan=setup.plan if self.rival.name == OURS else None,
                    )  # fmt: skip
        except Exception as error:  # what cannot run is a row as well
            if is_fatal(error):
                raise
            self.note = in_a_line(error)
            return
        if not self.note:
            self.ready, self.call, self.note = ready, call, ready.note

    def row(self, case: Case, limits: roofs.Roofs, ours: _Entry) -> Values:
        """The row; without times if there are none."""
        row = {**self.common, "contender": self.rival.name, "note": self.note}
        if self.ready is None or not self.times:
            return row
        low, median, high = quantiles(self.times)
        bound = roofs.bound(case, self.ready.executed, limits)
        ratios = [mine / our for mine, our in zip(self.times, ours.times, strict=True)]
        row |= {
            "executed": f"{self.ready.executed:.4f}",
            "first_ms": f"{self.first_ms:.1f}",
            "ms_20": f"{low:.4f}",
            "ms_50": f"{median:.4f}",
            "ms_80": f"{high:.4f}",
            "speedup": f"{statistics.median(ratios):.3f}",
            "floor_ms": f"{bound.floor_ms:.4f}",
            "area_ms": f"{bound.area_ms:.4f}",
            "of_bound": f"{bound.ms / median:.4f}",
        }
        if self.work is not None:
            row |= roofs.of_work(case, self.work, median, limits)
        if self.peak_mb is not None:
            row["peak_mb"] = f"{self.peak_mb:.1f}"
        if self.graph_ms is not None:
            row["graph_ms"] = f"{self.graph_ms:.4f}"
            waits = median > gpu_timing.LAUNCH_BOUND * self.graph_ms
            row["launch_bound"] = "yes" if waits else "no"
            if ours.graph_ms is not None:
                row["graph_speedup"] = f"{self.graph_ms / ours.graph_ms:.3f}"
        return row


def _measure(entries: list[_Entry], device: str, seconds: float, sets: int) -> None:
    """Time the contenders that run, in turn."""
    if device == "cpu":
        alone = {e.rival.name: e.call for e in entries if e.call is not None}
        found = side_by_side(alone, seconds=seconds, least=ROUNDS, clock=own_clock()[0])
    else:
        calls = {
            e.rival.name: (e.call, e.ready.around)
            for e in entries
            if e.call is not None and e.ready is not None
        }
        for entry in entries:
            call, around = calls[entry.rival.name]
            with around():
                entry.peak_mb = peak_bytes(call, device) / 1e6
        found = gpu_timing.by_events(calls, seconds=seconds)
        for entry in entries:
            try:
                entry.graph_ms = gpu_timing.by_graph(*calls[entry.rival.name], max(sets, 4))
            except Exception as error:  # an operation that CUDA graphs cannot hold
                entry.note = f"{entry.note}; no graph: {type(error).__name__}".lstrip("; ")
    for entry in entries:
        entry.times = found[entry.rival.name]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
