"""The route of each head: what it would cost, when it is dense, and what heads cost each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparsebert import patterns
from sparsebert.compiler.cost.model import cost_model
from sparsebert.compiler.report import HeadReport
from sparsebert.compiler.routes import (
    HeadMask,
    decide_together,
    dense_unless_tiles_win,
    report_dense,
    report_tiles,
)
from sparsebert.masks import AttentionMask
from sparsebert.tiles.outlines import NO_SINGLES, TileOutlines, outlines_of_head
from tests.compiler.plans import tiles_plan
from tests.compiler.round_costs import PASS, a_model


def a_report(forward: float, backward: float, heads: tuple[int, ...] = (0,)) -> HeadReport:
    """Tiles with these predicted times, where dense attention takes 100 and 200."""
    tiles = TileOutlines(np.arange(16, dtype=np.int32)[None], np.array([16]))
    report = report_tiles(
        HeadMask(heads, 256, 64, 64), [tiles], NO_SINGLES, "some", (), "why", a_model()
    )
    return dataclasses.replace(
        report,
        predicted_us=forward,
        predicted_backward_us=backward,
        dense_us=100.0,
        dense_backward_us=200.0,
    )


def rows_of(height: int, width: int) -> list[TileOutlines]:
    return [TileOutlines(np.arange(height, dtype=np.int32)[None], np.array([width]))]


@pytest.mark.parametrize(
    ("forward", "backward", "loses"),
    [
        (99.0, 200.0, None),
        (90.0, 209.0, None),
        (101.0, 100.0, "101 us forward, dense"),
        (101.0, 200.0, "101 us forward, dense"),
        (90.0, 211.0, "301 us forward and backward, dense attention 300"),
    ],
)
def test_tiles_must_win_in_inference_and_in_training(
    forward: float, backward: float, loses: str | None
) -> None:
    report = a_report(forward, backward)
    chosen = dense_unless_tiles_win(report, HeadMask((0,), 256, 64, 64), a_model())
    if loses is None:
        assert chosen is report
    else:
        assert chosen.route == "dense" and loses in chosen.reason
        assert chosen.tried[0] == ("some", forward)


def test_within_the_margin_of_error_tiles_do_not_win() -> None:
    mask = HeadMask((0,), 256, 64, 64)
    assert dense_unless_tiles_win(a_report(99.0, 150.0), mask, a_model(1.05)).route == "dense"
    assert dense_unless_tiles_win(a_report(95.0, 150.0), mask, a_model(1.05)).route == "tiles"


@pytest.mark.parametrize("entries", [4096, 4095])
def test_only_a_full_mask_costs_dense_attention_nothing(entries: int) -> None:
    model, mask = a_model(), HeadMask((0,), entries, 64, 64)
    times = [x.dense(64, 64, masked=entries < 4096) for x in (model.forward, model.backward)]
    dense = report_dense(mask, (), "why", model)
    assert [dense.predicted_us, dense.predicted_backward_us] == times
    tiled = report_tiles(mask, rows_of(16, 16), NO_SINGLES, "some", (), "why", model)
    for report in (dense, tiled):
        assert [report.dense_us, report.dense_backward_us] == times
    assert ("no mask" in dense.cover) == (entries == 4096)


def test_a_report_counts_tiles_columns_and_rows_that_are_merged() -> None:
    rows = np.full((2, 16), -1, dtype=np.int32)
    rows[0], rows[1, :8] = np.arange(16), np.arange(8)
    cover = [TileOutlines(rows, np.array([20, 16])), *rows_of(32, 40)]
    report = report_tiles(
        HeadMask((0,), 256, 64, 64), cover, NO_SINGLES, "some", (), "why", a_model()
    )
    assert report.tiles == {32: 1, 16: 2} and list(report.tiles) == [32, 16]
    assert report.gathered_columns == 32 + 16 + 48
    assert report.executed_fraction == (16 * 48 + 32 * 48) / 4096
    assert report.merge_share == 1 - 32 / (16 + 8 + 32)
    assert report.predicted_us == a_model().cover_us(cover, 64, 64)
    assert report.predicted_backward_us == a_model().cover_us(cover, 64, 64, backward=True)


def test_heads_pay_for_each_other() -> None:
    """By hand: 3 heads in tiles of two shapes, 1 dense; N = 64."""
    covers = [rows_of(16, 16), rows_of(32, 64), []]
    masks = [
        HeadMask((0, 1), 256, 64, 64),
        HeadMask((2,), 256, 64, 64),
        HeadMask((3,), 4096, 64, 64),
    ]
    reports = [a_report(10.0, 20.0, (0, 1)), a_report(30.0, 40.0, (2,)), a_report(1, 1, (3,))]
    reports[2] = dataclasses.replace(
        reports[2], route="dense", predicted_us=100.0, predicted_backward_us=200.0
    )
    settled = decide_together(reports, covers, masks, a_model())
    # 1 head's call, 4 heads x 2 shapes of which 2 x 1 + 1 x 1 are priced, 64 rows of 4 heads mixed
    extra = (1 * 1.0 + (4 * 2 - 3) * 2.0 + 64 * 4 * 0.125) / 3
    assert [report.route for report in settled] == ["tiles", "tiles", "dense"]
    assert settled[0].predicted_us == pytest.approx(10.0 + extra)
    assert settled[1].predicted_us == pytest.approx(30.0 + extra)
    assert settled[1].predicted_backward_us == pytest.approx(40.0 + 2 * extra)
    assert settled[2] is reports[2]


def test_heads_of_other_heights_add_launches() -> None:
    """By hand: 2 heads in tiles of 16 rows, 1 in tiles of 32, each priced with one launch of 3."""
    covers = [rows_of(16, 16), rows_of(32, 64)]
    masks = [HeadMask((0, 1), 256, 64, 64), HeadMask((2,), 256, 64, 64)]
    reports = [a_report(10.0, 20.0, (0, 1)), a_report(30.0, 40.0, (2,))]
    plain = dataclasses.replace(PASS, shape=0.0, launch=3.0)
    model = dataclasses.replace(a_model(), launches=True, step=64, forward=plain, backward=plain)
    settled = decide_together(reports, covers, masks, model)
    extra = (3 * 2 - 3) * 3.0 / 3
    assert [report.predicted_us for report in settled] == [10.0 + extra, 30.0 + extra]
    alike = decide_together(reports, [covers[0]] * 2, masks, model)
    assert [report.predicted_us for report in alike] == [10.0, 30.0]


def test_heads_that_are_all_in_tiles_do_not_pay_for_mixing() -> None:
    covers, masks = [rows_of(16, 16)] * 2, [HeadMask((h,), 256, 64, 64) for h in (0, 1)]
    reports = [a_report(10.0, 20.0, (h,)) for h in (0, 1)]
    assert decide_together(reports, covers, masks, a_model()) == reports
    assert decide_together(reports[:1], covers[:1], masks[:1], a_model()) == reports[:1]


@pytest.mark.parametrize(
    ("forward", "backward", "route"),
    [(10.0, 20.0, "tiles"), (99.0, 20.0, "dense"), (10.0, 280.0, "dense")],
)
def test_all_heads_together_must_win_too(forward: float, backward: float, route: str) -> None:
    """With the second head dense, the first must win by what the two parts of the call cost."""
    covers, masks = [rows_of(16, 16), []], [HeadMask((h,), 256, 64, 64) for h in (0, 1)]
    dense = dataclasses.replace(a_report(100.0, 200.0, (1,)), route="dense", reason="no structure")
    settled = decide_together([a_report(forward, backward), dense], covers, masks, a_model())
    assert settled[0].route == route
    assert settled[1] is dense
    if route == "dense":
        assert "does not pay for all heads together: with 1 of 2 in tiles" in settled[0].reason


def test_heads_with_masks_of_their_own_share_no_tiles() -> None:
    """What comes once for all heads that share tiles is priced by how many do."""
    n, heads = 512, 4
    one = patterns.longformer(n, 8, 2)
    same = AttentionMask.stack_heads([one] * heads)
    each = AttentionMask.stack_heads([patterns.longformer(n, 8 + h, 2) for h in range(heads)])
    for mask, tile_sets in ((same, 1), (each, heads)):
        plan = tiles_plan(mask, threads=1, objective="area")
        model = cost_model("cpu", copies=heads, tile_sets=tile_sets)
        predicted = [
            model.cover_us(outlines_of_head(plan.tiles, u), n, n) for u in range(tile_sets)
        ]
        found = [head.predicted_us for head in plan.report.per_head]
        assert found == pytest.approx(predicted)
    assert cost_model("cpu", copies=4, tile_sets=4) != cost_model("cpu", copies=4, tile_sets=1)
