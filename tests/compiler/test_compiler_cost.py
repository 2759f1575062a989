"""The cost model and the report: sane constants, honest choices, readable text."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from sparsebert import patterns
from sparsebert.compiler.cost import constants
from sparsebert.compiler.cost.constants import Term, tile_backends
from sparsebert.compiler.cost.model import PassCost, batches, cost_model
from sparsebert.masks import AttentionMask
from sparsebert.plan import compile_plan
from sparsebert.plan_cache import MaskPlans
from sparsebert.tiles.format import HEIGHTS
from sparsebert.tiles.outlines import TileOutlines, outlines_of_head

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


@pytest.mark.parametrize("target", [*TARGETS, "sm120", "gfx90a"])
def test_a_target_is_planned_for_with_its_first_backend(target: str) -> None:
    names = tile_backends(target)
    assert cost_model(target) == cost_model(target, backend=names[0])
    with pytest.raises(ValueError, match=f"backend must be one .*'{names[0]}'.*got 'other'"):
        cost_model(target, backend="other")


def test_a_new_backend_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its constants are its own; the machine's and dense attention's are as before."""
    stored = copy.deepcopy(constants.stored())
    stored["tiles"]["new"] = {
        "cpu": copy.deepcopy(stored["tiles"][tile_backends("cpu")[0]]["cpu"])
    }
    stored["tiles"]["new"]["cpu"] |= {"source": "made up", "margin": 1.5, "batched": False}
    stored["tiles"]["new"]["cpu"]["forward"]["call"] = {"once": [12.0, 0.0]}
    before = cost_model.__wrapped__("cpu", copies=12)
    monkeypatch.setattr(constants, "stored", lambda: stored)
    model = cost_model.__wrapped__("cpu", backend="new", copies=12)
    assert (model.source, model.margin, model.batched) == ("made up", 1.5, False)
    assert model.forward == dataclasses.replace(before.forward, call=1.0)
    assert cost_model.__wrapped__("cpu", copies=12) == before  # the first stays the first
    assert [tile_backends(target)[-1] for target in ("cpu", "sm90")] == ["new", "triton"]
    with pytest.raises(ValueError, match="'triton', got 'new'"):
        cost_model.__wrapped__("sm90", backend="new")


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
        call=1.0, shape=2.0, level=3.0, tile=0.5, row=0.01, column=0.1,
        entry=dict.fromkeys(HEIGHTS, 0.001), merge=0.25, mixed=0.0, floor_row=0.0,
        dense_call=0.5, dense_entry=0.01, mask_entry=0.02,
    )  # fmt: skip
    model = dataclasses.replace(cost_model("cpu"), forward=cost)
    rows = np.arange(16, dtype=np.int32)[None]
    wide, narrow = TileOutlines(rows, np.array([64])), TileOutlines(rows, np.array([16]))
    alone = 1.0 + 2.0 + 0.5 + 16 * 0.01 + 64 * 0.1 + 16 * 64 * 0.001
    assert model.cover_us([wide], 16, 64) == pytest.approx(alone)
    both = alone + 2.0 + 0.5 + 16 * 0.01 + 16 * 0.1 + 16 * 16 * 0.001 + 3.0 + 16 * 0.25
    assert model.cover_us([wide, narrow], 16, 64) == pytest.approx(both)
    assert cost.dense(10, 10) == pytest.approx(0.5 + 100 * 0.03)
    assert cost.dense(10, 10, masked=False) == pytest.approx(0.5 + 100 * 0.01)


def test_a_term_is_shared_and_divided() -> None:
    term = Term(once=(6.0, 24.0), copy=(1.0, 2.0), dim=(0.5, 0.0))
    assert term.share(head_dim=4, threads=1, sharing=3) == pytest.approx(30 / 3 + 3 + 4 * 0.5)
    assert term.share(head_dim=4, threads=4, sharing=6) == pytest.approx(12 / 6 + 1.5 + 4 * 0.5)


@pytest.mark.parametrize("target", TARGETS)
def test_larger_heads_cost_more_and_less_than_in_proportion(target: str) -> None:
    small, large = (cost_model(target, head_dim=dim) for dim in (32, 128))
    for which in ("forward", "backward"):
        before, after = getattr(small, which), getattr(large, which)
        for height in HEIGHTS:
            assert before.entry[height] <= after.entry[height] <= 4 * before.entry[height]
        assert before.dense(512, 512) < after.dense(512, 512) < 4 * before.dense(512, 512)
        assert before.column <= after.column <= 4.001 * before.column


def test_heads_with_tiles_of_their_own_share_less() -> None:
    shared, apart = (cost_model("cpu", copies=12, tile_sets=sets) for sets in (1, 12))
    assert apart.forward.call == shared.forward.call  # comes once for all of them either way
    rows = np.arange(64, dtype=np.int32)[None]
    tiles = [TileOutlines(rows, np.array([512]))]
    assert apart.cover_us(tiles, 64, 512) >= shared.cover_us(tiles, 64, 512)
    assert cost_model("cpu", copies=48).forward.call < shared.forward.call


def test_threads_divide_the_parallel_part_on_a_cpu_alone() -> None:
    one, two = (cost_model("cpu", threads=count) for count in (1, 2))
    dense = [model.forward.dense(1024, 1024) for model in (one, two)]
    assert dense[0] / 2 <= dense[1] < dense[0]
    assert cost_model("sm90", threads=8).forward == cost_model("sm90").forward


def test_batches_are_those_of_the_torch_backend() -> None:
    """The model's count of shapes, and what tiles are padded to, against a program's buckets."""
    heads = [patterns.random(200, 0.03), patterns.causal(200), patterns.star(200)]
    plan = compile_plan(AttentionMask.stack_heads(heads), target="cpu", objective="area")
    cover = [tiles for head in range(3) for tiles in outlines_of_head(plan.tiles, head)]
    count, widths = batches(cover)
    (part,) = plan.program_for("torch", "torch").parts
    buckets = part.program.buckets
    assert count == len(buckets) > 3
    executed = sum(bucket.rows.numel() * bucket.cols.shape[1] for bucket in buckets)
    priced = sum(
        int((tiles.real_rows * width).sum()) for tiles, width in zip(cover, widths, strict=True)
    )
    assert priced == executed
    assert batches([]) == (0, [])


def test_a_win_within_the_models_error_is_not_taken() -> None:
    mask = patterns.longformer(1024, 8, 2)
    model = cost_model("cpu")
    speedup = compile_plan(mask, target="cpu", threads=1).explain().predicted_speedup
    assert speedup > model.margin > 1.0
    assert model.wins(1.0, model.margin * 1.01) and not model.wins(1.0, model.margin * 0.99)


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
    report = compile_plan(mask, target="cpu", threads=1).explain()
    alone = AttentionMask.stack_heads([patterns.sliding_window(n, 8)] * 12)
    if {head.route for head in report.per_head} == {"tiles", "dense"}:
        model = cost_model("cpu", tile_sets=12)
        cover = outlines_of_head(compile_plan(mask, target="cpu", threads=1).tiles, 0)
        assert report.per_head[0].predicted_us >= model.cover_us(cover, n, n)
    assert compile_plan(alone, target="cpu", threads=1).explain().per_head[0].route == "tiles"


def test_the_report_is_readable() -> None:
    mask = AttentionMask.stack_heads([patterns.strided(2048, 45)] * 3 + [patterns.dense(2048)])
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
