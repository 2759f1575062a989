"""The quick timings of `gpu_check`: this project, torch's SDPA and FlexAttention, by events."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel

import sparsebert as sb
from benchmarks.harness import named_masks
from benchmarks.kernels.gpu_cases import PLAIN, QUICK_MASKS, QUICK_SHAPES, TIME, Case, Row, key_of
from sparsebert.plan import AttentionPlan
from sparsebert.plan_cache import compile_for

HEADS, DIM = 12, 64
DENSE, OURS, SDPA, FLEX = "dense", "sparsebert", "sdpa", "flex"
NO_MASK = "none (dense)"
_BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")


@dataclasses.dataclass(frozen=True)
class Timing:
    """One contender on one mask and shape; forward, and forward with backward."""

    method: str
    mask: str
    batch: int
    n: int
    backend: str = ""

    @property
    def row(self) -> Row:
        """The timing as columns."""
        shape = {"batch": self.batch, "heads": HEADS, "n": self.n, "dim": DIM}
        name = f"sdpa {self.backend.lower()}" if self.backend else self.method
        return {"check": "timing", "mask": self.mask, "method": name, **shape, "dtype": "bfloat16"}

    @property
    def checked_by(self) -> Case | None:
        """The case that must have passed; none for what is not ours."""
        if self.method != OURS:
            return None
        return Case(TIME, self.mask, self.n, DIM, "bfloat16", PLAIN)


def all_timings() -> list[Timing]:
    """This project and its yardstick first; what compiles long last."""
    found = []
    for batch, n in QUICK_SHAPES:
        found += [Timing(DENSE, NO_MASK, batch, n, backend) for backend in _BACKENDS]
        found += [Timing(OURS, mask, batch, n) for mask in QUICK_MASKS]
    for method in (SDPA, FLEX):
        found += [Timing(method, mask, b, n) for b, n in QUICK_SHAPES for mask in QUICK_MASKS]
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


def _shares_kernels(row: Row, case: Case, heights: set[int]) -> bool:
    if key_of(row) == dataclasses.astuple(case):
        return True
    # Grouped heads are the same kernels; key mask and dropout are others.
    same = (row["dim"], row["dtype"]) == (case.dim, case.dtype)
    if not same or row["features"] not in (PLAIN, "gqa"):
        return False
    return not row.get("heights") or not heights.isdisjoint(row["heights"])


def time_rows(timing: Timing, has_time: Callable[[], bool]) -> Iterator[Row]:
    """A row for each direction; one that cannot run, or has no time left, says so."""
    torch.manual_seed(0)
    shape = (timing.batch, timing.n, HEADS, DIM)
    q, k, v, grad_o = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(4)
    )
    inputs = [x.requires_grad_() for x in (q, k, v)]
    call: Callable[[], torch.Tensor] | None = None
    for direction in ("forward", "both"):
        row = timing.row | {"direction": direction}
        if not has_time():
            yield row | {"why": "not timed: out of time"}
            continue
        try:
            call = call or _call_of(timing, inputs)

            def backward(call: Callable[[], torch.Tensor] = call) -> Any:
                return torch.autograd.grad(call(), inputs, grad_o)

            with torch.set_grad_enabled(direction == "both"):
                row |= time_call(call if direction == "forward" else backward)
        except Exception as error:  # a backend that cannot run is a row as well
            row |= {"why": f"{type(error).__name__}: {error}"[:200]}
        yield row


def time_call(call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds at the 20, 50 and 80 % quantiles, each call timed by events of its own."""
    for _ in range(5):
        call()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(30)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in events]
    low, middle, high = (statistics.quantiles(times, n=10)[i] for i in (1, 4, 7))
    return {"ms_20": round(low, 4), "ms_50": round(middle, 4), "ms_80": round(high, 4)}


def _call_of(timing: Timing, inputs: Sequence[torch.Tensor]) -> Callable[[], torch.Tensor]:
    q, k, v = inputs
    sdpa = torch.nn.functional.scaled_dot_product_attention
    if timing.method == DENSE:

        def dense() -> torch.Tensor:
            with sdpa_kernel(getattr(SDPBackend, timing.backend)):
                return sdpa(q, k, v)

        return dense
    if timing.method == OURS:
        plan = _plan(timing.mask, timing.n)
        return lambda: _output(sb.sparse_attention(q, k, v, plan))
    allowed = named_masks.build(timing.mask, timing.n, HEADS).dense().cuda()  # [1, 1 or H, N, N]
    if timing.method == SDPA:
        return lambda: sdpa(q, k, v, attn_mask=allowed)
    of_head = allowed[0, 0]
    block_mask = flex_attention.create_block_mask(
        lambda b, h, i, j: of_head[i, j], None, None, *of_head.shape, device="cuda"
    )
    flex = torch.compile(flex_attention.flex_attention)
    return lambda: flex(q, k, v, block_mask=block_mask)


@functools.lru_cache(maxsize=8)
def _plan(mask: str, n: int) -> AttentionPlan:
    """The plan that was checked."""
    built = named_masks.build(mask, n, HEADS)
    return compile_for(built, torch.device("cuda"), DIM, HEADS).to("cuda")


def _output(result: Any) -> torch.Tensor:
    assert isinstance(result, torch.Tensor)  # there is no LSE with it
    return result
