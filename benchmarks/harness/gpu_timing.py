"""Timing on a GPU: one call alone, several in turn, and CUDA graphs of many calls."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

BURST = 10  # calls of one contender in a turn
LAUNCH_BOUND = 1.25  # single calls this many times slower than in a graph wait for the host

Call = Callable[[], object]
Around = Callable[[], contextlib.AbstractContextManager[Any]]


def alone(call: Call, *, milliseconds: float = 100.0) -> dict[str, float]:
    """Milliseconds of a call with a cold L2: its 20, 50 and 80 % quantiles, as columns of a row.

    `do_bench` clears the cache before each call, and raises whatever the call raises. All calls
    together take about `milliseconds`, and a quarter of that to warm up.
    """
    from triton.testing import do_bench

    quantiles = [0.2, 0.5, 0.8]
    found = do_bench(call, warmup=milliseconds / 4, rep=milliseconds, quantiles=quantiles)
    return {
        name: round(ms, 4) for name, ms in zip(("ms_20", "ms_50", "ms_80"), found, strict=True)
    }


def by_events(
    calls: Mapping[str, tuple[Call, Around]], *, seconds: float, least: int = 3
) -> dict[str, list[float]]:
    """Milliseconds of single calls, in turns of `BURST` calls, until `seconds` have passed.

    By hand, for `do_bench` times one call alone for as long as it takes: a clock that drifts would
    hit one contender and not the others, and the ratios of single rounds need equal numbers.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call, around in calls.values():
        with around():
            for _ in range(3):
                call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    rounds = 0
    while rounds < least or time.perf_counter() - start < seconds:
        for name, (call, around) in calls.items():
            with around():
                times[name] += _burst(call)
        rounds += 1
    return times


def _burst(call: Call) -> list[float]:
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(BURST)]
    for before, after in events:
        before.record()
        call()
        after.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in events]


def by_graph(call: Call, around: Around, calls: int, replays: int = 15) -> float:
    """Milliseconds of a call, as the median over replays of a CUDA graph that holds `calls`.

    By hand, for `do_bench_cudagraph` chooses the number of calls by their time, and here the graph
    has to hold one for each set of inputs, so that no cache flatters.

    Raises whatever torch raises for a call that cannot be captured.
    """
    with around():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
    times = []
    for repeat in range(replays + 2):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()
        if repeat >= 2:
            times.append(before.elapsed_time(after) / calls)
    graph.reset()
    return sorted(times)[len(times) // 2]


def cache_bytes() -> int:
    """The GPU's L2."""
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
