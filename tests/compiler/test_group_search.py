"""The search for tiles of 16 rows with single entries beside them: what it chooses, by price."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebert import patterns
from sparsebert.compiler import group_search
from sparsebert.compiler.cost.model import CostModel, cost_model
from sparsebert.compiler.cover_search import Cover
from sparsebert.compiler.group_search import best_groups, count_singles
from sparsebert.compiler.pieces import all_tiles
from sparsebert.compiler.pricing import GroupArea, GroupPricing, GroupTime
from sparsebert.masks import AttentionMask
from sparsebert.masks.bits import pack
from sparsebert.tiles.outlines import NO_SINGLES, Singles
from tests.compiler.bit_masks import dense_masks, dense_of, words_of
from tests.compiler.plans import singles_plan
from tests.compiler.round_costs import PASS

COST = dataclasses.replace(
    PASS, shape=0.0, level=0.0, tile=10.0, row=1.0, column=5.0, entry={16: 0.25},
    single=1.0, single_column=2.0, merge=4.0, far_row=0.125, far_column=0.5,
)  # fmt: skip
"""A column of 16 rows costs 9, so it pays from 8 rows on where it saves a column of singles."""


def model(**changed: float) -> CostModel:
    native = cost_model("cpu", backend="native")
    return dataclasses.replace(native, forward=dataclasses.replace(COST, **changed))


def cover_of(mask: np.ndarray, **changed: float) -> Cover:
    pricing = GroupTime(model(**changed), *mask.shape)
    return best_groups(pack(mask), mask.shape[1], pricing)


def split(cover: Cover, shape: tuple[int, ...]) -> tuple[list[np.ndarray], np.ndarray]:
    """What each piece covers and what stands alone, bool [N, M] each."""
    assert cover.singles is not None
    pieces = [dense_of(piece.words, shape[1]) for piece in cover.pieces]
    return pieces, dense_of(cover.singles, shape[1])


@given(dense_masks(), st.sampled_from(["area", "time", "real"]))
def test_pieces_and_single_entries_are_the_mask(mask: np.ndarray, objective: str) -> None:
    pricing: GroupPricing = GroupArea()
    if objective != "area":
        costs = model() if objective == "time" else cost_model("cpu", backend="native")
        pricing = GroupTime(costs, *mask.shape)
    cover = best_groups(pack(mask), mask.shape[1], pricing)
    if not mask.any():
        assert cover.pieces == () and cover.singles is None
        return
    pieces, alone = split(cover, mask.shape)
    total = alone.astype(int) + sum(piece.astype(int) for piece in pieces)
    assert (total == mask).all()
    for piece, covered in zip(cover.pieces, pieces, strict=True):
        (tiles,) = piece.tiles
        assert tiles.height == 16
        rows = tiles.rows[tiles.rows >= 0]
        assert len(np.unique(rows)) == len(rows)
        assert set(np.flatnonzero(covered.any(axis=1))) == set(rows)  # no row without an entry
        for slots, width in zip(tiles.rows, tiles.width, strict=True):
            assert (slots[: (slots >= 0).sum()] >= 0).all()
            assert covered[slots[slots >= 0]].any(axis=0).sum() == width
    singles = count_singles(cover.singles, cover.pieces)
    assert singles.entries == alone.sum()
    assert cover.cost == pytest.approx(pricing.total(cover.pieces, singles))
    assert cover.cost <= pricing.total((), count_singles(words_of(mask), ())) * (1 + 1e-12)


def test_columns_that_enough_rows_share_are_tiles() -> None:
    """8 of 16 rows: 8 entries and a column of theirs are 10, a tile's column 9. 7 rows: 9."""
    mask = np.zeros((16, 40), dtype=bool)
    mask[:8, :20] = True
    mask[8:15, 20:] = True
    mask[15, 0] = True
    (tiled,), alone = split(cover_of(mask), mask.shape)
    assert (tiled == (np.arange(40) < 20) & mask).all() and (alone == mask & ~tiled).all()


