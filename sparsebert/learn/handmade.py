"""Hand-made masks of an asked sparsity, to compare a learned one with.

>>> from sparsebert.learn.handmade import pattern_at_sparsity
>>> pattern_at_sparsity("longformer", 128, 0.9)
<AttentionMask longformer: 1 layer, 1 head, 128 x 128, density 9.90%>
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np

from sparsebert.masks import AttentionMask, patterns
from sparsebert.support import checks

_NAME = "pattern_at_sparsity"


def pattern_at_sparsity(
    name: str, seq_len: int, sparsity: float, *, num_heads: int = 1, seed: int = 0
) -> AttentionMask:
    """The densest mask of a family that is at least as sparse as asked.

    Args:
        name: one of `FAMILIES`:

            * "sliding_window", "star", "longformer" (two global tokens): the widest window;
            * "bigbird" (two global tokens): half of each row's other keys a window, half random;
            * "log_sparse": all its distances up to a longest one;
            * "strided": every stride-th key, for about half of the positions, and a window for
              the rest. The source takes one number for both, which shares them out like this at
              sqrt(N) but cannot be sparser than that;
            * "fixed": the same with summary columns and blocks;
            * "random": equally many keys in each row.
        seq_len: N.
        sparsity: share of zeros, in (0, 1).
        num_heads: heads with random keys of their own, for "bigbird" and "random".
        seed: of the random keys.

    Raises:
        TypeError, ValueError: an unknown name, values out of range, or no mask of this family is
            that sparse.
    """
    if name not in FAMILIES:
        raise ValueError(f"{_NAME}: name must be one of {', '.join(FAMILIES)}, got {name!r}")
    n = checks.integer(_NAME, "seq_len", seq_len, 1)
    if not 0.0 < sparsity < 1.0:
        raise ValueError(f"{_NAME}: sparsity must be in (0, 1), got {sparsity}")
    num_heads = checks.integer(_NAME, "num_heads", num_heads, 1)
    budget = 1.0 - sparsity + 1e-9  # of the density; 1 - 0.9 is a little less than 0.1
    family = FAMILIES[name]

    def member(size: int) -> AttentionMask:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # sizes tried that cover everything
            return family(n, size, budget, num_heads, seed)

    smallest = member(0)
    if smallest.density > budget:
        raise ValueError(
            f"{_NAME}: no {name} mask of seq_len={n} is as sparse as {sparsity}; the sparsest has "
            f"{smallest.sparsity:.4f}"
        )
    fits, too_dense = 0, n + 1  # sizes; bisect between them
    while too_dense - fits > 1:
        middle = (fits + too_dense) // 2
        if member(middle).density <= budget:
            fits = middle
        else:
            too_dense = middle
    return member(fits)


# A family: (N, size, budget, heads, seed) -> mask, the denser the larger the size (0 to N).
Family = Callable[[int, int, float, int, int], AttentionMask]


def _bigbird(n: int, size: int, budget: float, heads: int, seed: int) -> AttentionMask:
    window = size // 4  # 2 * window keys beside the diagonal
    return patterns.bigbird(
        n, window, num_global=2, num_random=size - 2 * window, seed=seed, num_heads=heads
    )


def _strided(n: int, size: int, budget: float, heads: int, seed: int) -> AttentionMask:
    stride = _period(budget, n)
    every = patterns.dilated_window(n, window=n, dilation=stride)
    mask = every | patterns.sliding_window(n, window=size)
    record = {"pattern": "strided", "seq_len": n, "stride": stride, "window": size}
    return AttentionMask.from_packed(mask.bits[0], n, record, bitorder="little")


def _fixed(n: int, size: int, budget: float, heads: int, seed: int) -> AttentionMask:
    period, block = _period(budget, n), max(1, size)
    summary = np.arange(n) % period == period - 1
    dense = np.broadcast_to(summary, (n, n))
    mask = AttentionMask.from_dense(dense) | patterns.block_local(n, block=block)
    record = {"pattern": "fixed", "seq_len": n, "block": block, "summary_every": period}
    return AttentionMask.from_packed(mask.bits[0], n, record, bitorder="little")


def _period(budget: float, n: int) -> int:
    """Every how many keys one is half of the budget, rounded to the sparser side."""
    return min(n, max(1, math.ceil(2.0 / budget)))


def _log_sparse(n: int, size: int, budget: float, heads: int, seed: int) -> AttentionMask:
    mask = patterns.log_sparse(n) & patterns.sliding_window(n, window=size)
    record = {"pattern": "log_sparse", "seq_len": n, "longest": size}
    return AttentionMask.from_packed(mask.bits[0], n, record, bitorder="little")


def _random(n: int, size: int, budget: float, heads: int, seed: int) -> AttentionMask:
    return patterns.random(n, density=max(1, size) / n, seed=seed, num_heads=heads)


FAMILIES: dict[str, Family] = {
    "sliding_window": lambda n, size, budget, heads, seed: patterns.sliding_window(n, window=size),
    "star": lambda n, size, budget, heads, seed: patterns.star(n, window=size),
    "longformer": lambda n, size, budget, heads, seed: patterns.longformer(
        n, window=size, num_global=2
    ),
    "bigbird": _bigbird,
    "log_sparse": _log_sparse,
    "strided": _strided,
    "fixed": _fixed,
    "random": _random,
}
"""The families of `pattern_at_sparsity`."""
