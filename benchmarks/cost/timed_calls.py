"""The calls that the cost model is fitted to and checked with, and how they are timed.

Attention of one batch and 12 heads on the CPU, fp32. Times are the least of several: other work on
the machine only adds to them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

import sparsebert
from benchmarks.harness.origin import origin
from benchmarks.harness.rows import RowFile
from sparsebert.plan import AttentionPlan
from sparsebert.reporting.timing import own_clock

BACKEND, TARGET = "torch", "cpu"
HEADS = 12
ROUNDS = 5
THREADS = (1, 2)
SPELL = 0.02
"""Seconds for which a call is repeated in a round."""


def forward_and_backward(
    plan: AttentionPlan, backend: str, head_dim: int
) -> tuple[Callable[[], object], ...]:
    """The forward and the backward pass of a call, to be timed."""
    q, k, v, grad = torch.randn(4, 1, plan.q_len, HEADS, head_dim).transpose(2, 3).unbind(0)
    q, k, v = (x.requires_grad_() for x in (q, k, v))

    def forward() -> torch.Tensor:
        return sparsebert.sparse_attention(q, k, v, plan, backend=backend)

    o = forward()
    return forward, lambda: torch.autograd.grad(o, (q, k, v), grad, retain_graph=True)


def least(call: Callable[[], object]) -> float:
    """Least time of a call in microseconds: CPU time of this thread if it is the only one."""
    clock, _ = own_clock()
    times: list[float] = []
    while sum(times) < SPELL:
        start = clock()
        call()
        times.append(clock() - start)
    return min(times) * 1e6


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Rows with provenance."""
    RowFile(path, rows[0], origin=origin()).write(rows)
