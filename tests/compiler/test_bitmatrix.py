"""Bit matrices: words are the mask, and what is done to them is done to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebert.compiler import bitmatrix
from sparsebert.masks.bits import pack, unpack
from tests.compiler.bit_masks import dense_masks, dense_of, words_of


@pytest.mark.parametrize("rows", [1023, 1024, 1025, 2100])
def test_long_masks_are_transposed_block_by_block(rows: int) -> None:
    mask = np.random.default_rng(0).random((rows, 9)) < 0.3
    turned = bitmatrix.transpose(pack(mask), 9)
    assert turned.shape == (9, -(-rows // 8))
    assert (unpack(turned, rows) == mask.T).all()


@pytest.mark.parametrize("columns", [1, 8, 9, 63, 64, 65, 130])
def test_words_are_bytes_eight_at_a_time(columns: int) -> None:
    packed = pack(np.random.default_rng(0).random((5, columns)) < 0.5)
    words = bitmatrix.to_words(packed)
    assert words.shape == (5, -(-columns // 64))
    assert np.array_equal(bitmatrix.to_bytes(words, columns), packed)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (63, 64), (64, 128), (0, 128)])
def test_column_ranges(start: int, stop: int) -> None:
    row = bitmatrix.column_range(start, stop, 2)
    assert row.shape == (2,) and row.dtype == np.uint64
    assert np.flatnonzero(dense_of(row[None], 128)[0]).tolist() == list(range(start, stop))


def test_empty_slots_have_no_columns() -> None:
    words = words_of(np.ones((3, 70), dtype=bool))
    taken = bitmatrix.take(words, np.array([[0, -1], [2, -1]]))
    assert bitmatrix.count(taken).tolist() == [[70, 0], [70, 0]]
    assert bitmatrix.count(words).tolist() == [70, 70, 70]  # the mask itself is left as it was


@given(dense_masks())
def test_words_are_the_mask(mask: np.ndarray) -> None:
    words = bitmatrix.to_words(pack(mask))
    assert words.dtype == np.uint64
    assert (dense_of(words, mask.shape[1]) == mask).all()
    assert (bitmatrix.count(words) == mask.sum(axis=1)).all()
    turned = bitmatrix.transpose(pack(mask), mask.shape[1])
    assert (unpack(turned, mask.shape[0]) == mask.T).all()


@given(st.sampled_from([1, 2, 16, 64]), st.integers(0, 2**32 - 1), st.floats(0.05, 0.9))
def test_columns_with_counts_in_every_column(height: int, seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((3, height, 130)) < density
    words = np.stack([bitmatrix.to_words(pack(group)) for group in mask])
    counts = mask.sum(axis=1)
    for at_least in range(1, height + 3):
        found = dense_of(bitmatrix.columns_with(words, at_least), 130)
        assert (found == (counts >= at_least)).all()
    each = np.random.default_rng(seed).integers(1, 2 * height + 1, 3)
    found = bitmatrix.columns_with(words, each)
    assert (dense_of(found, 130) == (counts >= each[:, None])).all()
    assert not (bitmatrix.to_bytes(found, 136)[:, -1] >> 2).any()  # nothing beyond the columns


def test_column_range() -> None:
    assert np.flatnonzero(dense_of(bitmatrix.column_range(3, 70, 2)[None], 128)).tolist() == [
        *range(3, 70)
    ]
