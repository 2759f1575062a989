"""Plans as values: what is compiled once stays, wherever they go; programs come on demand."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

import sparsebert as sb
from sparsebert import patterns
from sparsebert.backends import registry
from sparsebert.compiler import aim
from sparsebert.compiler.cost.model import cost_model
from sparsebert.mask_plans import MaskPlans
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from sparsebert.support.untraced import constant_in_graphs
from sparsebert.testing import expected_attention
from sparsebert.tiles.check import check_cover, check_format
from tests import ROOT
from tests.attention.cases import BACKENDS
from tests.backends.cases import ROUTES
from tests.compiler.plans import singles_plan, tiles_plan

META = torch.device("meta")


def a_mask(width: int) -> AttentionMask:
    """Two heads that run in tiles, one of them twice, and one that runs dense."""
    n = 700
    window, wider = patterns.sliding_window(n, width), patterns.sliding_window(n, width + 3)
    return AttentionMask.stack_heads([window, patterns.random(n, 0.5, seed=width), wider, window])


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the masks that a cover was searched for, one for each search."""
    found: list[int] = []

    def counting(search):
        def count(packed, columns, *rest):
            found.append(columns)
            return search(packed, columns, *rest)

        return count

    for name in ("best_cover", "best_groups"):
        monkeypatch.setattr(aim, name, counting(getattr(aim, name)))
    return found


def use(plan: AttentionPlan) -> None:
    """All that calls may ask of a plan, forward and backward, on any backend."""
    for routes in ROUTES.values():
        assert plan.program_for(*routes).tensors[-1].device == plan.device


def test_covers_are_searched_for_once_wherever_the_plan_goes(searches: list[int]) -> None:
    plan = tiles_plan(a_mask(5))
    assert plan.dense_heads.tolist() == [False, True, False]
    assert len(searches) == 3  # the distinct heads
    moved = plan.to("meta")  # before anything else was searched for
    use(moved)
    # The transposed mask, the head that runs dense, and all with single entries beside tiles.
    assert len(searches) == 3 + 3 + 1 + 3
    again = pickle.loads(pickle.dumps(plan))
    for each in (plan, moved, copy.copy(plan), copy.deepcopy(plan), again):
        use(each)
        for length in (650, 300):
            use(each.crop(length))
            use(each.crop(length).to("meta").crop(200))
        use(each.crop(400, 700).crop(350, 350).to("meta"))
    assert len(searches) == 10


def test_covers_of_the_other_kind_are_searched_for_once(searches: list[int]) -> None:
    """Single entries for a backend that runs them, tiles alone for the others."""
    mask, every = a_mask(4), np.ones(3, dtype=bool)
    for plan, own in ((tiles_plan(mask), False), (singles_plan(mask), True)):
        del searches[:]
        beside = int(plan.dense_heads.sum())
        for each in (plan, plan.crop(600), plan.crop(90, 700).crop(80, 80), copy.deepcopy(plan)):
            for singles in (own, not own):
                tiles = each.schedule.queries(every, singles=singles)
                assert bool(len(tiles.entry_cols)) == singles
                dense = each.mask.dense()[0].numpy()
                firsts = [head.heads[0] for head in each.report.per_head]
                assert (tiles.dense() == dense[firsts]).all()
                check_format(tiles)
        assert len(searches) == beside + 3
        only = each.schedule.queries(np.array([False, False, True]), singles=True)
        assert (only.dense()[2] == dense[2]).all() and not only.dense()[:2].any()
        assert len(searches) == beside + 3


def test_crops_made_first_search_in_the_whole_plan(searches: list[int]) -> None:
    """Also where no one asked the whole plan itself, the search is not done for each length."""
    plan = tiles_plan(a_mask(6))
    for length in (650, 600, 300):
        use(plan.crop(length).to("meta"))
    use(plan)
    assert searches == [700] * 10


