"""The masks of the benchmarks: every pattern at parameters that grow with N, and others."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.harness.origin import RESULTS
from sparsebert import patterns
from sparsebert.compiler import bitmatrix
from sparsebert.masks import AttentionMask

LEARNED = RESULTS / "learned_masks"
LEARNED_PREFIX = "learned: "
NONE_LEARNED = LEARNED_PREFIX + "no file"
RANDOM_SHARES = (2, 5, 20, 30, 50, 70)
"""Percent of ones in masks without any structure, beside `RANDOM`."""
NO_DIAGONAL, RANDOM, LEARNED_LOOKING = "dense, no diagonal", "random 10 %", "learned-looking"


class NoSuchMask(Exception):
    """A mask that the table names but that is not there; the message says why."""


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


def _window(length: int) -> int:
    return max(5, length // 64)


def _learned_looking_heads(length: int, heads: int) -> AttentionMask:
    return AttentionMask.stack_heads([learned_looking(length, seed) for seed in range(heads)])


def _neighborhood(length: int) -> AttentionMask:
    """A square of patches with one special token where N allows it, else a plain rectangle."""
    edge = math.isqrt(length - 1)
    if edge * edge == length - 1:
        return patterns.neighborhood_2d(edge, edge, 7, num_special=1)
    width = 1 << (length.bit_length() // 2)
    return patterns.neighborhood_2d(length // width, width, 7)


# What a mask of N tokens is; those of several heads also need to know how many.
_ONE_HEAD: dict[str, Callable[[int], AttentionMask]] = {
    "star": patterns.star,
    "longformer": lambda n: patterns.longformer(n, _window(n), 2),
    "log_sparse": patterns.log_sparse,
    "strided": lambda n: patterns.strided(n, math.isqrt(n)),
    "fixed": lambda n: patterns.fixed(n, max(32, math.isqrt(n)), 1),
    "bigbird": lambda n: patterns.bigbird(n, max(1, n // 256), 2, max(2, n // 256)),
    "sliding_window": lambda n: patterns.sliding_window(n, _window(n)),
    "dilated_window": lambda n: patterns.dilated_window(n, _window(n), 4),
    "block_local": lambda n: patterns.block_local(n, max(32, n // 16)),
    "causal": patterns.causal,
    "neighborhood_2d": _neighborhood,
    "dense": patterns.dense,
    "random": lambda n: patterns.random(n, 0.01),
    RANDOM: lambda n: patterns.random(n, 0.1),
    NO_DIAGONAL: lambda n: patterns.dense(n).without_diagonal(),
    **{
        f"random {share} %": lambda n, share=share: patterns.random(n, share / 100)
        for share in RANDOM_SHARES
    },
}
NAMES = (*_ONE_HEAD, LEARNED_LOOKING)


def learned_files() -> list[Path]:
    """The masks that training left behind and that are committed."""
    return sorted(LEARNED.glob("*.safetensors"))


def build(name: str, length: int, heads: int) -> AttentionMask:
    """The mask of one layer that a case names.

    Raises NoSuchMask if it has to come from a file that is not there, KeyError for other names.
    """
    if name == NONE_LEARNED:
        raise NoSuchMask("no file in benchmarks/results/learned_masks")
    if name.startswith(LEARNED_PREFIX):
        path = LEARNED / f"{name.removeprefix(LEARNED_PREFIX)}.safetensors"
        if not path.exists():
            raise NoSuchMask(f"{path.name} is not there")
        return AttentionMask.load(path).layer(0)
    if name == LEARNED_LOOKING:
        return _learned_looking_heads(length, heads)
    return _ONE_HEAD[name](length)


def block_fraction(mask: AttentionMask, size: int) -> float:
    """Share of the mask in blocks of size x size that are not empty."""
    words = bitmatrix.to_words(mask.bits[0, 0])
    starts = np.arange(0, mask.q_len, size)
    union = np.bitwise_or.reduceat(words, starts, axis=0)  # [row blocks, words of 64 columns]
    columns = np.bitwise_or.reduceat(union, np.arange(0, union.shape[1], size // 64), axis=1)
    return float((columns != 0).mean())


def parameters(mask: AttentionMask) -> str:
    """The numbers that made a pattern, e.g. "num_global=2, window=8"; "" where nobody said."""
    record = mask.provenance
    hidden = ("pattern", "seq_len", "seed", "num_heads")
    return ", ".join(
        f"{key}={value}"
        for key, value in record.items()
        if key not in hidden and isinstance(value, (int, float))
    )
