"""The cost model, by its definitions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparsebert.compiler.cost import constants
from sparsebert.compiler.cost.constants import Term
from sparsebert.compiler.cost.model import (
    DEFAULT_HEADS,
    PER_CALL,
    batches,
    cost_model,
    usual_copies,
)
from sparsebert.tiles.outlines import TileOutlines


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
