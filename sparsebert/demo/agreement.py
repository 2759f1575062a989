"""Is the sparse model right? Each pattern against the same model with dense, masked attention.

The reference is transformers' own eager attention, which adds a 4-D mask (0 or the lowest float)
to the scores; run in fp64 it is the truth. What rounding alone does in fp32, eager attention and
torch's SDPA show; `sparsebert.testing.route_bound` makes the budget of their errors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from typing import Any

import torch

from sparsebert.backends import registry
from sparsebert.demo.encoder import Encoder, pool
from sparsebert.integrations.huggingface.api import densify, sparsify
from sparsebert.masks import AttentionMask, patterns
from sparsebert.plan import AttentionPlan, compile_plan
from sparsebert.support.progress import Progress
from sparsebert.testing import root_mean_square, route_bound
from sparsebert.tiles.outlines import outlines_of_head

Batch = tuple[torch.Tensor, torch.Tensor]
BACKEND = registry.preferred("tiles", "cpu")[0]
"""Runs every head in tiles, also those that would rather run dense: these are what is checked."""
OK, FAILED, NOT_CHECKED = "ok", "FAILED", "not checked"


def text_masks(length: int) -> dict[str, AttentionMask]:
    """The patterns that suit a text encoder; the others are for decoders and for images."""
    return {
        "dense": patterns.dense(length),
        "sliding_window": patterns.sliding_window(length, window=8),
        "dilated_window": patterns.dilated_window(length, window=8, dilation=2),
        "block_local": patterns.block_local(length, block=32),
        "strided": patterns.strided(length, stride=22),
        "fixed": patterns.fixed(length, block=32),
        "star": patterns.star(length),
        "log_sparse": patterns.log_sparse(length),
        "longformer": patterns.longformer(length, window=8, num_global=2),
        "bigbird": patterns.bigbird(length, window=2, num_global=2, num_random=3),
        "random": patterns.random(length, density=0.1),
    }


def check_patterns(
    encoder: Encoder,
    masks: dict[str, AttentionMask],
    batches: list[Batch],
    seconds: float = math.inf,
    first: Collection[str] = (),
) -> list[dict[str, Any]]:
    """One row for each pattern with and without its diagonal; those in `first` are checked first.

    `batches` are token ids [B, N] and which of them are real, bool [B, N]; N may be less than
    the masks' length. Errors are over the hidden states of all real tokens. The tiles are what is
    checked, also where a plan would rather run dense: "executed" is the share of the scores that
    they compute, "predicted" their speed-up over dense attention, "route" what the plan would run
    on this machine. After `seconds` the verdict of what is left is "not checked".
    """
    eager = encoder.new_model("eager")
    exact = encoder.new_model("eager", torch.float64)
    dense = [_hidden(encoder.model, ids, real) for ids, real in batches]
    forms = [
        (name, diagonal, mask if diagonal == "kept" else mask.without_diagonal())
        for name, mask in masks.items()
        for diagonal in ("kept", "dropped")
    ]
    place = {(name, diagonal): index for index, (name, diagonal, _) in enumerate(forms)}
    forms.sort(key=lambda form: (form[0] not in first, form[0] in first and form[1] != "kept"))
    config = encoder.model.config
    heads, dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    rows: list[dict[str, Any]] = []
    end = time.perf_counter() + seconds
    progress = Progress("patterns", len(forms), "masks")
    for name, diagonal, mask in forms:
        if rows and time.perf_counter() > end:
            rows.append({**dict.fromkeys(rows[0]), "pattern": name, "diagonal": diagonal,
                         "density": mask.density, "verdict": NOT_CHECKED})  # fmt: skip
            continue
        plan = compile_plan(mask, target="cpu", head_dim=dim, copies=heads)
        truths, results, others, similarity = [], [], [], []
        for (ids, real), before in zip(batches, dense, strict=True):
            sparsify(encoder.model, mask, backend=BACKEND)
            ours = _hidden(encoder.model, ids, real)
            densify(encoder.model)
            allowed = _allowed(mask, real)
            truths.append(_hidden(exact, ids, allowed)[real])
            results.append(ours[real])
            by_eager, by_sdpa = (_hidden(model, ids, allowed) for model in (eager, encoder.model))
            others.append((by_eager[real], by_sdpa[real]))
            similarity.append((pool(ours, real) * pool(before, real)).sum(-1))
        truth = torch.cat(truths)
        error = root_mean_square(torch.cat(results) - truth)
        routes = [torch.cat(route) for route in zip(*others, strict=True)]
        budget = route_bound(truth, routes, torch.float32)
        rows.append(
            {
                "pattern": name,
                "diagonal": diagonal,
                "density": mask.density,
                "executed": _tiles_compute(plan),
                "predicted": _tiles_predicted(plan),
                "route": "dense" if plan.dense_heads.any() else "tiles",
                "error": error,
                "budget": budget,
                "verdict": OK if error <= budget else FAILED,
                "similarity": torch.cat(similarity).mean().item(),
            }
        )
        progress.update()
    progress.close()
    return sorted(rows, key=lambda row: place[row["pattern"], row["diagonal"]])


def _tiles_compute(plan: AttentionPlan) -> float:
    """Share of the scores that the plan's tiles compute, or would if it did not run dense."""
    tiles = plan.shared_tiles.every
    computed = [
        int((each.real_rows * each.padded).sum())
        for head in range(len(plan.dense_heads))
        for each in outlines_of_head(tiles, head)
    ]
    return sum(computed) / (len(plan.dense_heads) * plan.q_len * plan.kv_len)


def _tiles_predicted(plan: AttentionPlan) -> float:
    """Predicted forward speed-up of the best tiles over dense attention, taken or not."""
    (head,) = plan.explain().per_head  # one mask for all heads
    return head.dense_us / (head.predicted_us if head.route == "tiles" else head.tried[0][1])


def _hidden(model: Any, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Last hidden states [B, N, E]."""
    with torch.inference_mode():
        hidden: torch.Tensor = model(ids, attention_mask=attention_mask).last_hidden_state
        return hidden


def _allowed(mask: AttentionMask, real: torch.Tensor) -> torch.Tensor:
    """The additive 4-D mask [B, 1, N, N] for eager attention: 0 = allowed, lowest = forbidden.

    fp32 also for the fp64 model: the lowest float is out of reach of every score in both.
    """
    length = real.shape[1]
    allowed = mask.crop(length).dense()[0] & real[:, None, None, :]
    if not allowed.any(dim=-1)[real[:, None, :].expand(allowed.shape[:-1])].all():
        # Adding the lowest float to a whole row leaves a plain average, not our zero.
        raise ValueError("check_patterns: a real token has nothing to attend to under this mask")
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