def test_a_models_plans_on_another_device_search_once(
    searches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's plans keep what the CPU found; `meta` stands in for the GPU."""
    monkeypatch.setitem(registry.planned, "cpu", "torch")
    plans = MaskPlans(a_mask(7))
    for length in (700, 640, 600, 300):
        for backend in ("mixed", "triton", "torch"):
            plan = plans.get(length, length, META)
            plan.program_for(*ROUTES[backend])
            assert plan.device == META
    assert searches == [700] * len(searches) and len(searches) <= 3 + 3 + 3
    searches.clear()
    copied = copy.deepcopy(plans)
    for length in (700, 500):
        copied.get(length, length, META).program_for(*ROUTES["triton"])
    assert not searches
    other = plans.get(300, 300, META, head_dim=32)
    assert other.report.head_dim == 32 and searches


def test_cropped_covers_are_covers_of_the_cropped_mask() -> None:
    plan = sb.compile_plan(a_mask(8), target="cpu")
    for rows, columns in ((700, 700), (333, 333), (700, 90), (17, 700)):
        cropped = plan.crop(rows, columns)
        firsts = [head.heads[0] for head in cropped.report.per_head]
        dense = plan.mask.crop(rows, columns).dense()[0].numpy()[firsts]
        none = np.zeros(len(firsts), dtype=bool)
        for tiles, wanted in (
            (cropped.shared_tiles.every, dense),
            (cropped.shared_tiles.transposed, dense.transpose(0, 2, 1)),
        ):
            check_format(tiles)
            check_cover(tiles, np.packbits(wanted, axis=-1, bitorder="little"), none)


@pytest.mark.parametrize(("rows", "columns"), [(70, 150), (150, 70)])
def test_covers_of_masks_that_are_not_square(rows: int, columns: int) -> None:
    heads = [patterns.random(150, 0.5, seed=1), patterns.sliding_window(150, 3)]
    mask = AttentionMask.stack_heads(heads).crop(rows, columns)
    plan = sb.compile_plan(mask, target="cpu")
    dense, none = mask.dense()[0].numpy(), np.zeros(2, dtype=bool)
    for tiles, wanted in (
        (plan.shared_tiles.every, dense),
        (plan.shared_tiles.transposed, dense.transpose(0, 2, 1)),
    ):
        assert (tiles.num_heads, tiles.num_rows, tiles.num_cols) == wanted.shape
        check_format(tiles)
        check_cover(tiles, np.packbits(wanted, axis=-1, bitorder="little"), none)


def test_searches_go_by_the_calls_that_the_plan_is_for() -> None:
    mask = AttentionMask.stack_heads([patterns.star(64), patterns.sliding_window(64)])
    plan = tiles_plan(mask, head_dim=48, threads=3, copies=10)
    wanted = cost_model("cpu", head_dim=48, threads=3, copies=10, tile_sets=2)
    assert plan.shared_tiles.aim.model == plan.crop(40).shared_tiles.aim.model == wanted
    one = sb.compile_plan(patterns.star(64), target="sm90", head_dim=48, copies=10)
    assert one.shared_tiles.aim.model == cost_model("sm90", head_dim=48, copies=10, tile_sets=1)


def test_programs_are_made_when_they_are_asked_for() -> None:
    """A compiled plan that only its crops are used of holds no program of its own."""
    plan = sb.compile_plan(a_mask(9), target="cpu")
    assert plan.programs == {}
    moved = plan.crop(100).to("meta")
    assert moved.program_for(*ROUTES["auto"]).tensors[0].device == META
    assert plan.programs == {} and ROUTES["auto"] in moved.programs
    assert len({id(program) for program in moved.programs.values()}) == 1
    assert plan.to("cpu") is plan and moved.to(META) is moved


def test_garbage_in_keys_of_nobody_reaches_nothing_after_a_crop() -> None:
    """Keys that only cropped queries attended to are not gathered any more."""
    n, left = 256, 100
    mask = patterns.sliding_window(n, 4).dense()[0, 0]
    mask[:, 70:90] = False
    mask[left:, 70:90] = True  # these keys serve the later queries alone
    plan = sb.compile_plan(AttentionMask.from_dense(mask), target="cpu", objective="area")
    q, k, v = torch.randn(3, 1, 2, n, 16)
    k[:, :, 70:90] = v[:, :, 70:90] = float("nan")
    for backend in BACKENDS:
        inputs = [q[:, :, :left].clone(), k.clone(), v.clone()]
        for x in inputs:
            x.requires_grad_()
        o = sb.sparse_attention(*inputs, plan.crop(left, n), backend=backend)
        gradients = torch.autograd.grad(o.sum(), inputs)
        assert o.isfinite().all()
        assert all(g.isfinite().all() for g in gradients)
        assert not gradients[1][:, :, 70:90].any() and not gradients[2][:, :, 70:90].any()


def test_compiling_does_not_import_dynamo() -> None:
    """It takes a second, and most who compile a mask never call torch.compile."""
    code = (
        "import sys, torch, sparsebert as sb; plan = sb.compile_plan(sb.patterns.star(32)); "
        "x = torch.zeros(1, 1, 32, 8); sb.sparse_attention(x, x, x, plan); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    root = ROOT
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_functions_are_marked_for_dynamo_as_torch_marks_them() -> None:
    def one() -> None: ...

    def two() -> None: ...

    assert vars(constant_in_graphs(one)) == vars(torch.compiler.assume_constant_result(two))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_call_may_be_the_first(backend: str) -> None:
    """torch.compile finds programs that no call has made yet."""
    band, full = sb.patterns.sliding_window(32, window=2).dense()[0, 0], torch.ones(32, 32) > 0
    mask = sb.AttentionMask.from_dense(torch.stack([band, full]))
    plan = dataclasses.replace(sb.compile_plan(mask, target="cpu"), programs={})
    q, k, v = torch.randn(3, 1, 2, 32, 8)
    attention = functools.partial(sb.sparse_attention, backend=backend)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    assert ROUTES[backend] not in plan.programs
    o = compiled(q, k, v, plan)
    assert ROUTES[backend] in plan.programs
    (outcome,) = expected_attention(q, k, v, mask).outcomes({"o": o})
    assert outcome.passed, outcome
