"""Scores of positions with less noise: each position's own, pooled with those of its kind."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsebert.dam.structure import Layout, parameter_index
from sparsebert.dam.warm_start import check_magnitudes, log_magnitudes, parameter_means
from sparsebert.support import checks

_NAME = "pooled_scores"


def pooled_scores(scores: torch.Tensor, *, own_tokens: Sequence[int] = ()) -> torch.Tensor:
    """Scores that a search from free positions can start from.

    A score that is measured on a few batches is mostly noise for one position of one head, and
    the highest of very many scores are those with the luckiest noise. So each is shrunk towards
    what is known better: it becomes the geometric mean of

    * the score itself,
    * the mean over all layers and heads at the same position, and
    * the mean over the same distance in the same head; rows and columns of `own_tokens` are
      apart, as in a DAM with structure "toeplitz".

    Args:
        scores: [L, H, N, N], not negative, see `position_scores`.
        own_tokens: positions of special tokens; negative ones count from the end.

    Returns fp64 [L, H, N, N], for `DifferentiableAttentionMask.start_from`. Zeros, of scores
    and of means, count as the smallest positive one over e, among all layers, heads and positions.

    Raises:
        TypeError: scores that are no tensor.
        ValueError: scores of another shape, negative, infinite, NaN or all 0; positions out of
            range.
    """
    if not isinstance(scores, torch.Tensor):
        raise TypeError(f"{_NAME}: scores must be a tensor, got {type(scores).__name__}")
    if scores.ndim != 4 or scores.shape[2] != scores.shape[3] or not scores.numel():
        raise ValueError(
            f"{_NAME}: scores must be [layers, heads, N, N], got {list(scores.shape)}"
        )
    scores = scores.detach().double()
    check_magnitudes(_NAME, scores)
    n = scores.shape[-1]
    tokens = tuple(dict.fromkeys(checks.positions(_NAME, "own_tokens", own_tokens, n)))
    layout = Layout("toeplitz", n, symmetric=False, block_size=1, own_tokens=tokens)
    index = torch.from_numpy(parameter_index(layout)).to(scores.device)
    by_distance = parameter_means(scores, index)[0][..., index]
    everywhere = scores.mean((0, 1), keepdim=True)
    logs = [log_magnitudes(each) for each in (scores, everywhere, by_distance)]
    return (sum(logs[1:], logs[0]) / 3.0).exp()
