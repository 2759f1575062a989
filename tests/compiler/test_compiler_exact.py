"""The compiler's parts by their definitions, on inputs small enough to count by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparsebert.compiler import bitmatrix
from sparsebert.compiler.cost import constants
from sparsebert.compiler.cost.constants import Term
from sparsebert.compiler.cost.model import (
    DEFAULT_HEADS,
    PER_CALL,
    batches,
    cost_model,
    usual_copies,
)
from sparsebert.compiler.cost.targets import is_target, machine_target
from sparsebert.compiler.cover_search import _Peeling, _Search
from sparsebert.compiler.orders import Order, equal_rows, folded, in_order, union_growth
from sparsebert.compiler.pieces import Piece, cut, give_back, peel, split_wide
from sparsebert.compiler.pricing import Area, Time
from sparsebert.compiler.strides import distance_profile, find_strides
from sparsebert.kernels.architecture import architecture
from sparsebert.masks.bits import pack, unpack
from sparsebert.tiles.outlines import TileOutlines


def words_of(mask: np.ndarray) -> np.ndarray:
    return bitmatrix.to_words(pack(mask))


def dense_of(words: np.ndarray, columns: int) -> np.ndarray:
    return unpack(np.ascontiguousarray(bitmatrix.to_bytes(words, columns)), columns)


def groups_of(order) -> list[list[int]]:
    return [group[group >= 0].tolist() for group in order.rows]


# ------------------------------------------------------------------------ bits


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


# ------------------------------------------------------------------------ orders


def test_groups_are_no_larger_than_they_need_to_be() -> None:
    for rows, size in ((1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (200, 64)):
        order = in_order(np.arange(rows), 64)
        assert order.rows.shape == (-(-rows // size), size)
        assert order.rows.reshape(-1)[:rows].tolist() == list(range(rows))
        assert order.rows.dtype == np.int32 and order.name == "rows in order"


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


# ------------------------------------------------------------------------ strides


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (30, 50), (50, 30)])
def test_the_distance_profile_of_rectangles(rows: int, columns: int) -> None:
    mask = np.random.default_rng(0).random((rows, columns)) < 0.4
    distance = np.abs(np.arange(rows)[:, None] - np.arange(columns))
    profile, positions = distance_profile(pack(mask), columns)
    for d in range(columns):
        at = distance == d
        assert positions[d] == at.sum()
        assert profile[d] == pytest.approx(mask[at].mean() if at.any() else 0.0)


def test_long_masks_are_sampled() -> None:
    """256 rows from the first to the last say as much as all of them."""
    mask = (np.arange(2000)[:, None] - np.arange(64)) % 7 == 0
    profile, positions = distance_profile(pack(mask), 64)
    assert positions.max() <= 2 * 256 and positions[0] >= 8
    np.testing.assert_array_equal(profile, np.arange(64) % 7 == 0)


def test_strides_come_by_their_excess_and_up_to_the_limit() -> None:
    distance = np.abs(np.arange(120)[:, None] - np.arange(120))
    mask = pack(distance % 12 == 0)
    found = find_strides(mask, 120, 4)
    assert found[0] == 12 and set(found) <= {2, 3, 4, 6, 12, 24, 36} and len(found) == 4
    assert find_strides(mask, 120, 2) == found[:2]
    assert find_strides(pack(distance <= 1), 120, 4) == []


def test_distances_beyond_the_farthest_strong_one_do_not_count() -> None:
    """Multiples of 12 up to 48 are a structure; a quarter of those of 20 beyond 60 are none."""
    distance = np.abs(np.arange(200)[:, None] - np.arange(200))
    weak = (distance % 20 == 0) & (distance >= 60)
    mask = (distance % 12 == 0) & (distance <= 48)
    mask |= weak & (np.random.default_rng(0).random(mask.shape) < 0.25)
    found = find_strides(pack(mask), 200, 40)
    assert 12 in found and 20 not in found and max(found) <= 48


# ------------------------------------------------------------------------ pieces

AREA = Area()


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


# ------------------------------------------------------------------------ the search


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


# ------------------------------------------------------------------------ cost


def test_tiles_that_overlap_take_the_longer_of_arithmetic_and_gathering() -> None:
    rows, width = np.array([16, 16]), np.array([16, 160])
    passed = dataclasses.replace(
        cost_model("cpu").forward, tile=1.0, row=0.5, column=0.25, entry={16: 0.01}
    )
    gather, compute = 8.0 + 0.25 * width, 0.16 * width
    both = passed.tiles(16, rows, width, overlapped=False)
    assert both == pytest.approx(1.0 + gather + compute)
    longer = passed.tiles(16, rows, width, overlapped=True)
    assert longer == pytest.approx(1.0 + np.maximum(gather, compute))


def test_no_route_is_faster_than_moving_the_tensors() -> None:
    model = cost_model("cpu")
    slow = dataclasses.replace(model.forward, floor_row=1000.0)
    model = dataclasses.replace(model, forward=slow)
    tiles = [TileOutlines(np.arange(16, dtype=np.int32)[None], np.array([16]))]
    assert slow.floor(16, 40) == slow.dense(16, 40) == 56_000.0
    assert model.cover_us(tiles, 16, 40) == model.bound_us(5, 16, 40) == 56_000.0


def test_the_longest_tile_keeps_the_machine_waiting() -> None:
    """One long tile of a call with 2 copies on 8 programs counts as 8 / 2 of it, if unbalanced."""
    model = dataclasses.replace(cost_model("sm90", copies=2), programs=8)
    rows = np.arange(64, dtype=np.int32)[None]
    long, short = TileOutlines(rows, np.array([4096])), TileOutlines(rows, np.array([16]))
    each = [model.tile_us(64, t.real_rows, t.padded)[0] for t in (long, short)]
    base = model.cover_us([long, short], 64, 4096, balanced=True) - sum(each)
    assert sum(each) < 4 * each[0]
    waiting = model.cover_us([long, short], 64, 4096)
    assert waiting == pytest.approx(base + 4 * each[0])
    many = dataclasses.replace(model, copies=16)
    assert many.cover_us([long], 64, 4096) == many.cover_us([long], 64, 4096, balanced=True)


def test_empty_rows_cost_where_the_machine_computes_them() -> None:
    rows, width = np.array([3]), np.array([64])
    for target in ("cpu", "sm90"):
        model = cost_model(target)
        executed = np.array([16]) if model.empty_rows_cost else rows
        expected = model.forward.tiles(16, executed, width, overlapped=model.overlapped)
        assert model.tile_us(16, rows, width) == pytest.approx(expected)
    assert cost_model("sm90").empty_rows_cost != cost_model("cpu").empty_rows_cost


def test_the_bound_counts_entries_at_the_cheapest_height() -> None:
    model = cost_model("sm90")
    cheapest = min(model.forward.entry.values())
    assert model.bound_us(10**9, 64, 64) == pytest.approx(cheapest * 10**9)


def test_batches_take_widths_within_a_fifth() -> None:
    """Widths of equal row count share a batch, down to 0.8 of its widest."""
    rows = np.arange(16, dtype=np.int32)[None]
    sixteen = TileOutlines(rows.repeat(4, 0), np.array([160, 128, 112, 96]))
    count, (widths,) = batches([sixteen])
    assert count == 2 and widths.tolist() == [160, 160, 112, 112]
    fewer = TileOutlines(np.where(rows < 9, rows, -1), np.array([160]))
    count, (first, second) = batches([sixteen, fewer])
    assert count == 3 and (first.tolist(), second.tolist()) == ([160, 160, 112, 112], [160])


def test_terms_that_come_once_a_call_are_shared_by_all_heads() -> None:
    """The others by the heads with the same tiles alone: once / (copies / tile_sets)."""
    stored = constants.pass_terms("cpu", "forward")
    model = cost_model("cpu", head_dim=32, threads=2, copies=24, tile_sets=4)
    for name in (*PER_CALL, "tile", "row", "column", "merge", "floor_row", "dense_entry"):
        term = stored[name]
        assert isinstance(term, Term)
        sharing = 24 if name in PER_CALL else 6
        assert getattr(model.forward, name) == pytest.approx(term.share(32, 2, sharing))
    heights = stored["entry"]
    assert isinstance(heights, dict)
    assert model.forward.entry == {h: t.share(32, 2, 6) for h, t in heights.items()}
    assert (model.head_dim, model.threads, model.copies) == (32, 2, 24)
    assert model.source == constants.stored()["tiles"]["torch"]["cpu"]["source"]


def test_usual_calls() -> None:
    """A batch of each target's own; a mask of one head stands for 12."""
    batch = constants.machine("cpu").batch
    assert usual_copies("cpu", 1) == 12 * batch == DEFAULT_HEADS * batch
    assert usual_copies("cpu", 2) == 2 * batch
    assert usual_copies("sm120", 3) == usual_copies("sm90", 3)
    assert cost_model("cpu").copies == usual_copies("cpu", 1)
    assert cost_model("cpu", tile_sets=5).copies == usual_copies("cpu", 5)
    assert cost_model("cpu").head_dim == 64 and cost_model("cpu").threads == 1


