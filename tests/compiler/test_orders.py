"""Row orders: every row once, and together what belongs together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebert.compiler import bitmatrix, orders
from sparsebert.compiler.orders import Order, equal_rows, folded, in_order, union_growth
from sparsebert.masks.bits import pack
from tests.compiler.bit_masks import dense_masks, words_of


def groups_of(order) -> list[list[int]]:
    return [group[group >= 0].tolist() for group in order.rows]


def test_groups_are_no_larger_than_they_need_to_be() -> None:
    for rows, size in ((1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (200, 64)):
        order = in_order(np.arange(rows), 64)
        assert order.rows.shape == (-(-rows // size), size)
        assert order.rows.reshape(-1)[:rows].tolist() == list(range(rows))
        assert order.rows.dtype == np.int32 and order.name == "rows in order"


def test_different_rows_with_one_hash_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = np.eye(8, 70, dtype=bool)[np.arange(64) % 8][::-1]
    order = equal_rows(words_of(kinds), np.arange(64), 64)
    assert order is not None
    monkeypatch.setattr(orders, "_hashes", lambda words: np.zeros(len(words), dtype=np.uint64))
    again = equal_rows(words_of(kinds), np.arange(64), 64)
    assert again is not None and np.array_equal(order.rows, again.rows)


def test_hashes_tell_rows_of_high_bits_apart() -> None:
    """A sum of products alone would not: of a high bit it keeps little."""
    alone = words_of(np.eye(4096, dtype=bool))
    assert len(np.unique(orders._hashes(alone))) == 4096
    assert len(np.unique(orders._hashes(alone | np.roll(alone, 1, axis=0)))) == 4096


def test_equal_rows_stand_together_in_the_order_of_their_first() -> None:
    kinds = np.eye(8, 70, dtype=bool)[np.arange(64) % 8][::-1]
    order = equal_rows(words_of(kinds), np.arange(64), 64)
    assert order is not None and order.name == "equal rows together"
    assert groups_of(order) == [list(range(k, 64, 8)) for k in range(8)]
    # fewer than 8 rows of a kind, on average, fill less than half of the smallest tile
    assert equal_rows(words_of(kinds), np.arange(63), 64) is None


def test_a_kind_with_many_rows_takes_several_groups() -> None:
    mask = np.zeros((100, 8), dtype=bool)
    mask[:70, 0] = mask[70:, 1] = True
    order = equal_rows(words_of(mask), np.arange(100), 64)
    assert order is not None
    assert groups_of(order) == [[*range(64)], [*range(64, 70)], [*range(70, 100)]]


def test_strips_of_a_folded_grid() -> None:
    """Positions 2 to 25 are a grid 6 wide and 4 high; strips 4 wide go downwards, line by line."""
    order = folded(np.arange(2, 26), 6, 4, 2, 16)
    first = [2 + 6 * line + place for line in range(4) for place in range(4)]
    second = [2 + 6 * line + place for line in range(4) for place in (4, 5)]
    assert groups_of(order) == [first, second]
    assert order.name == "patches 4 wide of a grid 6 wide"
    assert folded(np.arange(24), 6, 1, 0, 16).name == "residue classes mod 6"


def test_greedy_groups_find_families() -> None:
    """Two families of rows, shuffled: each group is of one, and grows by what it shares most."""
    rng = np.random.default_rng(0)
    family = rng.permutation(np.arange(256) % 2)
    mask = np.zeros((256, 128), dtype=bool)
    mask[family == 0, :40] = mask[family == 1, 60:100] = True
    mask &= rng.random(mask.shape) < 0.8
    order = union_growth(words_of(mask), np.arange(256), np.zeros(0, dtype=np.int64), 16)
    assert order.name == "greedy groups of 16"
    assert all(len(set(family[group])) == 1 for group in groups_of(order))
    assert len(order.rows) == 16


def test_a_greedy_group_takes_the_row_that_adds_least() -> None:
    mask = np.zeros((18, 64), dtype=bool)
    mask[:, 0] = True
    mask[1:9, 1:30] = True  # rows 1 to 8 add 29 columns together,
    for i in range(9, 18):
        mask[i, 30 + i] = True  # rows 9 to 17 one each
    order = union_growth(words_of(mask), np.arange(18), np.zeros(0, dtype=np.int64), 16)
    assert groups_of(order)[0][:10] == [0, *range(9, 18)]
    assert groups_of(order)[0][10:] == [1, 2, 3, 4, 5, 6] and groups_of(order)[1] == [7, 8]


def test_long_rows_are_the_last_group() -> None:
    mask = np.eye(40, 64, dtype=bool)
    mask[[3, 30]] = True
    usual, long = np.delete(np.arange(40), [3, 30]), np.array([3, 30])
    groups = groups_of(union_growth(words_of(mask), usual, long, 16))
    assert groups[-1] == [3, 30]
    assert sorted(row for group in groups[:-1] for row in group) == usual.tolist()


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
