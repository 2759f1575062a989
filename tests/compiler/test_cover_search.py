"""The search for covers: what it tries, when it stops, what it tells."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sparsebert import patterns
from sparsebert.compiler import bitmatrix, cover_search
from sparsebert.compiler.cost.model import cost_model
from sparsebert.compiler.cover_search import _orders, _Peeling, _Search, best_cover
from sparsebert.compiler.orders import Order, in_order
from sparsebert.compiler.pieces import Piece
from sparsebert.compiler.pricing import Area, Time
from sparsebert.masks import AttentionMask
from sparsebert.masks.bits import pack
from sparsebert.tiles.outlines import TileOutlines
from tests.compiler.plans import tiles_plan
from tests.compiler.round_costs import a_model


def words_with_long_rows() -> np.ndarray:
    mask = np.abs(np.arange(96)[:, None] - np.arange(96)) <= 2
    mask[[17, 40]] = True
    return bitmatrix.to_words(pack(mask))


AREA = Area()


class Scripted(_Search):
    """A search whose peelings have the costs of a script: [round][order] -> costs."""

    def __init__(self, script: list[dict[str, list[float]]]) -> None:
        super().__init__(AREA)
        self._cost, self.script, self.seen = 100.0, script, []

    def _peel(self, state: _Peeling, order: Order) -> Iterator[_Peeling]:
        depth = len(state.pieces)
        self.seen.append((depth, state.cost, order.name))
        for scripted_cost in self.script[depth].get(order.name, []):
            piece = Piece(order.name, state.rest, (), scripted_cost)
            yield _Peeling(scripted_cost, (*state.pieces, piece), state.rest)


def scripted(*script: dict[str, list[float]]) -> list[tuple[int, float, str]]:
    search = Scripted(list(script))
    names = "abcde"
    orders = [Order(name, np.zeros((1, 16), dtype=np.int32)) for name in names]
    search.peel_repeatedly(np.zeros((1, 1), dtype=np.uint64), orders)
    return search.seen


def test_peeling_goes_on_from_the_best_with_the_three_best_orders() -> None:
    seen = scripted(
        {"a": [70.0, 90.0], "b": [95.0], "c": [60.0, 99.0], "d": [65.0], "e": [80.0]},
        {"a": [50.0], "c": [55.0], "d": [59.0]},
        {"a": [49.9]},
    )
    assert [(depth, name) for depth, _, name in seen] == [
        *((0, name) for name in "abcde"),
        *((1, name) for name in "cda"),  # the cheapest first
        *((2, name) for name in "acd"),
    ]
    assert {(depth, cost) for depth, cost, _ in seen} == {(0, 100.0), (1, 60.0), (2, 50.0)}


@pytest.mark.parametrize(("cost", "rounds"), [(99.1, 1), (98.9, 2), (120.0, 1)])
def test_a_peel_that_gains_less_than_one_percent_is_the_last(cost: float, rounds: int) -> None:
    seen = scripted({"b": [cost]}, {})
    assert max(depth for depth, _, _ in seen) == rounds - 1


def test_there_are_at_most_three_peels() -> None:
    seen = scripted({"a": [90.0]}, {"a": [80.0]}, {"a": [70.0]}, {"a": [60.0]})
    assert max(depth for depth, _, _ in seen) == 2


def test_the_report_names_the_five_next_best_covers_cheapest_first() -> None:
    search = _Search(AREA)
    tiles = (TileOutlines(np.arange(16, dtype=np.int32)[None], np.array([16])),)
    costs = {"a": 7.0, "b": 3.0, "c": 9.0, "d": 1.0, "e": 5.0, "f": 8.0, "g": 2.0, "h": 4.0}
    for name, price in costs.items():
        search._offer((Piece(name, np.zeros((1, 1), dtype=np.uint64), tiles, price),))
    found = search.result()
    assert (found.name, found.cost) == ("d", 1.0)
    assert found.tried == (("g", 2.0), ("b", 3.0), ("h", 4.0), ("e", 5.0), ("a", 7.0))


def test_patches_begin_behind_the_special_tokens() -> None:
    """A grid after 3 special tokens is folded as the same grid without them."""
    mask = patterns.neighborhood_2d(16, 16, 5, num_special=3)
    words = bitmatrix.to_words(mask.bits[0, 0])
    plain, _ = _orders(mask.bits[0, 0], words, np.arange(3, 259), 259, Area())
    patches = next(order for order in plain if "patches 4 wide of a grid 16 wide" in order.name)
    for group in patches.rows:
        place = (group[group >= 0] - 3) % 16
        assert len(set(place // 4)) == 1


def test_long_rows_are_tried_apart_at_every_height() -> None:
    """Apart, the other rows keep to one height or mix them, just as when they are together."""
    words, time = words_with_long_rows(), Time(a_model(), 96, 96)
    search = _Search(time)
    passes = list(search._passes(words, in_order(np.arange(96), 128), time.height_choices))
    apart = [pieces for pieces in passes if len(pieces) == 2]
    assert len(apart) == len(time.height_choices) == len(passes) - len(apart)
    for pieces, heights in zip(apart, time.height_choices, strict=True):
        assert pieces[0].name == "2 long rows"
        assert {tiles.height for tiles in pieces[1].tiles} <= set(heights)
        entries = [bitmatrix.count(piece.words).sum() for piece in pieces]
        assert sum(entries) == bitmatrix.count(words).sum()
        assert not (pieces[0].words & pieces[1].words).any()
        rows = np.concatenate([tiles.rows.reshape(-1) for tiles in pieces[0].tiles])
        assert set(rows[rows >= 0]) == {17, 40}


def test_global_tokens_do_not_widen_their_neighbours() -> None:
    mask = patterns.sliding_window(512, 4).dense()[0, 0]
    mask[[100, 300]] = True
    plan = tiles_plan(AttentionMask.from_dense(mask), objective="area")
    assert "2 long rows" in plan.report.per_head[0].cover
    assert plan.explain().executed_fraction < 0.1


def test_a_cover_that_is_dearer_whole_may_be_the_cheapest_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than the best is tried with its wide tiles split; no choice is worse for it."""
    model = cost_model("sm90")
    masks = [patterns.bigbird(1024, 4, 2, 4), patterns.longformer(1024, 16, 2)]
    masks += [patterns.star(2048), patterns.bigbird(2048, 8, 2, 8)]
    costs = []
    for finalists in (1, 2):
        monkeypatch.setattr(cover_search, "_FINALISTS", finalists)
        costs.append(
            [best_cover(m.bits[0, 0], m.kv_len, Time(model, *m.shape[2:])).cost for m in masks]
        )
    one, two = costs
    assert all(after <= before for before, after in zip(one, two, strict=True))
    assert any(after < before for before, after in zip(one, two, strict=True))


def test_no_tile_is_split_into_very_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = patterns.star(4096)
    pricing = Time(cost_model("sm90", copies=12), 4096, 4096)
    limits: list[int] = []
    split = cover_search.split_wide

    def noted(pieces: tuple[Piece, ...], limit: int, columns: int) -> Iterator[Piece]:
        limits.append(limit)
        return split(pieces, limit, columns)

    monkeypatch.setattr(cover_search, "split_wide", noted)
    best_cover(mask.bits[0, 0], 4096, pricing)
    assert limits and min(limits) >= 4096 / 16
