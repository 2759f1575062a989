"""Masks that no pattern makes, for benchmarks."""

from __future__ import annotations

import numpy as np

from sparsebert.masks import AttentionMask


def learned_looking(length: int, seed: int = 0) -> AttentionMask:
    """A band of 3, N / 16 vertical lines and 2 % random, without the diagonal."""
    rng = np.random.default_rng(seed)
    position = np.arange(length, dtype=np.int32)
    mask = np.abs(position[:, None] - position) <= 3
    mask[:, rng.choice(length, length // 16, replace=False)] = True
    mask |= rng.random((length, length), dtype=np.float32) < 0.02
    np.fill_diagonal(mask, False)
    return AttentionMask.from_dense(mask)


def permuted_blocks(length: int, block: int, seed: int = 0) -> AttentionMask:
    """Blocks on the diagonal under a random permutation of rows and one of columns."""
    rng = np.random.default_rng(seed)
    of = np.arange(length) // block
    rows, columns = rng.permutation(of), rng.permutation(of)
    return AttentionMask.from_dense(rows[:, None] == columns)
