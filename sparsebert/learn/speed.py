"""What the masks would save, by the cost model, and what they save on the machine at hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch
from torch.nn.functional import scaled_dot_product_attention

from sparsebert.cli.demo.timing import Calls, interleaved
from sparsebert.compiler import compile_plan
from sparsebert.masks import AttentionMask
from sparsebert.ops import sparse_attention

GPU = "sm90"
"""A GPU to predict for, wherever the run takes place."""


def predicted(mask: AttentionMask, target: str | None = None) -> dict[str, float]:
    """Executed fraction and forward speed-up over dense of all layers, by the cost model."""
    reports = [
        compile_plan(mask.layer(i), target=target).explain() for i in range(mask.num_layers)
    ]
    return {
        "executed": statistics.fmean(report.executed_fraction for report in reports),
        # Dense, every layer takes the same time.
        "speedup": statistics.harmonic_mean([report.predicted_speedup for report in reports]),
    }


def measured(
    masks: Mapping[str, AttentionMask], batch: int, heads: int, head_dim: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Forward times of attention alone, in ms: medians of interleaved runs.

    For each mask "sparse_ms"; beside it "dense_ms", SDPA without a mask, and "masked_ms", SDPA
    with that mask, which computes what the sparse one does. The first layer's mask is timed.
    """
    length = next(iter(masks.values())).q_len
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    q, k, v = torch.randn(3, batch, heads, length, head_dim, device=device)

    def call(run: Callable[[], object]) -> Callable[[], object]:
        def finished() -> None:
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return finished

    def sparse(mask: AttentionMask) -> Callable[[], object]:
        plan = compile_plan(mask).to(device)
        return lambda: sparse_attention(q, k, v, plan)

    def masked(mask: AttentionMask) -> Callable[[], object]:
        allowed = mask.dense().to(device)  # [1, H or 1, N, N]
        return lambda: scaled_dot_product_attention(q, k, v, attn_mask=allowed)

    calls: Calls = {"dense": call(lambda: scaled_dot_product_attention(q, k, v))}
    for name, mask in masks.items():
        calls[f"sparse {name}"] = call(sparse(mask.layer(0)))
        calls[f"masked {name}"] = call(masked(mask.layer(0)))
    spent = {name: statistics.median(times) for name, times in interleaved(calls, repeats).items()}
    return {
        name: {
            "sparse_ms": spent[f"sparse {name}"],
            "dense_ms": spent["dense"],
            "masked_ms": spent[f"masked {name}"],
        }
        for name in masks
    }
