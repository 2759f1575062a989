"""The cost model and the report: sane constants, honest choices, readable text."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sparsebert import patterns
from sparsebert.compiler import compile_plan
from sparsebert.compiler.cost import PassCost, cost_model
from sparsebert.compiler.pieces import Tiles
from sparsebert.masks import AttentionMask
from sparsebert.tiles import HEIGHTS

TARGETS = ("cpu", "sm80", "sm90", "sm100", "gfx942")

MASKS = {
    "star": patterns.star(512),
    "longformer": patterns.longformer(1024, 16, 2),
    "strided": patterns.strided(512, 22),
    "short": patterns.longformer(128),
    "random": patterns.random(256, 0.1),
    "dense": patterns.dense(200),
    "empty": AttentionMask.from_dense(np.zeros((64, 64), dtype=bool)),
    "rectangular": patterns.sliding_window(1024, 8).crop(100, 1024),
}


@pytest.mark.parametrize("target", TARGETS)
def test_constants_are_complete_and_sane(target: str) -> None:
    model = cost_model(target)
    assert model.source
    assert ("not fitted" in model.source) == (target != "cpu")
    for cost in (model.forward, model.backward):
        assert set(cost.entry) == set(HEIGHTS)
        values = dataclasses.asdict(cost)
        entry = values.pop("entry")
        assert all(value >= 0.0 for value in [*values.values(), *entry.values()])
        assert cost.dense_entry > 0.0
    assert model.backward.dense(512, 512) > model.forward.dense(512, 512)


def test_an_unknown_target_gets_the_default_and_says_so() -> None:
    assert "none for sm120" in cost_model("sm120").source


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MASKS)
def test_no_choice_is_predicted_slower_than_dense(name: str, target: str) -> None:
    report = compile_plan(MASKS[name], target=target).explain()
    for head in report.per_head:
        assert head.predicted_us <= head.dense_us
        step = head.predicted_us + head.predicted_backward_us
        assert step <= head.dense_us + head.dense_backward_us
        assert head.bound_us <= head.predicted_us * (1 + 1e-9) or head.route == "dense"
    assert report.predicted_speedup >= 1.0


def test_long_structured_masks_run_in_tiles_everywhere() -> None:
    for target in TARGETS:
        report = compile_plan(patterns.longformer(2048, 32, 2), target=target).explain()
        assert report.per_head[0].route == "tiles"
        assert report.predicted_speedup > 2.0


def test_a_global_row_is_split_where_programs_would_wait_for_it() -> None:
    mask = patterns.star(4096)
    plan = compile_plan(mask, target="sm90")
    assert torch.equal(plan.dense(), mask.dense()[0])
    assert plan.tiles.padded_width.max() <= 1024
    assert "split by columns" in plan.explain().per_head[0].cover
    assert compile_plan(mask, target="cpu").tiles.padded_width.max() == 4096


def test_merging_and_shapes_cost_time() -> None:
    cost = PassCost(
        call=1.0, shape=2.0, tile=0.5, row=0.01, column=0.1, entry=dict.fromkeys(HEIGHTS, 0.001),
        merge=0.25, floor_row=0.0, dense_call=0.0, dense_entry=0.01,
    )  # fmt: skip
    model = dataclasses.replace(cost_model("cpu"), forward=cost)
    rows = np.arange(16, dtype=np.int32)[None]
    wide, narrow = Tiles(rows, np.array([64])), Tiles(rows, np.array([16]))
    alone = 1.0 + 2.0 + 0.5 + 16 * 0.01 + 64 * 0.1 + 16 * 64 * 0.001
    assert model.cover_us([wide], 16, 64) == pytest.approx(alone)
    both = alone + 2.0 + 0.5 + 16 * 0.01 + 16 * 0.1 + 16 * 16 * 0.001 + 16 * 0.25
    assert model.cover_us([wide, narrow], 16, 64) == pytest.approx(both)


def test_the_report_is_readable() -> None:
    mask = AttentionMask.stack_heads([patterns.strided(512, 22)] * 3 + [patterns.dense(512)])
    report = compile_plan(mask, target="cpu").explain()
    text = str(report)
    for expected in ("heads 0-2: tiles", "head 3: dense, all scores, no mask", "residue classes",
                     "predicted speed-up", "bound", "tried:", "why:", "merge share"):  # fmt: skip
        assert expected in text
    assert max(map(len, text.splitlines())) < 500 and len(text.splitlines()) < 30
    assert report.density == pytest.approx(mask.density)
    assert 0.0 < report.padding_waste < 1.0
    assert sum(report.tiles.values()) == 3 * sum(report.per_head[0].tiles.values())
    assert report.predicted_step_speedup > 1.0


@pytest.mark.parametrize("target", ["banana", "sm", "h100", "CPU", 90])
def test_refuses_targets_that_are_no_machines(target):
    with pytest.raises(
        ValueError, match=r"target must be 'cpu', 'sm90', 'gfx942'.*got .*leave it"
    ):
        compile_plan(patterns.star(32), target=target)
