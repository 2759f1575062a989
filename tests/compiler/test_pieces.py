"""Cutting, peeling, giving back and splitting, by their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebert.compiler import bitmatrix
from sparsebert.compiler.orders import in_order
from sparsebert.compiler.pieces import Piece, all_tiles, cut, give_back, peel, split_wide
from sparsebert.compiler.pricing import Area
from sparsebert.masks.bits import pack
from tests.compiler.bit_masks import dense_masks, dense_of, words_of

AREA = Area()


def check_piece(piece: Piece) -> None:
    """The tiles of a piece cover each of its rows once, and state their true widths."""
    rows = [t.rows[t.rows >= 0] for t in piece.tiles]
    flat = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    assert len(np.unique(flat)) == len(flat)
    assert set(np.flatnonzero(piece.words.any(axis=1))) <= set(flat)
    for tiles in piece.tiles:
        union = np.bitwise_or.reduce(bitmatrix.take(piece.words, tiles.rows), axis=1)
        assert (bitmatrix.count(union) == tiles.width).all() and (tiles.width > 0).all()


def test_cutting_joins_halves_where_that_is_no_dearer() -> None:
    """Rows 0 to 31 share their columns, rows 32 to 63 have two sets: one tile of 32, two of 16."""
    mask = np.zeros((64, 64), dtype=bool)
    mask[:32, :16] = mask[32:48, 16:32] = mask[48:, 32:48] = True
    piece = cut(words_of(mask), in_order(np.arange(64), 64), AREA.tile, (16, 32, 64))
    assert [(t.height, t.rows[:, 0].tolist(), t.width.tolist()) for t in piece.tiles] == [
        (32, [0], [16]),
        (16, [32, 48], [16, 16]),
    ]
    assert piece.cost == 32 * 16 + 2 * 16 * 16
    one_height = cut(words_of(mask), in_order(np.arange(64), 64), AREA.tile, (64,))
    assert [t.rows.shape for t in one_height.tiles] == [(1, 64)]
    assert one_height.cost == 64 * 48


def test_groups_below_every_height_keep_their_own() -> None:
    mask = np.ones((20, 5), dtype=bool)
    (tiles,) = cut(words_of(mask), in_order(np.arange(20), 32), AREA.tile, (64, 128)).tiles
    assert (tiles.height, tiles.real_rows.tolist()) == (32, [20])
    assert (tiles.width.tolist(), tiles.padded.tolist()) == ([5], [16])


@pytest.mark.parametrize(("share", "needed"), [(0.5, 8), (0.25, 4), (0.01, 2)])
def test_peeling_takes_the_columns_that_enough_rows_share(share: float, needed: int) -> None:
    """Column j is in j rows of each group of 16."""
    mask = np.arange(17)[None, :] > np.arange(16)[:, None]
    mask = np.concatenate([mask, mask])
    part = peel(words_of(mask), in_order(np.arange(32), 32), 16, share)
    assert (dense_of(part, 17) == mask & (np.arange(17) >= needed)).all()


def test_tiles_that_cost_more_than_they_save_are_given_back() -> None:
    """Of two peeled tiles, one has 64 columns that its rows' plain tile lacks, the other one."""
    columns = 128
    peeled, plain = np.zeros((2, 32, columns), dtype=bool)
    peeled[:16, :64] = True
    peeled[16:, 64] = True
    plain[:, 100:110] = True
    order = in_order(np.arange(32), 16)
    piece = cut(words_of(peeled), order, AREA.tile, (16,))
    rest = cut(words_of(plain), in_order(np.arange(32), 32), AREA.tile, (32,))
    back = dense_of(give_back(piece, rest, AREA.tile), columns)
    # 16 rows x 64 columns for 64 columns of a tile of 32; 16 x 16 padded for one such column
    assert (back[:16] == 0).all() and (back[16:] == peeled[16:]).all()


def test_rows_that_only_a_peeled_tile_has_would_need_one_of_the_smallest() -> None:
    mask = np.zeros((32, 64), dtype=bool)
    mask[:16] = True
    piece = cut(words_of(mask), in_order(np.arange(16), 16), AREA.tile, (16,))
    nothing = cut(words_of(np.zeros_like(mask)), in_order(np.arange(32), 16), AREA.tile, (16,))
    assert not give_back(piece, nothing, AREA.tile).any()  # it saves just what it costs


def test_only_wide_tiles_are_split() -> None:
    mask = np.zeros((32, 96), dtype=bool)
    mask[:16] = True
    mask[16:, :8] = True
    whole = cut(words_of(mask), in_order(np.arange(32), 16), AREA.tile, (16,))
    assert list(split_wide((whole,), 96, 96)) == [whole]
    narrow, first, second = split_wide((whole,), 48, 96)
    assert (dense_of(narrow.words, 96) == mask & (np.arange(32) >= 16)[:, None]).all()
    assert (dense_of(first.words, 96)[:16].sum(0) == 16 * (np.arange(96) < 48)).all()
    assert (dense_of(second.words, 96)[:16].sum(0) == 16 * (np.arange(96) >= 48)).all()
    assert narrow.name == "rows in order"
    assert first.name == second.name == "rows in order (split by columns)"
    assert [t.width.tolist() for p in (narrow, first, second) for t in p.tiles] == [
        [8],
        [48],
        [48],
    ]


def test_parts_of_a_tile_hold_the_rows_that_have_entries_there() -> None:
    """Row 3 has all columns, the others only some of the first part."""
    mask = np.zeros((16, 96), dtype=bool)
    mask[:, :8] = mask[3] = True
    whole = cut(words_of(mask), in_order(np.arange(16), 16), AREA.tile, (16,))
    first, second = list(split_wide((whole,), 48, 96))[1:]
    assert first.tiles[0].rows.tolist() == [list(range(16))]
    assert second.tiles[0].rows.tolist() == [[3] + [-1] * 15]


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


@pytest.mark.parametrize("limit", [16, 37, 40, 50, 100, 119])
def test_no_part_of_an_even_tile_is_wider_than_the_limit(limit: int) -> None:
    full = bitmatrix.to_words(pack(np.ones((16, 120), dtype=bool)))
    whole = cut(full, in_order(np.arange(16), 16), Area().tile, (16,))
    parts = list(split_wide((whole,), limit, 120))
    widths = [int(tiles.width.max()) for piece in parts for tiles in piece.tiles]
    assert max(widths) <= limit and sum(widths) == 120
    assert len(widths) == -(-120 // limit)  # and no more parts than it takes
