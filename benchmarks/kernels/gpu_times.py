"""The quick timings of `gpu_check`: this project and some of the benchmark's rivals."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import torch

from benchmarks.attention.cases import BERT_BASE, BOTH, DIRECTIONS, Case, build_mask
from benchmarks.attention.contender import CaseSetup, Ready
from benchmarks.attention.inputs import call_of, compiled_plan, tensors_of
from benchmarks.attention.rivals import CUDNN, EFFICIENT, FLASH, FLEX, OURS, RIVALS, SDPA_MASK
from benchmarks.harness import gpu_timing
from benchmarks.harness.errors import in_words
from benchmarks.harness.rows import Row
from benchmarks.kernels.gpu_cases import (
    PLAIN,
    QUICK_MASKS,
    QUICK_SHAPES,
    TIME,
    KernelCase,
    key_of,
)

DTYPE = "bfloat16"


@dataclasses.dataclass(frozen=True)
class Timing:
    """One contender, by its name in `rivals`, on one mask and shape; in both directions."""

    contender: str
    mask: str
    batch: int
    n: int

    def case(self, direction: str) -> Case:
        """The case of the attention benchmark that it is."""
        name, heads, dim = dataclasses.astuple(BERT_BASE)
        return Case(
            "gpu_check", name, self.batch, heads, self.n, dim, self.mask, direction, DTYPE
        )  # fmt: skip

    @property
    def row(self) -> Row:
        """The timing as columns."""
        shape = {"heads": BERT_BASE.heads, "dim": BERT_BASE.dim, "dtype": DTYPE}
        return {"check": "timing", **dataclasses.asdict(self), **shape}

    @property
    def checked_by(self) -> KernelCase | None:
        """The case that must have passed; none for what is not ours."""
        if self.contender != OURS:
            return None
        return KernelCase(TIME, self.mask, self.n, BERT_BASE.dim, DTYPE, PLAIN)


def all_timings() -> list[Timing]:
    """This project and its yardstick first; what compiles long last."""
    found = []
    for shape in QUICK_SHAPES:
        found += [Timing(rival, "dense", *shape) for rival in (FLASH, CUDNN, EFFICIENT)]
        found += [Timing(OURS, mask, *shape) for mask in QUICK_MASKS]
    for rival, shape, mask in itertools.product((SDPA_MASK, FLEX), QUICK_SHAPES, QUICK_MASKS):
        found.append(Timing(rival, mask, *shape))
    return found


def why_not(timing: Timing, rows: Iterable[Row]) -> str:
    """Why a timing must not be made, given the rows of what was checked; "" if it may.

    Its own case must have passed, and none that runs the same compiled kernels may be wrong.
    """
    case = timing.checked_by
    if case is None:
        return ""
    rows = [row for row in rows if row["check"] == "correct"]
    own = [row for row in rows if key_of(row) == dataclasses.astuple(case)]
    if not own or own[-1]["passed"] is None:
        return "not timed: its plan was not checked"
    heights = set(own[-1].get("heights", ()))
    for row in rows:
        if row["passed"] is False and _shares_kernels(row, case, heights):
            what = f"{row['mask']}, N = {row['n']}, plan {row['plan']}, {row['features']}"
            return f"not timed: red in {what}"
    return ""


def _shares_kernels(row: Row, case: KernelCase, heights: set[int]) -> bool:
    if key_of(row) == dataclasses.astuple(case):
        return True
    # Grouped heads are the same kernels; key mask and dropout are others.
    same = (row["dim"], row["dtype"]) == (case.dim, case.dtype)
    if not same or row["features"] not in (PLAIN, "gqa"):
        return False
    return not row.get("heights") or not heights.isdisjoint(row["heights"])


def time_rows(timing: Timing, has_time: Callable[[], bool], device: str = "cuda") -> Iterator[Row]:
    """A row for each direction; one that cannot run, or has no time left, says so."""
    torch.manual_seed(0)
    tensors = tensors_of(timing.case(BOTH), device)
    ready = None
    for direction in DIRECTIONS:
        row = timing.row | {"direction": direction}
        if not has_time():
            yield row | {"why": "not timed: out of time"}
            continue
        try:
            ready = ready or _prepared(timing, tensors[:3], device)
            call = call_of(ready.attention, itertools.repeat(tensors), direction == BOTH)
            with ready.around():
                row |= gpu_timing.alone(call)
        except Exception as error:  # a backend that cannot run is a row as well
            row |= {"why": in_words(error)}
        yield row


def _prepared(timing: Timing, qkv: tuple[torch.Tensor, ...], device: str) -> Ready:
    """The contender; this project's with the plan that was checked."""
    case = timing.case(BOTH)
    mask = build_mask(case)
    plan, _ = compiled_plan(mask, device, case.dim, case.heads)
    rival = next(rival for rival in RIVALS if rival.name == timing.contender)
    return rival.prepare(CaseSetup(case, mask, plan, qkv, key_mask=None))
