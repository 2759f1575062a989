"""Contenders of one case of the attention benchmark in turn: by events and in CUDA graphs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.attention.cases import Case, build_mask
from benchmarks.attention.contender import CaseSetup, Ready
from benchmarks.attention.correctness import Tensors
from benchmarks.attention.inputs import call_of, compiled_plan, sets_of
from benchmarks.attention.rivals import OURS, RIVALS
from benchmarks.harness import gpu_timing
from benchmarks.harness.errors import in_words, is_fatal
from benchmarks.harness.memory import peak_bytes
from benchmarks.harness.rows import Row
from benchmarks.harness.workers import LostDevice
from sparsebert.reporting.timing import quantiles, side_by_side

ROUNDS = 3
_GRAPH_CALLS, _REPLAYS = 4, 9


@dataclasses.dataclass
class _Entry:
    """A contender that runs: its row up to now."""

    ready: Ready
    call: Callable[[], object]
    row: Row


def measured(case: Case, contenders: Sequence[str], device: str) -> dict[str, Row]:
    """The columns of each contender; what cannot run, or not in a graph, says why.

    Raises LostDevice when nothing else can run in this process.
    """
    try:
        return _measured(case, contenders, device)
    except Exception as error:  # such as a mask that is not there
        _raise_if_lost(error, "in turn")
        return {name: {"why": in_words(error)} for name in contenders}


def _measured(case: Case, contenders: Sequence[str], device: str) -> dict[str, Row]:
    mask = build_mask(case)
    plan, _ = compiled_plan(mask, device, case.dim, case.heads)
    inputs = sets_of(case, device)
    setup = CaseSetup(case, mask, plan, inputs[0][:3], key_mask=None)
    sets = itertools.cycle(inputs)
    rows: dict[str, Row] = {}
    running: dict[str, _Entry] = {}
    for name in contenders:
        try:
            running[name] = _prepared(name, setup, sets)
            rows[name] = running[name].row
        except Exception as error:  # a backend that cannot run is a row as well
            _raise_if_lost(error, name)
            rows[name] = {"why": in_words(error)}
    if running:
        _time(running, device, max(_GRAPH_CALLS, len(inputs)))
        if not case.trains:
            _compare(running, inputs[0])
    return rows


def _raise_if_lost(error: Exception, who: str) -> None:
    """A call that a CUDA graph cannot hold fails as if the GPU were lost, but it still answers."""
    if is_fatal(error) and not _answers():
        raise LostDevice(f"{who}: {in_words(error)}") from error


def _answers() -> bool:
    try:
        return float(torch.ones(8, device="cuda").sum()) == 8.0
    except Exception:
        return False


def _prepared(name: str, setup: CaseSetup, sets: Iterator[Tensors]) -> _Entry:
    """The contender after its first call, which compiles what it needs."""
    rival = next(rival for rival in RIVALS if rival.name == name)
    device = setup.device.type
    ready = rival.prepare(setup)
    call = call_of(ready.attention, sets, setup.case.trains)
    with ready.around():
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        first = time.perf_counter() - start
        peak = peak_bytes(call, device)
    row: Row = {"executed": round(ready.executed, 4), "first_ms": round(1e3 * first, 1)}
    row["peak_mb"] = round(peak / 1e6, 1)
    return _Entry(ready, call, row | ({"note": ready.note} if ready.note else {}))


def _time(running: dict[str, _Entry], device: str, graph_calls: int) -> None:
    """Times of single calls in turn, ratios of rounds, times in a graph."""
    if device == "cpu":
        calls = {name: entry.call for name, entry in running.items()}
        times = side_by_side(calls, seconds=0.0, least=ROUNDS)
    else:
        times = gpu_timing.by_events(
            {name: (entry.call, entry.ready.around) for name, entry in running.items()},
            seconds=0.0, least=ROUNDS,
        )  # fmt: skip
    ours = times.get(OURS)
    for name, entry in running.items():
        for column, ms in zip(("ms_20", "ms_50", "ms_80"), quantiles(times[name]), strict=True):
            entry.row[column] = round(ms, 4)
        if ours is not None:
            ratios = [theirs / our for theirs, our in zip(times[name], ours, strict=True)]
            entry.row["speedup"] = round(statistics.median(ratios), 3)
        if device == "cuda":
            entry.row |= _in_graph(name, entry, graph_calls)


def _in_graph(name: str, entry: _Entry, calls: int) -> Row:
    try:
        ms = gpu_timing.by_graph(entry.call, entry.ready.around, calls, _REPLAYS)
    except Exception as error:  # an operation that CUDA graphs cannot hold
        _raise_if_lost(error, name)
        return {"graph_why": in_words(error)}
    waits = entry.row["ms_50"] > gpu_timing.LAUNCH_BOUND * ms
    return {"graph_ms": round(ms, 4), "launch_bound": waits}


def _compare(running: dict[str, _Entry], inputs: Tensors) -> None:
    """How far the output of others that know the mask is from ours, which was checked."""
    if OURS not in running:
        return
    masked = {rival.name for rival in RIVALS if rival.masked}
    outputs = {}
    for name, entry in running.items():
        if name in masked:
            with torch.no_grad(), entry.ready.around(), contextlib.suppress(Exception):
                outputs[name] = entry.ready.attention(*inputs[:3])
    for name, o in outputs.items():
        if name != OURS:
            running[name].row["off_ours"] = float((o - outputs[OURS]).abs().max())
