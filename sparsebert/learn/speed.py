"""What the masks would save, by the cost model, and what they save on the machine at hand."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.nn.functional import scaled_dot_product_attention

from sparsebert.api import sparse_attention
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan, compile_plan
from sparsebert.reporting.timing import Spread, own_clock, side_by_side

GPU = "sm90"
"""A GPU to predict for, wherever the run takes place."""


@dataclasses.dataclass(frozen=True)
class Calls:
    """The calls of attention that matter: batch, heads and head size."""

    batch: int
    heads: int
    head_dim: int

    def compile(self, mask: AttentionMask, target: str | None = None) -> AttentionPlan:
        """The plan of a mask of one layer for such calls."""
        copies = self.batch * self.heads
        return compile_plan(mask, target=target, head_dim=self.head_dim, copies=copies)


def predicted(mask: AttentionMask, calls: Calls, target: str | None = None) -> dict[str, float]:
    """Executed fraction and forward speed-up over dense of all layers, by the cost model."""
    reports = [calls.compile(mask.layer(i), target).explain() for i in range(mask.num_layers)]
    return {
        "executed": statistics.fmean(report.executed_fraction for report in reports),
        # Dense, every layer takes the same time.
        "speedup": statistics.harmonic_mean([report.predicted_speedup for report in reports]),
    }


def measured(
    masks: Mapping[str, AttentionMask], calls: Calls, *, most: int, seconds: float
) -> dict[str, dict[str, Spread]]:
    """Forward times of attention alone, in ms, from `most` rounds, or fewer in so many seconds.

    For each mask "sparse_ms"; beside it "dense_ms", SDPA without a mask, and "masked_ms", SDPA
    with that mask, which computes what the sparse one does; and "measured", how many times as fast
    as the latter it is. The first layer's mask is timed.
    """
    length = next(iter(masks.values())).q_len
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = (calls.batch, calls.heads, length, calls.head_dim)
    q, k, v = torch.randn(3, *shape, device=device)

    def call(run: Callable[[], object]) -> Callable[[], object]:
        def finished() -> None:
            with torch.inference_mode():
                run()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return finished

    def sparse(mask: AttentionMask) -> Callable[[], object]:
        plan = calls.compile(mask).to(device)
        return lambda: sparse_attention(q, k, v, plan)

    def masked(mask: AttentionMask) -> Callable[[], object]:
        allowed = mask.dense().to(device)  # [1, H or 1, N, N]
        return lambda: scaled_dot_product_attention(q, k, v, attn_mask=allowed)

    timed = {"dense": call(lambda: scaled_dot_product_attention(q, k, v))}
    for name, mask in masks.items():
        timed[f"sparse {name}"] = call(sparse(mask.layer(0)))
        timed[f"masked {name}"] = call(masked(mask.layer(0)))
    clock = time.perf_counter if device.type == "cuda" else own_clock()[0]
    spent = side_by_side(timed, seconds=seconds, least=1, most=most, clock=clock)
    return {
        name: {
            "sparse_ms": Spread.of(spent[f"sparse {name}"]),
            "dense_ms": Spread.of(spent["dense"]),
            "masked_ms": Spread.of(spent[f"masked {name}"]),
            "measured": Spread.ratio(spent[f"masked {name}"], spent[f"sparse {name}"]),
        }
        for name in masks
    }
