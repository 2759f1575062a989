"""Masks as words and as arrays, for tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from sparsebert.compiler import bitmatrix
from sparsebert.masks.bits import pack, unpack


def words_of(mask: np.ndarray) -> np.ndarray:
    return bitmatrix.to_words(pack(mask))


def dense_of(words: np.ndarray, columns: int) -> np.ndarray:
    """bool [N, columns] of words."""
    return unpack(np.ascontiguousarray(bitmatrix.to_bytes(words, columns)), columns)


@st.composite
def dense_masks(draw: st.DrawFn) -> np.ndarray:
    """bool [N, M], with rows in common and some empty ones."""
    rows, columns = draw(st.integers(1, 140)), draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.random((rows, columns)) < draw(st.sampled_from([0.02, 0.2, 0.6]))
    mask[rng.random(rows) < 0.2] |= rng.random(columns) < 0.5
    mask[rng.random(rows) < 0.1] = False
    return mask
