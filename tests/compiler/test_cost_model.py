"""The cost model, by its definitions."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sparsebert import patterns
from sparsebert.compiler import compile as compile_module
from sparsebert.compiler.cost import constants
from sparsebert.compiler.cost.constants import Term, isas, tile_backends
from sparsebert.compiler.cost.instruction_sets import isa_for
from sparsebert.compiler.cost.model import (
    DEFAULT_HEADS,
    PER_CALL,
    PassCost,
    batches,
    cost_model,
    usual_copies,
)
from sparsebert.kernels.cpu import library
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from sparsebert.tiles.format import HEIGHTS
from sparsebert.tiles.outlines import TileOutlines, outlines_of_head
from tests.compiler.plans import singles_plan, tiles_plan

TARGETS = ("cpu", "sm80", "sm90", "sm100", "gfx942")


def test_a_tile_takes_arithmetic_and_gathering() -> None:
    rows, width = np.array([16, 16]), np.array([16, 160])
    passed = dataclasses.replace(
        cost_model("cpu").forward, tile=1.0, row=0.5, column=0.25, entry={16: 0.01}
    )
    assert passed.tiles(16, rows, width) == pytest.approx(1.0 + 8.0 + 0.25 * width + 0.16 * width)


def test_no_route_is_faster_than_moving_the_tensors() -> None:
    model = cost_model("cpu")
    slow = dataclasses.replace(model.forward, floor_row=1000.0)
    model = dataclasses.replace(model, forward=slow)
    tiles = [TileOutlines(np.arange(16, dtype=np.int32)[None], np.array([16]))]
    assert slow.floor(16, 40) == slow.dense(16, 40) == 56_000.0
    assert model.cover_us(tiles, 16, 40) == model.bound_us(5, 16, 40) == 56_000.0


def test_empty_rows_cost_where_the_machine_computes_them() -> None:
    rows, width = np.array([3]), np.array([64])
    for target in ("cpu", "sm90"):
        model = cost_model(target)
        executed = np.array([16]) if model.empty_rows_cost else rows
        expected = model.forward.tiles(16, executed, width)
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
    on_cpus = [name for name in PER_CALL if name in stored]
    for name in (*on_cpus, "tile", "row", "column", "merge", "floor_row", "dense_entry"):
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
    plan = tiles_plan(AttentionMask.stack_heads(heads), objective="area")
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
    speedup = tiles_plan(mask, threads=1).explain().predicted_speedup
    assert speedup > model.margin > 1.0
    assert model.wins(1.0, model.margin * 1.01) and not model.wins(1.0, model.margin * 0.99)


# ------------------------------------------------------------------------ instruction sets

ISAS = ("avx512", "avx2", "neon", "generic")


@pytest.mark.parametrize("isa", ISAS)
def test_constants_for_each_instruction_set(isa: str) -> None:
    """Tiles have 16 rows; what computes more slowly is never predicted to be quicker."""
    assert isas("cpu", "native") == ISAS
    model, best = (cost_model("cpu", backend="native", isa=name) for name in (isa, "avx512"))
    assert (model.isa, model.singles, model.padded) == (isa, True, False)
    assert model.source and 0.9 <= model.margin <= 1.0
    for which in ("forward", "backward"):
        cost, least = getattr(model, which), getattr(best, which)
        assert set(cost.entry) == {16} and cost.single > 0.0 and cost.column > 0.0
        assert cost.entry[16] >= least.entry[16] > 0.0 and cost.single >= least.single
        small, large = (
            getattr(cost_model("cpu", backend="native", isa=isa, head_dim=dim), which)
            for dim in (32, 128)
        )
        for one, other in ((small.single, large.single), (small.entry[16], large.entry[16])):
            assert one <= other <= 4.001 * one


def test_the_instruction_set_is_that_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class Found:
        isa: str

    for isa in ("avx2", "generic"):
        monkeypatch.setattr(library, "load", lambda isa=isa: Found(isa))
        assert isa_for("cpu", "native") == isa
        assert singles_plan(patterns.star(40), head_dim=24).report.isa == isa
    monkeypatch.setattr(library, "load", lambda: Found(""))  # there is none
    assert isa_for("cpu", "native") == "avx512"
    assert isa_for("cpu", "torch") == isa_for("cpu", None) == isa_for("sm90", "triton") == ""
    assert isa_for("sm90", "native") == ""  # `cost_model` says what is wrong


def test_plans_for_other_instruction_sets_are_other_plans(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mask = patterns.longformer(64, 8, 2)
    monkeypatch.setattr(compile_module, "isa_for", lambda *_: "generic")
    one = singles_plan(mask)
    monkeypatch.setattr(compile_module, "isa_for", lambda *_: "avx2")
    other = singles_plan(mask)
    assert one is not other and one.fingerprint != other.fingerprint
    assert (one.shared_tiles.aim.model.isa, other.crop(30).report.isa) == ("generic", "avx2")
    assert one.report.cost_source != other.report.cost_source
    one.save(tmp_path / "plan")
    loaded = AttentionPlan.load(tmp_path / "plan", mask)
    assert loaded.fingerprint == one.fingerprint
    assert loaded.shared_tiles.aim == one.shared_tiles.aim
