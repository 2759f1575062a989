"""What is chosen for which machine, and for which calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsebert import patterns
from sparsebert.compiler.cost.model import cost_model
from sparsebert.mask_plans import MaskPlans
from sparsebert.masks import AttentionMask
from sparsebert.plan import compile_plan
from sparsebert.tiles.outlines import outlines_of_head
from tests.compiler.plans import tiles_plan

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
    assert plan.tiles.padded_width.max() <= 512
    assert "split by columns" in plan.explain().per_head[0].cover
    assert tiles_plan(mask).tiles.padded_width.max() == 4096


def test_only_the_longest_are_split_where_all_lists_are_long() -> None:
    """Lists of 600 columns and one of 4096: the usual ones stay whole."""
    mask = patterns.sliding_window(4096, 268).dense()[0, 0]
    mask[0] = True
    plan = compile_plan(AttentionMask.from_dense(mask), target="sm90", copies=12)
    width = plan.tiles.width
    assert np.median(width) > 512 and width.max() <= 1024
    assert torch.equal(plan.dense()[0], mask)


def test_a_smaller_call_splits_more() -> None:
    mask = patterns.longformer(2048, 32, 2)
    widest = [
        int(compile_plan(mask, target="sm90", copies=copies).tiles.width.max())
        for copies in (12, 96, 1536)
    ]
    assert widest == sorted(widest) and widest[0] < widest[-1] <= 512


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "cpu"])
def test_one_height_unless_a_second_pays_for_its_launch(target: str) -> None:
    """A few global rows are tiles of the others' height, with empty slots; thin ones, in a launch
    of their own, are predicted to take longer.
    """
    for mask in (patterns.star(1024), patterns.longformer(2048, 32, 2)):
        plan = compile_plan(mask, target=target)
        assert len(plan.explain().tiles) == 1
        assert (plan.tiles.rows < 0).any()


def test_plans_are_remembered_by_the_calls_they_are_for() -> None:
    mask = patterns.longformer(256, 8, 2)
    plan = compile_plan(mask, target="cpu", head_dim=32, threads=2, copies=24)
    report = plan.explain()
    assert (report.head_dim, report.threads, report.copies) == (32, 2, 24)
    assert "D = 32, batch x heads = 24, 2 thread(s)" in str(report)
    calls = {"head_dim": 32, "threads": 2, "copies": 24}
    assert compile_plan(mask, target="cpu", **calls) is plan
    others = [
        compile_plan(mask, target="cpu", **{**calls, **changed})
        for changed in ({"head_dim": 64}, {"threads": 1}, {"copies": 12})
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert plan.crop(100).explain().head_dim == 32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"head_dim": 0}, "head_dim=0 but must be at least 1"),
        ({"threads": -1}, "threads=-1 but must be at least 1"),
        ({"copies": 2}, r"copies \(batch x heads\)=2 but must be at least 3"),
    ],
)
def test_refuses_calls_that_cannot_be(wrong: dict[str, int], message: str) -> None:
    mask = AttentionMask.stack_heads([patterns.star(32)] * 3)
    with pytest.raises(ValueError, match=message):
        compile_plan(mask, target="cpu", **wrong)


def test_what_calls_a_mask_is_compiled_for() -> None:
    """sparse_attention and models compile for their own heads, head size and threads."""
    plans = MaskPlans(patterns.longformer(128))
    report = plans.get(64, 64, torch.device("cpu"), head_dim=32, heads=4).explain()
    assert (report.head_dim, report.copies) == (32, 4)
    assert report.threads == torch.get_num_threads()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        again = plans.get(64, 64, torch.device("cpu"), head_dim=32, heads=4).explain()
    finally:
        torch.set_num_threads(threads)
    assert again.threads == threads + 1


def test_some_heads_dense_cost_the_others_time() -> None:
    """Dense heads beside tiles make a call run in two parts, which the report counts."""
    n = 1024
    mask = AttentionMask.stack_heads([patterns.sliding_window(n, 8), patterns.random(n, 0.5)] * 6)
    report = tiles_plan(mask, threads=1).explain()
    alone = AttentionMask.stack_heads([patterns.sliding_window(n, 8)] * 12)
    if {head.route for head in report.per_head} == {"tiles", "dense"}:
        model = cost_model("cpu", tile_sets=12)
        cover = outlines_of_head(tiles_plan(mask, threads=1).tiles, 0)
        assert report.per_head[0].predicted_us >= model.cover_us(cover, n, n)
    assert tiles_plan(alone, threads=1).explain().per_head[0].route == "tiles"
