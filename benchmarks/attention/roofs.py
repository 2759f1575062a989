"""What the machine allows: measured roofs, and the least time that they leave for a row.

Memory floor: q, k, v and o moved once, elements of e bytes; rows [N], keys [M]:

    forward             e B H D (2 N + 2 M)     q, o and k, v
    backward            e B H D (4 N + 4 M)     q, o, do, dq and k, v, dk, dv

Executed-area bound, for the scores that a contender computes (a fraction x of N x M):

    forward             4   D x N M B H  flop   two products of 2 D flop a score
    backward            10  D x N M B H  flop   five products: 2.5 times the forward pass

The bound of a row is the longer of the two, over both passes where both are timed. The mask, the
LSE, softmax and index lists are not counted, so nothing reaches 100 %.

Of calls of the native CPU kernels rows also have the share of a core's peak, which is measured by
itself (`core_peak`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from benchmarks.attention import core_peak
from benchmarks.attention.cases import Case
from benchmarks.attention.core_peak import CorePeak
from benchmarks.attention.plan_work import ROWS, Work
from sparsebert.reporting.timing import side_by_side

BACKWARD_FLOP = 2.5  # of the forward pass: five matrix products instead of two


@dataclasses.dataclass(frozen=True)
class Roofs:
    """Rates measured in the same run.

    Attributes:
        copy_gb_s: reading and writing memory, GB (10^9 bytes) a second, both counted.
        matrix_tflop_s: torch.mm of large square matrices, 10^12 flop a second, by dtype; fp32's
            where that is faster.
        core: what a core of a CPU can do at most; None on a GPU, or where it is not known.
        threads: torch's, of the CPU.
    """

    copy_gb_s: float
    matrix_tflop_s: dict[str, float]
    core: CorePeak | None = None
    threads: int = 1

    def peak_gflop_s(self, dtype: str) -> float:
        """The peak of all cores that threads run on; 0 if it is not known."""
        return 0.0 if self.core is None else self.core.gflop_s(dtype) * self.threads


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
    tensors = 4 + (8 if case.trains else 0)
    return element_bytes(case) * case.batch * case.heads * case.length * case.dim * tensors


def element_bytes(case: Case) -> int:
    """Bytes of an element of q, k and v."""
    return torch.finfo(getattr(torch, case.dtype)).bits // 8


def flop(case: Case, executed: float) -> float:
    """Operations of the matrix products, with a share `executed` of the scores computed."""
    scores = executed * case.length**2 * case.batch * case.heads
    return 4.0 * case.dim * scores * (1.0 + (BACKWARD_FLOP if case.trains else 0.0))


def bound(case: Case, executed: float, roofs: Roofs) -> Bound:
    """The least time of a case for a contender that computes a share `executed` of the scores."""
    # On AMD torch's products are slower than the processor's multiply-adds.
    rate = max(roofs.matrix_tflop_s[case.dtype], roofs.peak_gflop_s(case.dtype) / 1e3)
    return Bound(
        moved_bytes(case) / (roofs.copy_gb_s * 1e9) * 1e3,
        flop(case, executed) / (rate * 1e12) * 1e3,
    )


def of_work(case: Case, work: Work, ms: float, roofs: Roofs) -> dict[str, object]:
    """The columns of a row that compare a call of the native kernels with a core's peak.

    The flop are those of `flop` for the scores that the plan computes; the time of 2^x is what
    one for each of them (and another in the backward pass) takes at the kernels' own rate. What is
    read is a row of k and one of v for each column of a tile and each single entry, whichever
    cache has them.
    """
    every = case.length**2 * case.batch * case.heads
    gflop_s = flop(case, work.scores / every) / ms / 1e6
    row: dict[str, object] = {
        "routes": work.routes,
        "tile_scores": work.tile_scores,
        "entry_scores": work.entry_scores,
        "gflop_s": f"{gflop_s:.1f}",
        "moved_mb": f"{moved_bytes(case) / 1e6:.3f}",
    }
    read = 0.0
    if not case.trains and not work.dense_scores:
        pairs = work.tile_scores // ROWS + work.entry_scores
        read = 2 * pairs * case.dim * element_bytes(case) / ms / 1e6
        row["read_gb_s"] = f"{read:.1f}"
    if roofs.core is not None:
        peak = roofs.peak_gflop_s(case.dtype)
        exps = work.scores * (2 if case.trains else 1)
        row |= {
            "peak_gflop_s": f"{peak:.1f}",
            "of_peak": f"{gflop_s / peak:.4f}",
            "exp_share": f"{exps * roofs.core.exp_ns / roofs.threads / 1e6 / ms:.4f}",
        }
        if read:
            row["of_l2"] = f"{read / (roofs.core.l2_gb_s * roofs.threads):.4f}"
    return row


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
    return Roofs(
        copy / 1e9,
        {name: max(rates[name], rates["float32"]) for name in dtypes},
        None if device == "cuda" else core_peak.measure(),
        torch.get_num_threads(),
    )


def _seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """The fastest of several calls: a roof is what the machine can do."""
    if device == "cuda":
        from triton.testing import do_bench

        return float(do_bench(call, return_mode="min")) / 1e3
    (times,) = side_by_side({"roof": call}, seconds=0.0, least=repeats).values()
    return min(times) / 1e3
