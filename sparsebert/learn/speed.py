"""What the masks would save, by the cost model, and what they save on the machine at hand."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from sparsebert.api import sparse_attention
from sparsebert.integrations.huggingface.api import sparsify
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

    One time is that of all layers, each with its mask. For each mask "sparse_ms"; beside it
    "dense_ms", SDPA without a mask, which is what a dense model does, and "masked_ms", SDPA with
    that mask, which computes what the sparse one does; "measured" and "over_masked": how many
    times as fast as these the sparse one is.
    """
    length = next(iter(masks.values())).q_len
    layers = max(mask.num_layers for mask in masks.values())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = (calls.batch, calls.heads, length, calls.head_dim)
    q, k, v = torch.randn(3, *shape, device=device)

    def sparse(mask: AttentionMask) -> Callable[[], object]:
        plans = [calls.compile(layer).to(device) for layer in _layers(mask, layers)]
        return lambda: [sparse_attention(q, k, v, plan) for plan in plans]

    def masked(mask: AttentionMask) -> Callable[[], object]:
        allowed = [
            layer.dense().to(device) for layer in _layers(mask, layers)
        ]  # [1, H or 1, N, N]
        return lambda: [scaled_dot_product_attention(q, k, v, attn_mask=each) for each in allowed]

    def dense() -> object:
        return [scaled_dot_product_attention(q, k, v) for _ in range(layers)]

    timed = {"dense": dense}
    for name, mask in masks.items():
        timed[f"sparse {name}"] = sparse(mask)
        timed[f"masked {name}"] = masked(mask)
    spent = _timed(timed, device, most, seconds)
    return {
        name: {
            "sparse_ms": Spread.of(spent[f"sparse {name}"]),
            "dense_ms": Spread.of(spent["dense"]),
            "masked_ms": Spread.of(spent[f"masked {name}"]),
            "measured": Spread.ratio(spent["dense"], spent[f"sparse {name}"]),
            "over_masked": Spread.ratio(spent[f"masked {name}"], spent[f"sparse {name}"]),
        }
        for name in masks
    }


def encoder(
    dense: nn.Module, mask: AttentionMask, tokens: torch.Tensor, *, most: int, seconds: float
) -> dict[str, Spread]:
    """Forward times of a whole encoder in ms: "dense_ms", "sparse_ms", and "measured", the ratio.

    Args:
        dense: a transformers model that attends by SDPA; it stays as it is.
        mask: for a copy of it.
        tokens: a batch of input_ids, int64 [B, N].
        most, seconds: as for `measured`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {"dense": dense, "sparse": sparsify(copy.deepcopy(dense), mask)}
    tokens = tokens.to(device)

    def call(model: Any) -> Callable[[], object]:
        own = model.eval().to(device).base_model  # without the task's head
        return lambda: own(input_ids=tokens)

    timed = {name: call(model) for name, model in models.items()}
    spent = _timed(timed, device, most, seconds)
    return {
        "dense_ms": Spread.of(spent["dense"]),
        "sparse_ms": Spread.of(spent["sparse"]),
        "measured": Spread.ratio(spent["dense"], spent["sparse"]),
    }


def _layers(mask: AttentionMask, count: int) -> list[AttentionMask]:
    """The mask of each layer; one that all share again and again."""
    return [mask.layer(i % mask.num_layers) for i in range(count)]


def _timed(
    timed: Mapping[str, Callable[[], object]], device: torch.device, most: int, seconds: float
) -> dict[str, list[float]]:
    def call(run: Callable[[], object]) -> Callable[[], object]:
        def finished() -> None:
            with torch.inference_mode():
                run()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return finished

    clock = time.perf_counter if device.type == "cuda" else own_clock()[0]
    calls = {name: call(run) for name, run in timed.items()}
    return side_by_side(calls, seconds=seconds, least=1, most=most, clock=clock)
