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
    check_magnitudes(_NAME, scores)
    means, counts = parameter_means(scores.expand(*shape, n, n), index)
    logits = log_magnitudes(means)
    deviation = logits.std() if logits.numel() > 1 else logits.new_zeros(())
    if deviation > 0.0:
        logits = logits * (spread / deviation)
    kept = top_share(logits, counts, 1.0 - sparsity, scope) > 0.0
    dims = (0, 1, 2) if scope == "global" else (2,)
    lowest = logits.masked_fill(~kept, math.inf).amin(dims, keepdim=True)
    highest = logits.masked_fill(kept, -math.inf).amax(dims, keepdim=True)
    logits = logits - torch.where(highest.isfinite(), (lowest + highest) / 2.0, lowest)
    return torch.where(kept, logits.clamp(min=least), logits.clamp(max=-least))


def check_magnitudes(where: str, scores: torch.Tensor) -> None:
    """Raise ValueError unless all scores are finite, none is negative, and some are above 0."""
    if not bool((scores.isfinite() & (scores >= 0.0)).all()):
        raise ValueError(
            f"{where}: scores hold negative, infinite or NaN values; give magnitudes, such as "
            "average attention or squared effects"
        )
    if not bool(scores.any()):
        raise ValueError(f"{where}: all scores are 0, they say nothing of the positions")


def parameter_means(
    scores: torch.Tensor, index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean score of the positions of each parameter [L, H, P], and how many these are [P].

    Args:
        scores: [L, H, N, N].
        index: int64 [N, N], the parameter of each position.
    """
    parameters = index.flatten()
    counts = torch.bincount(parameters)
    flat = scores.flatten(2)
    sums = flat.new_zeros(*flat.shape[:2], len(counts)).index_add(-1, parameters, flat)
    return sums / counts, counts


def log_magnitudes(scores: torch.Tensor) -> torch.Tensor:
    """Logarithms of scores, some of them above 0; a 0 counts as the smallest of these over e."""
    return scores.clamp(min=float(scores[scores > 0.0].min()) / math.e).log()
