"""How the positions of a mask share parameters: free, along diagonals, or in blocks."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from sparsebert.memory import remember

STRUCTURES = ("full", "toeplitz", "block")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the N x N positions of a head share parameters; see `parameter_index`."""

    structure: str
    seq_len: int
    symmetric: bool
    block_size: int = 1
    """Only of the structure "block"."""


@remember
def parameter_index(layout: Layout) -> npt.NDArray[np.int64]:
    """Which parameter decides position (i, j): int64 [N, N], values 0 to P - 1, all of them used.

    full: one for each position, or for each unordered pair {i, j} if symmetric.
    toeplitz: one for each i - j, or for each distance abs(i - j) if symmetric.
    block: as full, of blocks of block_size x block_size positions.
    """
    n, symmetric = layout.seq_len, layout.symmetric
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    if layout.structure == "toeplitz":
        return np.abs(i - j) if symmetric else i - j + n - 1
    if layout.structure == "block":
        size = layout.block_size
        blocks = parameter_index(Layout("full", -(-n // size), symmetric))
        return blocks[i // size, j // size]
    if not symmetric:
        return i * n + j
    low, high = np.minimum(i, j), np.maximum(i, j)
    pairs: npt.NDArray[np.int64] = low * n - low * (low - 1) // 2 + high - low
    return pairs  # the rows of the upper triangle, one by one


@remember
def first_in_tile(layout: Layout, tile_rows: int) -> npt.NDArray[np.bool_]:
    """bool [N, N]: in its tile of rows and its column, no row above has the same parameter.

    Positions that share a parameter are kept or dropped together, so a tile's column must count
    them once.
    """
    index = parameter_index(layout)
    first = np.ones(index.shape, dtype=bool)
    for start in range(0, layout.seq_len, tile_rows):
        rows = index[start : start + tile_rows]
        order = np.argsort(rows, axis=0, kind="stable")
        ordered = np.take_along_axis(rows, order, axis=0)
        repeated = np.zeros(rows.shape, dtype=bool)
        repeated[1:] = ordered[1:] == ordered[:-1]
        np.put_along_axis(first[start : start + tile_rows], order, ~repeated, axis=0)
    return first
