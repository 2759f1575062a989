"""Is the sparse model right? Each pattern against the same model with dense, masked attention.

The reference is transformers' own eager attention, which adds a 4-D mask (0 or the lowest float)
to the scores; run in fp64 it is the truth. What rounding alone does in fp32, eager attention and
torch's SDPA show: the budget is twice the larger of their errors plus one rounding step. Errors
are root mean squares, not the largest: what six layers make of the roundings of the single worst
token differs more than twofold from one correct route to the next. A wrong row of attention stands
out in either.
"""

from __future__ import annotations

from typing import Any

import torch
from tqdm import tqdm

from sparsebert import patterns
from sparsebert.cli.demo.encoder import Encoder, pool
from sparsebert.compiler import compile_plan
from sparsebert.integrations.huggingface import densify, sparsify
from sparsebert.masks import AttentionMask

Batch = tuple[torch.Tensor, torch.Tensor]


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
    encoder: Encoder, masks: dict[str, AttentionMask], batches: list[Batch]
) -> list[dict[str, Any]]:
    """One row for each pattern with and without its diagonal.

    `batches` are token ids [B, N] and which of them are real, bool [B, N]; N may be less than
    the masks' length. Errors are over the hidden states of all real tokens.
    """
    eager = encoder.new_model("eager")
    exact = encoder.new_model("eager", torch.float64)
    dense = [_hidden(encoder.model, ids, real) for ids, real in batches]
    forms = [
        (name, diagonal, mask if diagonal == "kept" else mask.without_diagonal())
        for name, mask in masks.items()
        for diagonal in ("kept", "dropped")
    ]
    rows = []
    for name, diagonal, mask in tqdm(forms, desc="patterns", leave=False, disable=None):
        truths, results, others, similarity = [], [], [], []
        for (ids, real), before in zip(batches, dense, strict=True):
            sparsify(encoder.model, mask)
            ours = _hidden(encoder.model, ids, real)
            densify(encoder.model)
            allowed = _allowed(mask, real)
            truths.append(_hidden(exact, ids, allowed)[real])
            results.append(ours[real])
            by_eager, by_sdpa = (_hidden(model, ids, allowed) for model in (eager, encoder.model))
            others.append((by_eager[real], by_sdpa[real]))
            similarity.append((pool(ours, real) * pool(before, real)).sum(-1))
        truth = torch.cat(truths)
        error = _size(torch.cat(results) - truth)
        rounding = max(_size(torch.cat(other) - truth) for other in zip(*others, strict=True))
        budget = 2.0 * rounding + torch.finfo(torch.float32).eps * _size(truth)
        report = compile_plan(mask, target="cpu").explain()
        rows.append(
            {
                "pattern": name,
                "diagonal": diagonal,
                "density": mask.density,
                "executed": report.executed_fraction,
                "error": error,
                "budget": budget,
                "verdict": "ok" if error <= budget else "FAILED",
                "similarity": torch.cat(similarity).mean().item(),
            }
        )
    return rows


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


def _size(x: torch.Tensor) -> float:
    """Root mean square."""
    return x.double().square().mean().sqrt().item()
