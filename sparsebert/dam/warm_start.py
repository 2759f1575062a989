"""Where a search begins that knows something of the positions: from their scores to alpha."""

from __future__ import annotations

import math

import torch

from sparsebert.dam.sampling import top_share

_NAME = "start_from"


def logits_of_scores(
    scores: torch.Tensor,
    index: torch.Tensor,
    *,
    shape: tuple[int, int],
    sparsity: float,
    spread: float,
    scope: str,
    least: float,
) -> torch.Tensor:
    """alpha [L, H, P] in the order of the scores, above 0 for what is kept, else below.

    Differences are those of the scores' logarithms, which spread over orders of magnitude, scaled
    to the standard deviation `spread`.

    Args:
        scores: [L or 1, H or 1, N, N], not negative.
        index: int64 [N, N], the parameter of each position.
        shape: L and H. Of a mask that all layers (heads) share, the scores are averaged.
        least: distance of every alpha from 0, also where scores are equal or nearly so.

    The rest, and the errors: see `DifferentiableAttentionMask.start_from`.
    """
    n = len(index)
    for name, value in (("sparsity", sparsity), ("spread", spread)):
        most = 1.0 if name == "sparsity" else math.inf
        if not 0.0 < value < most:
            raise ValueError(f"{_NAME}: {name} must be in (0, {most:g}), got {value}")
    if not isinstance(scores, torch.Tensor):
        raise TypeError(f"{_NAME}: scores must be a tensor, got {type(scores).__name__}")
    if scores.ndim != 4 or tuple(scores.shape[2:]) != (n, n):
        raise ValueError(
            f"{_NAME}: scores must be [layers, heads, {n}, {n}] for this mask, got "
            f"{list(scores.shape)}; crop or compute them at seq_len={n}"
        )
    scores = scores.detach().double().to(index.device)
    for dim, (what, mine) in enumerate(zip(("layers", "heads"), shape, strict=True)):
        have = scores.shape[dim]
        if mine == 1:
            scores = scores.mean(dim, keepdim=True)
        elif have not in (1, mine):
            raise ValueError(
                f"{_NAME}: scores of {have} {what} for a mask of {mine}; give 1 or {mine}"
            )
    if not bool((scores.isfinite() & (scores >= 0.0)).all()):
        raise ValueError(
            f"{_NAME}: scores hold negative, infinite or NaN values; give magnitudes, such as "
            "average attention or squared effects"
        )
    parameters = int(index.max()) + 1
    counts = torch.bincount(index.flatten(), minlength=parameters)
    flat = scores.expand(*shape, n, n).reshape(*shape, -1)
    sums = flat.new_zeros(*shape, parameters).index_add(-1, index.flatten(), flat)
    means = sums / counts
    positive = means[means > 0.0]
    if not len(positive):
        raise ValueError(f"{_NAME}: all scores are 0, they say nothing of the positions")
    logits = means.clamp(min=float(positive.min()) / math.e).log()
    deviation = logits.std() if logits.numel() > 1 else logits.new_zeros(())
    if deviation > 0.0:
        logits = logits * (spread / deviation)
    kept = top_share(logits, counts, 1.0 - sparsity, scope) > 0.0
    dims = (0, 1, 2) if scope == "global" else (2,)
    lowest = logits.masked_fill(~kept, math.inf).amin(dims, keepdim=True)
    highest = logits.masked_fill(kept, -math.inf).amax(dims, keepdim=True)
    logits = logits - torch.where(highest.isfinite(), (lowest + highest) / 2.0, lowest)
    return torch.where(kept, logits.clamp(min=least), logits.clamp(max=-least))