def test_a_tile_must_save_more_than_it_costs() -> None:
    """16 rows: 18 less 9 a column. A tile costs 10, so one column does not pay, two do."""
    mask = np.zeros((16, 40), dtype=bool)
    mask[:, 3] = True
    assert cover_of(mask).pieces == ()
    mask[:, 30] = True
    assert len(cover_of(mask).pieces) == 1
    assert cover_of(mask, tile=18.0).pieces == ()


def test_rows_in_two_tiles_pay_for_merging() -> None:
    """A band of blocks, and residue classes: two orders, if merging is cheap."""
    n = 256
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    mask = (i // 16 == j // 16) | ((i - j) % 16 == 0)
    cheap = cover_of(mask, single=4.0, tile=1.0, merge=0.1)
    assert [piece.name for piece in cheap.pieces] in (
        ["rows in order", "residue classes mod 16"], ["residue classes mod 16", "rows in order"]
    )  # fmt: skip
    pieces, alone = split(cheap, mask.shape)
    assert not alone.any() and all(piece.any(axis=1).all() for piece in pieces)
    assert cheap.name == " + ".join(piece.name for piece in cheap.pieces)
    dear = cover_of(mask, single=4.0, tile=1.0, merge=1000.0)
    assert len(dear.pieces) == 1 and dear.cost > cheap.cost


def test_long_rows_have_groups_of_their_own() -> None:
    """12 global tokens anywhere among others: together they share all columns."""
    n = 200
    mask = np.eye(n, dtype=bool)
    long = np.random.default_rng(0).permutation(n)[:12]
    mask[long] = True
    cover = cover_of(mask)
    (tiles,) = all_tiles(cover.pieces)
    assert set(tiles.rows[tiles.rows >= 0].tolist()) == set(long.tolist())
    assert tiles.width.tolist() == [n]


def test_groups_are_grown_where_rows_that_are_alike_lie_apart() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.random((8, 300)) < 0.2
    noise = rng.random((128, 300)) < 0.02  # or equal rows would be found
    mask = kinds[rng.permutation(128) % 8] | noise
    cover = cover_of(mask)
    assert "greedy groups of 16" in cover.name
    assert cover.cost < 0.8 * dict(cover.tried)["single entries"]


def test_groups_are_not_grown_where_nothing_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("grown")

    monkeypatch.setattr(group_search, "union_growth", refuse)
    for mask in (patterns.random(512, 0.1), patterns.star(512), patterns.dense(200)):
        pricing = GroupTime(cost_model("cpu", backend="native"), mask.q_len, mask.kv_len)
        best_groups(mask.bits[0, 0], mask.kv_len, pricing)


def test_large_masks_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = patterns.strided(512, 16).dense()[0, 0].numpy()
    whole = cover_of(mask)
    monkeypatch.setattr(group_search, "_AT_ONCE", 1 << 12)
    parts = cover_of(mask)
    assert parts.name == whole.name and parts.cost == whole.cost
    assert np.array_equal(parts.singles, whole.singles)


def test_who_watches_is_told() -> None:
    calls: list[int] = []
    mask = patterns.strided(256, 16)
    pricing = GroupTime(model(), 256, 256)
    best_groups(mask.bits[0, 0], 256, pricing, lambda: calls.append(1))
    assert len(calls) > 3


# ------------------------------------------------------------------------ known masks


def report_of(mask: AttentionMask):
    (head,) = singles_plan(mask, threads=1).explain().per_head
    return head


def test_a_star_is_single_entries_but_for_its_global_rows() -> None:
    for n in (128, 512, 2048):
        mask = patterns.star(n)
        plan = singles_plan(mask, threads=1)
        long = np.flatnonzero(mask.dense()[0, 0].numpy().sum(axis=1) > n // 2)
        assert set(plan.tiles.rows[plan.tiles.rows >= 0].tolist()) <= set(long.tolist())
        assert plan.report.single_entries > 0


@pytest.mark.parametrize("n", [1024, 2048])
def test_long_strided_masks_are_two_kinds_of_tiles_where_merging_is_cheap(n: int) -> None:
    """Residue classes for the strides, neighbours for the window."""
    stride = math.isqrt(n)
    cover = cover_of(patterns.strided(n, stride).dense()[0, 0].numpy(), merge=0.5)
    assert {piece.name for piece in cover.pieces} >= {
        "rows in order", f"residue classes mod {stride}"
    }  # fmt: skip
    merged = sum(len(piece.tiles[0].rows) for piece in cover.pieces) * 16 - n
    assert merged > 0.9 * n
    dear = cover_of(patterns.strided(n, stride).dense()[0, 0].numpy(), merge=1000.0)
    assert len(dear.pieces) == 1


@pytest.mark.parametrize("n", [128, 512])
def test_what_no_tile_can_do_pays_in_single_entries(n: int) -> None:
    """A random mask of 10 %, and log-sparse rows: nothing is shared."""
    for mask in (patterns.random(n, 0.1), patterns.log_sparse(n)):
        head = report_of(mask)
        assert head.route == "tiles" and head.cover == "single entries" and not head.tiles
        assert head.executed_fraction == head.density
        assert head.predicted_speedup > 1.5


def test_a_full_mask_is_tiles_alone() -> None:
    head = report_of(patterns.dense(512))
    assert head.route == "tiles" and head.single_entries == 0
    assert head.tiles == {16: 32} and head.executed_fraction == 1.0


# ------------------------------------------------------------------------ prices


def test_a_cover_is_the_sum_of_its_terms() -> None:
    """By hand: 40 rows, two tiles, rows 0 to 3 in both, 4 rows in none."""
    first = np.arange(16, dtype=np.int32)[None]
    second = np.r_[np.arange(4), np.arange(16, 36), [-1] * 8].astype(np.int32).reshape(2, 16)
    tiles = [
        group_search.TileOutlines(first, np.array([20])),
        group_search.TileOutlines(second, np.array([30, 5])),
    ]
    wide, narrow = 5.0 + 16 * 0.25, 5.0 + 8 * 0.25
    expected = 1.0 + 3 * 10.0 + 50 * wide + 5 * narrow  # call, tiles, columns
    expected += (16 + 24) * 1.0 + 4 * 1.0  # rows of tiles, and the others
    expected += 4 * 4.0 + 7 * 1.0 + 3 * 2.0  # merged rows, single entries and their columns
    costs, singles = model(), Singles(7, 3)
    assert costs.cover_us(tiles, 40, 50, singles=singles) == pytest.approx(expected)
    assert costs.cover_us([], 40, 50, singles=NO_SINGLES) == pytest.approx(1.0 + 40.0)


def test_what_does_not_fit_the_caches_costs_more() -> None:
    """12 heads of q, k, v and o, D = 64: near are 1,302 rows in all, and 1,367 of one head."""
    rows, singles = np.arange(16, dtype=np.int32)[None], Singles(7, 3)
    tiles = [group_search.TileOutlines(rows, np.array([20]))]
    near = 1.0 + 10.0 + 20 * 9.0 + 7 * 1.0 + 3 * 2.0
    for q_len, kv_len, far in ((600, 702, 0.0), (600, 703, 1303 * 0.125), (16, 1367, None)):
        far = (16 + 1367) * 0.125 if far is None else far
        found = model().cover_us(tiles, q_len, kv_len, singles=singles)
        assert found == pytest.approx(near + q_len * 1.0 + far)
    found = model().cover_us(tiles, 16, 1368, singles=singles)
    assert found == pytest.approx(near + 16.0 + (16 + 1368) * 0.125 + (20 + 3) * 0.5)


def test_the_bound_is_the_cheaper_of_both_ways() -> None:
    assert model().bound_us(10**6, 64, 64) == pytest.approx(10**6 * (5.0 / 16 + 0.25))
    assert model(single=0.5).bound_us(10**6, 64, 64) == pytest.approx(10**6 * 0.5)


def test_area_counts_single_entries_double() -> None:
    area = GroupArea()
    assert area.column(np.array([3, 16])).tolist() == [16.0, 16.0]
    assert area.total((), Singles(5, 99)) == 10.0
    mask = np.zeros((16, 20), dtype=bool)
    mask[:9, 0] = mask[:8, 1] = True
    cover = best_groups(pack(mask), 20, area)
    (tiled,), alone = split(cover, mask.shape)
    assert tiled[:, 0].sum() == 9 and alone[:, 1].sum() == 8 and cover.cost == 16 + 2 * 8