def test_names_of_targets() -> None:
    assert all(map(is_target, ("cpu", "sm80", "sm90", "sm120", "gfx942", "gfx90a", "gfx1100")))
    assert not any(map(is_target, ("cpu2", "sm9", "sm9000", "gfx", "gfx94g", "cuda", None, 90)))


@pytest.fixture
def forgotten_architectures() -> Iterator[None]:
    """Devices that a test makes up are not remembered."""
    architecture.cache_clear()
    yield
    architecture.cache_clear()


@pytest.mark.usefixtures("forgotten_architectures")
def test_the_machine_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine_target() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    card = SimpleNamespace(major=8, minor=6, gcnArchName="gfx90a:sramecc+:xnack-")
    cards = {torch.device("cuda", 3): card}
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    monkeypatch.setattr(torch.version, "hip", None)
    assert machine_target() == "sm86"
    architecture.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert machine_target() == "gfx90a"


def test_what_each_objective_may_use() -> None:
    """Tiles by time take every height, alone and mixed; splits only where tiles would wait."""
    assert AREA.height_choices == ((16, 32, 64),) and AREA.split_limits == ()
    assert AREA.tile(16, np.array([3]), np.array([32])).tolist() == [512.0]
    gpu, cpu = (Time(cost_model(target), 64, 64) for target in ("sm90", "cpu"))
    assert (AREA.greedy_height, AREA.peel_heights) == (16, (16, 64))
    assert (gpu.greedy_height, gpu.peel_heights) == (64, (16, 64))
    assert gpu.height_choices[0] == (16, 32, 64, 128)
    assert sorted(gpu.height_choices[1:]) == [(16,), (32,), (64,), (128,)]
    model = cost_model("sm90")
    assert bool(gpu.split_limits) == (model.programs > model.copies)
    busy = dataclasses.replace(model, copies=model.programs)
    assert Time(busy, 64, 64).split_limits == () == cpu.split_limits
    idle = dataclasses.replace(model, copies=model.programs - 1)
    assert Time(idle, 64, 64).split_limits == (1024, 512, 256, 128)
