"""How long do the sparse encoder and its attention take, against dense ones?

Models take turns, so that a machine that slows down half-way slows them all down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from sparsebert.api import sparse_attention
from sparsebert.demo.encoder import Encoder
from sparsebert.integrations.huggingface.api import sparsify
from sparsebert.masks import AttentionMask
from sparsebert.plan import compile_plan
from sparsebert.reporting.provenance import provenance
from sparsebert.reporting.timing import FEWEST, Spread, own_clock, side_by_side
from sparsebert.support.progress import Progress

TOKENS = 512  # in a forward pass: texts of 64 tokens go eight at a time, longer ones alone
PARTS = ("encoder", "attention")
_ENOUGH = 4.0  # seconds of rounds, if there were three


def time_lengths(
    encoder: Encoder,
    masks: dict[str, AttentionMask],
    text: list[str],
    lengths: tuple[int, ...],
    repeats: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """One row for each length and mask: encoder and attention alone, dense and sparse, in ms.

    The masks are as long as the longest length; every text has at least as many tokens as the
    encoder takes. Dense is PyTorch's SDPA without any mask, the fastest that the machine has.
    There are `repeats` rounds, or as many as fit into a few seconds, but three; fewer where all
    would take longer than `seconds`.
    """
    models = {"dense": encoder.new_model(length=max(lengths))}
    for name, mask in masks.items():
        models[name] = sparsify(encoder.new_model(length=max(lengths)), mask)
    clock, _ = own_clock()
    end = time.perf_counter() + seconds
    about = {"dtype": "float32", **provenance("cpu")}
    rows = []
    with Progress("timings", len(lengths) * len(PARTS), "measurements") as progress:
        for place, length in enumerate(lengths):
            batch = max(1, TOKENS // length)
            ids = torch.tensor(
                [encoder.exactly(text[row % len(text)], length) for row in range(batch)]
            )
            config = encoder.model.config
            heads, dim = (
                config.num_attention_heads,
                config.hidden_size // config.num_attention_heads,
            )
            q, k, v = torch.randn(3, batch, heads, length, dim)
            plans = {
                name: compile_plan(mask.crop(length), target="cpu", head_dim=dim, copies=heads)
                for name, mask in masks.items()
            }
            dense = partial(torch.nn.functional.scaled_dot_product_attention, q, k, v)
            calls: dict[str, dict[str, Callable[[], object]]] = {
                "encoder": {name: partial(model, ids) for name, model in models.items()},
                "attention": {
                    "dense": dense,
                    **{n: partial(sparse_attention, q, k, v, plan) for n, plan in plans.items()},
                },
            }
            spent = {}
            for part in PARTS:
                left = len(PARTS) * (len(lengths) - place) - PARTS.index(part)
                with torch.inference_mode():
                    spent[part] = side_by_side(
                        calls[part],
                        seconds=_ENOUGH,
                        least=FEWEST,
                        most=repeats,
                        limit=(end - time.perf_counter()) / left,
                        clock=clock,
                    )
                progress.update()
            for name, plan in plans.items():
                report = plan.explain()
                row: dict[str, Any] = {
                    "tokens": length,
                    "texts": batch,
                    "pattern": name,
                    "density": report.density,
                    "executed": report.executed_fraction,
                    "route": "dense" if report.executed_fraction == 1.0 else "tiles",
                }
                for part, times in spent.items():
                    row[f"{part}_dense_ms"] = Spread.of(times["dense"])
                    row[f"{part}_sparse_ms"] = Spread.of(times[name])
                    row[f"{part}_speedup"] = Spread.ratio(times["dense"], times[name])
                rows.append(row | about)
    return rows
