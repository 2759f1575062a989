"""The compiler's parts, each against its plain meaning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebert import patterns
from sparsebert.compiler import bitmatrix
from sparsebert.compiler.orders import Order, equal_rows, folded, in_order, union_growth
from sparsebert.compiler.pieces import Piece, all_tiles, cut, give_back, peel, split_wide
from sparsebert.compiler.pricing import Area
from sparsebert.compiler.strides import distance_profile, find_strides
from sparsebert.masks.bits import pack, unpack

AREA = Area()


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


def check_piece(piece: Piece) -> None:
    """The tiles of a piece cover each of its rows once, and state their true widths."""
    rows = [t.rows[t.rows >= 0] for t in piece.tiles]
    flat = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    assert len(np.unique(flat)) == len(flat)
    assert set(np.flatnonzero(piece.words.any(axis=1))) <= set(flat)
    for tiles in piece.tiles:
        union = np.bitwise_or.reduce(bitmatrix.take(piece.words, tiles.rows), axis=1)
        assert (bitmatrix.count(union) == tiles.width).all() and (tiles.width > 0).all()


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
    for at_least in (1 << p for p in range(height.bit_length())):
        found = dense_of(bitmatrix.columns_with(words, at_least), 130)
        assert (found == (mask.sum(axis=1) >= at_least)).all()


def test_column_range() -> None:
    assert np.flatnonzero(dense_of(bitmatrix.column_range(3, 70, 2)[None], 128)).tolist() == [
        *range(3, 70)
    ]


@given(dense_masks(), st.sampled_from([16, 64, 128]), st.integers(2, 40), st.integers(1, 8))
def test_orders_hold_every_row_once(mask: np.ndarray, size: int, stride: int, strip: int) -> None:
    words = bitmatrix.to_words(pack(mask))
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return
    usual, long = rows[len(rows) // 5 :], rows[: len(rows) // 5]
    orders: list[Order | None] = [
        in_order(rows, size), equal_rows(words, rows, size),
        folded(rows, stride, strip, 3, size), union_growth(words, usual, long, size),
    ]  # fmt: skip
    for order in orders:
        if order is None:
            continue
        slots = order.rows
        assert sorted(slots[slots >= 0].tolist()) == rows.tolist()
        assert slots.shape[1] in (16, 32, 64, 128) and slots.shape[1] <= size
        empty = slots < 0
        assert (np.diff(empty.astype(int), axis=1) >= 0).all()  # at the end of a group


def test_residue_classes_and_patches() -> None:
    classes = folded(np.arange(48), 3, 1, 0, 64).rows
    assert [set(group % 3) for group in classes] == [{0}, {1}, {2}]
    patches = folded(np.arange(1, 65), 8, 2, 1, 16).rows  # an 8 x 8 grid after one special token
    assert sorted(patches[0].tolist()) == [
        1 + 8 * line + place for line in range(8) for place in (0, 1)
    ]


@pytest.mark.parametrize(
    ("mask", "stride"),
    [
        (patterns.strided(256, 16), 16),
        (patterns.strided(300, 17), 17),
        (patterns.dilated_window(256, 6, 5), 5),
        (patterns.neighborhood_2d(12, 20, 5), 20),
        (patterns.neighborhood_2d(14, 14, 3, num_special=1), 14),
    ],
)
def test_strides_are_read_off_the_mask(mask: patterns.AttentionMask, stride: int) -> None:
    assert stride in find_strides(mask.bits[0, 0], mask.kv_len, 4)


def test_masks_without_strides_have_none() -> None:
    for mask in (patterns.random(256, 0.1), patterns.sliding_window(256, 9), patterns.dense(64)):
        assert find_strides(mask.bits[0, 0], mask.kv_len, 4) == []


def test_the_distance_profile() -> None:
    mask = patterns.strided(64, 8)
    profile, positions = distance_profile(mask.bits[0, 0], 64)
    assert positions.tolist() == [64, *(2 * (64 - d) for d in range(1, 64))]
    wanted = [1.0 if d < 8 or d % 8 == 0 else 0.0 for d in range(64)]
    np.testing.assert_allclose(profile, wanted)


@given(dense_masks(), st.sampled_from([0.25, 0.5]), st.sampled_from([16, 64]))
def test_peeling_and_giving_back_split_a_mask(mask: np.ndarray, share: float, height: int) -> None:
    words = bitmatrix.to_words(pack(mask))
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return
    order = in_order(rows, 64)
    part = peel(words, order, height, share)
    assert not (part & ~words).any()
    piece = cut(part, order, AREA.tile, (16, 32, 64))
    plain = cut(words ^ part, order, AREA.tile, (16, 32, 64))
    check_piece(piece)
    check_piece(plain)
    back = give_back(piece, plain, AREA.tile)
    assert not (back & ~part).any()
    whole_rows = back.any(axis=1)  # a row goes back with its whole tile
    assert (back[whole_rows] == part[whole_rows]).all()


@given(dense_masks())
def test_cutting_is_no_worse_than_any_one_height(mask: np.ndarray) -> None:
    words = bitmatrix.to_words(pack(mask))
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return
    order = in_order(rows, 64)
    mixed = cut(words, order, AREA.tile, (16, 32, 64))
    check_piece(mixed)
    area = sum(t.height * int(t.padded.sum()) for t in all_tiles([mixed]))
    assert area == mixed.cost
    for height in (16, 32, 64):
        assert mixed.cost <= cut(words, order, AREA.tile, (height,)).cost


@given(dense_masks(), st.sampled_from([16, 48, 100]))
def test_splitting_wide_tiles_keeps_every_entry(mask: np.ndarray, limit: int) -> None:
    words = bitmatrix.to_words(pack(mask))
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return
    whole = cut(words, in_order(rows, 64), AREA.tile, (16, 32, 64))
    counted = np.zeros(mask.shape, dtype=int)
    for piece in split_wide((whole,), limit, mask.shape[1]):
        check_piece(piece)
        counted += dense_of(piece.words, mask.shape[1])
    assert (counted == mask).all()
