"""What the machine allows: measured roofs, and the least time that they leave for a row.

Memory floor: q, k, v and o moved once, elements of e bytes; rows [N], keys [M]:

    forward             e B H D (2 N + 2 M)     q, o and k, v
    backward            e B H D (4 N + 4 M)     q, o, do, dq and k, v, dk, dv

Executed-area bound, for the scores that a contender computes (a fraction x of N x M):

    forward             4   D x N M B H  flop   two products of 2 D flop a score
    backward            10  D x N M B H  flop   five products: 2.5 times the forward pass

The bound of a row is the longer of the two, over both passes where both are timed. The mask, the
LSE, softmax and index lists are not counted, so nothing reaches 100 %.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from benchmarks.attention.cases import Case
from sparsebert.reporting.timing import side_by_side

BACKWARD_FLOP = 2.5  # of the forward pass: five matrix products instead of two


@dataclasses.dataclass(frozen=True)
class Roofs:
    """Rates measured in the same run.

    Attributes:
        copy_gb_s: reading and writing memory, GB (10^9 bytes) a second, both counted.
        matrix_tflop_s: torch.mm of large square matrices, 10^12 flop a second, by dtype; fp32's
            where that is faster.
    """

    copy_gb_s: float
    matrix_tflop_s: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Bound:
    """Least times of a row, in milliseconds."""

    floor_ms: float
    area_ms: float

    @property
    def ms(self) -> float:
        """The longer of the two."""
        return max(self.floor_ms, self.area_ms)


def moved_bytes(case: Case) -> int:
    """Bytes of q, k, v and o, and in training also of their gradients and what backward reads."""
    size = torch.finfo(getattr(torch, case.dtype)).bits // 8
    tensors = 4 + (8 if case.trains else 0)
    return size * case.batch * case.heads * case.length * case.dim * tensors


def flop(case: Case, executed: float) -> float:
    """Operations of the matrix products, with a share `executed` of the scores computed."""
    scores = executed * case.length**2 * case.batch * case.heads
    return 4.0 * case.dim * scores * (1.0 + (BACKWARD_FLOP if case.trains else 0.0))


def bound(case: Case, executed: float, roofs: Roofs) -> Bound:
    """The least time of a case for a contender that computes a share `executed` of the scores."""
    return Bound(
        moved_bytes(case) / (roofs.copy_gb_s * 1e9) * 1e3,
        flop(case, executed) / (roofs.matrix_tflop_s[case.dtype] * 1e12) * 1e3,
    )


def measure(device: str, dtypes: set[str], repeats: int = 10) -> Roofs:
    """Measure the roofs of this machine; a few seconds."""
    size = 2**30 if device == "cuda" else 2**27
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * size / _seconds(lambda: target.copy_(source), device, repeats)
    rates = {}
    for name in sorted({*dtypes, "float32"}):
        # A CPU without instructions for fp16 and bf16 takes seconds where fp32 takes a moment.
        edge = 8192 if device == "cuda" else 1536 if name == "float32" else 384
        a, b = (torch.randn(edge, edge, device=device).to(getattr(torch, name)) for _ in range(2))
        seconds = _seconds(lambda a=a, b=b: torch.mm(a, b), device, repeats)
        rates[name] = 2 * edge**3 / seconds / 1e12
    # Nobody has to compute in 16 bits where fp32 is faster.
    return Roofs(copy / 1e9, {name: max(rates[name], rates["float32"]) for name in dtypes})


def _seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """The fastest of several calls: a roof is what the machine can do."""
    if device == "cuda":
        from triton.testing import do_bench

        return float(do_bench(call, return_mode="min")) / 1e3
    (times,) = side_by_side({"roof": call}, seconds=0.0, least=repeats).values()
    return min(times) / 1e3
