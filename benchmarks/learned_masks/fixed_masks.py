"""The masks that nothing is learned for: patterns, the dense mask less some of every row, and the
positions with the highest scores.
"""

from __future__ import annotations

import numpy as np
import torch

import sparsebert as sb
from benchmarks.learned_masks.protocol import DENSE, HAND_MADE
from sparsebert.learn.handmade import pattern_at_sparsity


def pattern(name: str, seq_len: int, asked: float, heads: int, seed: int) -> sb.AttentionMask:
    """A hand-made mask, at least as sparse as asked."""
    return pattern_at_sparsity(HAND_MADE[name], seq_len, asked, num_heads=heads, seed=seed)


def without(name: str, seq_len: int, heads: int, seed: int) -> sb.AttentionMask:
    """The dense mask less some of every row, as `protocol.WITHOUT` says."""
    rows = np.arange(seq_len)
    dropped = np.zeros((heads, seq_len, seq_len), dtype=bool)
    if name == "without diagonal":
        dropped[:, rows, rows] = True
    elif name == "without random":
        far = np.random.default_rng(seed).integers(1, seq_len, size=(heads, seq_len))
        dropped[np.arange(heads)[:, None], rows, (rows + far) % seq_len] = True
    elif name == "without neighbour":  # the next one of even rows, the one before of odd rows
        neighbour = np.where(rows % 2 == 0, rows + 1, rows - 1)
        inside = neighbour < seq_len
        dropped[:, rows[inside], neighbour[inside]] = True
    elif name == "without others":
        dropped[:] = rows[:, None] != rows
    else:
        raise ValueError(f"without: no such contender: {name!r}; {DENSE!r} needs no mask")
    return sb.AttentionMask.from_dense(~dropped)


def highest(scores: torch.Tensor, asked: float, share: str) -> sb.AttentionMask:
    """The mask of the positions with the highest scores.

    Args:
        scores: [L, H, N, N].
        asked: its sparsity.
        share: one mask for "all", one for each head and all "layers", or "none" shared; then the
            share is of all layers and heads together.
    """
    if share == "all":
        scores = scores.mean((0, 1), keepdim=True)
    elif share == "layers":
        scores = scores.mean(0, keepdim=True)
    layers, heads, n, _ = scores.shape
    ranked = sb.DifferentiableAttentionMask(
        layers, heads, n, symmetric=False, scope="global" if share == "none" else "head"
    )
    return ranked.start_from(scores, asked).binarize(sparsity=asked)
