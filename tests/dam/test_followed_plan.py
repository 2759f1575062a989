"""A search with the penalty "plan": when it compiles, what it adds, how it goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.nn import functional

import sparsebert as sb
from sparsebert.dam import followed_plan
from sparsebert.dam.plan_prices import price_tiles
from sparsebert.dam.search import MaskSearch


def make(n: int = 32, **options: Any) -> MaskSearch:
    torch.manual_seed(0)
    dam = sb.DifferentiableAttentionMask(2, 2, n, symmetric=False, init_std=1.0)
    settings = {"sparsity": 0.9, "penalty": "plan", "target": "cpu", "refresh": 10, **options}
    return MaskSearch(dam, 100, **settings)


def test_when_and_at_which_sparsity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the warm-up, at its end, then as often as asked; by the sparsity wanted then."""
    search = make(warmup=0.25, settle=0.25)
    compiled: dict[int, float] = {}

    def note(mask: Any, *rest: Any) -> Any:
        compiled[step] = mask.sparsity
        return price_tiles(mask, *rest)

    monkeypatch.setattr(followed_plan, "price_tiles", note)
    for step in range(100):
        search.begin_step(step)
        assert search.penalty().item() > 0 or step < 25
    assert list(compiled) == [25, *range(30, 100, 10)]
    assert search.controller is not None
    for step, sparsity in compiled.items():
        wanted = search.controller.wanted((step / 100 - 0.25) / 0.5)
        assert sparsity == pytest.approx(wanted, abs=2 / 32**2)


def test_without_a_goal_the_sparsity_is_the_present_one(monkeypatch: pytest.MonkeyPatch) -> None:
    search = make(sparsity=None, weight=1.0, warmup=0.0)
    seen = []
    monkeypatch.setattr(
        followed_plan, "price_tiles", lambda mask, *rest: seen.append(mask.sparsity)
    )
    search.begin_step(0)
    assert seen == [pytest.approx(1 - search.dam.expected_density, abs=2 / 32**2)]


def test_has_l1_beside_it() -> None:
    search = make(sparsity=None, weight=2.0, warmup=0.0)
    search.begin_step(0)
    dam = search.dam
    mask = dam.binarize(sparsity=1 - dam.expected_density, allow_empty_rows=True)
    tiles = price_tiles(mask, dam.layout, "cpu", "area")
    cost = tiles.expected(dam.expand(functional.logsigmoid(-dam.alpha))) / dam.alpha.numel()
    wanted = 2 * (cost + dam.probabilities().mean())
    torch.testing.assert_close(search.penalty(), wanted)


@pytest.mark.parametrize("objective", ["time", "area"])
def test_tiles_of_the_search(objective: str) -> None:
    """For `binarize(executed=...)`: those of the plan, else rows in order."""
    search = make(warmup=0.0, target="sm90", objective=objective)
    search.begin_step(0)
    mask = search.dam.binarize(sparsity=0.5, allow_empty_rows=True)
    wanted = price_tiles(mask, search.dam.layout, "sm90", objective)
    plan, in_order = search.tiles
    assert torch.equal(plan.group, wanted.group) and torch.equal(plan.column, wanted.column)
    assert torch.equal(in_order.group[0, :, 3], torch.arange(32) // 16)
    (in_order,) = make(penalty="executed_area", tile_rows=5).tiles
    assert torch.equal(in_order.group[0, :, 3], torch.arange(32) // 5)
    assert in_order.column.tolist() == [[5.0] * 6 + [2.0]]


def test_begins_before_it_is_asked() -> None:
    search = make(sparsity=None, weight=2.0, warmup=0.0)
    search.weight = 2.0
    with pytest.raises(ValueError, match="no plan was compiled yet; call begin_step"):
        search.penalty()


@pytest.mark.parametrize("n", [8, 37])
@pytest.mark.parametrize("stop", [5, 20, 34])
def test_goes_on_exactly(n: int, stop: int) -> None:
    """From a state that went through JSON, in the middle between two compilations, too."""

    def train(search: MaskSearch, optimizer: Any, steps: range) -> list[float]:
        values = []
        for step in steps:
            search.begin_step(step)
            penalty = search.penalty()
            (penalty + (search.dam.alpha**2).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            values.append(penalty.item())
        return values

    whole, first, second = (make(n, sparsity=0.8) for _ in range(3))
    optimizers = [torch.optim.SGD([s.dam.alpha], lr=30.0) for s in (whole, first, second)]
    expected = train(whole, optimizers[0], range(60))
    got = train(first, optimizers[1], range(stop))
    second.dam.load_state_dict(first.dam.state_dict())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += train(second, optimizers[2], range(stop, 60))
    assert got == expected
    assert torch.equal(second.dam.alpha, whole.dam.alpha)


def test_a_state_of_another_penalty() -> None:
    """It has no plan: the next step compiles one."""
    search = make(warmup=0.0)
    state = make(penalty="expected_l1", warmup=0.0).state_dict()
    assert "plan" not in state
    search.begin_step(0)
    search.load_state_dict(state)
    search.begin_step(3)
    assert search.penalty().item() > 0


def test_the_machine_at_hand() -> None:
    search = make(target=None)
    assert search.plan is not None
    assert search.plan.target == ("cpu" if not torch.cuda.is_available() else search.plan.target)


@pytest.mark.parametrize("penalty", ["executed_area", "plan"])
def test_masks_of_the_likeliest_positions(penalty: str) -> None:
    """They need no penalty, so one that is asked for needs a weight."""
    dam = sb.DifferentiableAttentionMask(1, 2, 32, sampling="top", init_std=1.0)
    with pytest.raises(ValueError, match="has the weight 0 unless one is given; give weight"):
        MaskSearch(dam, 100, sparsity=0.9, penalty=penalty, target="cpu")
    search = MaskSearch(
        dam, 100, sparsity=0.9, penalty=penalty, target="cpu", weight=0.5, warmup=0.0
    )
    search.begin_step(0)
    search.penalty().backward()
    assert dam.alpha.grad is not None and dam.alpha.grad.abs().sum() > 0
    assert dam.binarize(executed=0.5, tiles=search.tiles).sparsity < 0.9
