"""Phase of a GPU's first run: FlexAttention's compilations, while the kernels are being checked.

torch.compile takes five to ten seconds for each length and formula, and keeps its results on disk,
where the timings then find them. Each is made in one of a few processes, which call it once on the
shapes that will be timed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from benchmarks.attention.cases import DIRECTIONS, build_mask
from benchmarks.attention.contender import CaseSetup
from benchmarks.attention.inputs import call_of, tensors_of
from benchmarks.attention.rivals import FLEX, FLEX_FORMULA, FLEX_TUNED, RIVALS
from benchmarks.gpu.gpu_times import Timing, all_timings, missing
from benchmarks.harness import workers
from benchmarks.harness.errors import in_words

_JOBS = 6


def warm_up(
    seconds: float,
    record: Any,
    todo: Sequence[Timing] | None = None,
    jobs: int = _JOBS,
    compiled: Callable[[Timing], float] | None = None,
) -> None:
    """Phase: a row for each compilation as it is done.

    Args:
        seconds: after that, what is left is compiled when it is timed.
        record: takes the rows.
        todo: None means what `gpu_times` times and the record has no times of.
        jobs: processes.
        compiled: compiles for a timing, and returns the seconds; None means `compile_once`.
    """
    end = time.monotonic() + seconds
    try:
        if compiled is None and not torch.cuda.is_available():
            record.add({"check": "flex warm-up", "passed": None, "why": "no CUDA or ROCm device"})
            return
        if todo is None:
            todo = [timing for timing, _ in missing(all_timings(), record)]
        todo = compilations(todo)
        results = workers.results_of(
            compiled or compile_once, todo, jobs, end=end, limit=end - time.monotonic()
        )
        for timing, result in results:
            row: dict[str, object] = {
                "check": "flex warm-up", "contender": timing.contender, "mask": timing.mask,
                "n": timing.n, "passed": None,
            }  # fmt: skip
            what = f"{timing.contender}, {timing.mask}, N = {timing.n}: "
            if isinstance(result, workers.Failure):
                record.add(row | {"why": what + result.why})
            else:
                took = {"seconds": round(result, 1), "why": f"{what}{result:.1f} s"}
                record.add(row | took | {"passed": True})
    except Exception as error:  # then the timings compile for themselves
        record.add({"check": "flex warm-up", "passed": None, "why": in_words(error)})


def compilations(timings: Sequence[Timing]) -> list[Timing]:
    """FlexAttention's timings, one for each graph: with bits, the masks of a shape share one."""
    found: dict[tuple[object, ...], Timing] = {}
    for timing in timings:
        if timing.contender in (FLEX, FLEX_TUNED, FLEX_FORMULA):
            mask = timing.mask if timing.contender == FLEX_FORMULA else ""
            shape = (timing.batch, timing.heads, timing.n)
            found.setdefault((timing.contender, mask, *shape), timing)
    return list(found.values())


def compile_once(timing: Timing, device: str = "cuda") -> float:
    """Compile and call forward alone, then with backward; the seconds that it took.

    Just as the timings do it: what torch keeps of a graph is known by whether its inputs want
    gradients, too.
    """
    begin = time.monotonic()
    rival = next(rival for rival in RIVALS if rival.name == timing.contender)
    no_plan = cast(Any, None)  # FlexAttention takes the mask
    for direction in DIRECTIONS:
        case = timing.case(direction)
        tensors = tensors_of(case, device)
        ready = rival.prepare(CaseSetup(case, build_mask(case), no_plan, tensors[:3], None))
        call_of(ready.attention, itertools.repeat(tensors), case.trains)()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - begin
