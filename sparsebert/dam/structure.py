"""How the positions of a mask share parameters: free, along diagonals, or in blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sparsebert.memory import remember
from sparsebert.support import checks

_NAME = "DifferentiableAttentionMask"
STRUCTURES = ("full", "toeplitz", "block")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the N x N positions of a head share parameters; see `parameter_index`."""

    structure: str
    seq_len: int
    symmetric: bool
    block_size: int = 1
    """Only of the structure "block"."""
    own_tokens: tuple[int, ...] = ()
    """Only of the structure "toeplitz": from 0 to N - 1."""


def checked_layout(
    structure: str,
    seq_len: int,
    symmetric: bool,
    block_size: int | None,
    own_tokens: Sequence[int],
) -> Layout:
    """The layout of a mask that was asked for; see `DifferentiableAttentionMask`.

    Raises:
        TypeError, ValueError: an unknown structure, or options that it does not have or that are
            outside the sequence.
    """
    if structure not in STRUCTURES:
        raise ValueError(f"{_NAME}: structure must be one of {STRUCTURES}, got {structure!r}")
    if (structure == "block") != (block_size is not None):
        raise ValueError(
            f"{_NAME}: structure={structure!r} with block_size={block_size}; the structure "
            "'block' needs a block_size, the others take none"
        )
    if own_tokens and structure != "toeplitz":
        raise ValueError(
            f"{_NAME}: structure={structure!r} takes no own_tokens; only 'toeplitz' does, "
            "whose positions would share the parameters of their distance"
        )
    size = 1
    if block_size is not None:
        size = checks.integer(_NAME, "block_size", block_size, 1, seq_len)
    tokens = checks.positions(_NAME, "own_tokens", own_tokens, seq_len)
    return Layout(structure, seq_len, bool(symmetric), size, tuple(dict.fromkeys(tokens)))


@remember
def parameter_index(layout: Layout) -> npt.NDArray[np.int64]:
    """Which parameter decides position (i, j): int64 [N, N], values 0 to P - 1, all of them used.

    full: one for each position, or for each unordered pair {i, j} if symmetric.
    toeplitz: one for each i - j, or for each distance abs(i - j) if symmetric; but the column and
        the row of each of the `own_tokens` have one each, or one together if symmetric.
    block: as full, of blocks of block_size x block_size positions.
    """
    n, symmetric = layout.seq_len, layout.symmetric
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    if layout.structure == "toeplitz":
        return _with_own_tokens(np.abs(i - j) if symmetric else i - j + n - 1, layout)
    if layout.structure == "block":
        size = layout.block_size
        blocks = parameter_index(Layout("full", -(-n // size), symmetric))
        return blocks[i // size, j // size]
    if not symmetric:
        return i * n + j
    low, high = np.minimum(i, j), np.maximum(i, j)
    pairs: npt.NDArray[np.int64] = low * n - low * (low - 1) // 2 + high - low
    return pairs  # the rows of the upper triangle, one by one


def _with_own_tokens(distances: npt.NDArray[np.int64], layout: Layout) -> npt.NDArray[np.int64]:
    index, free = distances.copy(), int(distances.max()) + 1
    for token in layout.own_tokens:
        index[token, :] = free
        index[:, token] = free if layout.symmetric else free + 1
        free += 2
    numbers = np.unique(index, return_inverse=True)[1]  # none is left out
    return numbers.reshape(index.shape)


def first_in_group(layout: Layout, group: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Where no row above in the same group and column has the same parameter: bool, as `group`.

    Positions that share a parameter are kept or dropped together, so what gathers a column for a
    group of rows must count them once. `group` is the group of each position, int64 [N, N].
    """
    n = layout.seq_len
    parameters = parameter_index(layout).T  # a column lies together
    groups, count = int(group.max()) + 1, int(parameters.max()) + 1
    key = (np.arange(n)[:, None] * groups + group.T) * count + parameters
    _, places = np.unique(key, return_index=True)  # of each key the uppermost row
    first = np.zeros(n * n, dtype=bool)
    first[places] = True
    return first.reshape(n, n).T


@remember
def first_in_tile(layout: Layout, tile_rows: int) -> npt.NDArray[np.bool_]:
    """`first_in_group` for groups of `tile_rows` rows in order."""
    rows = np.arange(layout.seq_len) // tile_rows
    return first_in_group(layout, np.broadcast_to(rows[:, None], (len(rows), len(rows))))
