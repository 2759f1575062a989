"""MaskSearch: schedules, optimizer groups, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparsebert as sb
from sparsebert.dam.search import MaskSearch


def make(**options: Any) -> MaskSearch:
    torch.manual_seed(0)
    dam = sb.DifferentiableAttentionMask(1, 2, 16, symmetric=False)
    return MaskSearch(dam, 100, **{"sparsity": 0.9, **options})


def test_weight_and_temperature_over_the_steps() -> None:
    search = make(weight=3.0, sparsity=None, warmup=0.2, temperature=(4.0, 1.0))
    seen = []
    for step in (0, 19, 20, 50, 99):
        search.begin_step(step)
        seen.append((search.weight, round(float(search.dam.temperature), 3)))
    assert seen == [(0.0, 4.0), (0.0, 3.074), (3.0, 3.031), (3.0, 2.0), (3.0, 1.014)]
    expected = 3.0 * search.dam.probabilities().mean()
    torch.testing.assert_close(search.penalty(), expected, rtol=1e-6, atol=0)
    search.begin_step(0)
    assert search.penalty().item() == 0.0


def test_executed_area_has_l1_beside_it() -> None:
    """So that positions in columns that are paid for anyway do not stay for nothing."""
    search = make(weight=2.0, sparsity=None, warmup=0.0, penalty="executed_area", tile_rows=4)
    search.begin_step(0)
    p = search.dam.probabilities()
    area = (1 - (1 - p).unflatten(2, (4, 4)).prod(3)).mean()
    torch.testing.assert_close(search.penalty(), 2 * (area + p.mean()), rtol=1e-5, atol=0)


def test_goal_before_the_end() -> None:
    """The sparsity that is asked for rises until `settle` begins, and stays."""
    search = make(warmup=0.0, settle=0.5)
    with torch.no_grad():
        search.dam.alpha.fill_(torch.tensor(1 / 9).log())  # density 0.1, the goal
    search.begin_step(0)
    assert search.controller is not None
    early = search.controller.weight
    search.begin_step(50)
    settled = search.controller.weight
    assert early < 0.1  # sparser than asked for at that time: less weight
    search.begin_step(99)
    assert search.controller.weight == pytest.approx(settled, rel=1e-4)


def test_parameter_groups() -> None:
    """Everything exactly once; the mask apart, without weight decay, with its own rate."""
    search = make()
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), search.dam)
    model[0].bias.requires_grad_(False)
    groups = search.parameter_groups(
        model, lr=0.1, mask_lr=0.7, weight_decay=0.2, no_decay=["1.weight", "1.bias"]
    )
    weight, norm, norm_bias = model[0].weight, model[1].weight, model[1].bias
    listed = [(group["lr"], group["weight_decay"], group["params"]) for group in groups]
    for (lr, decay, got), (lr2, decay2, wanted) in zip(
        listed,
        [(0.1, 0.2, [weight]), (0.1, 0.0, [norm, norm_bias]), (0.7, 0.0, [search.dam.alpha])],
        strict=True,
    ):
        assert (lr, decay) == (lr2, decay2)
        assert len(got) == len(wanted) and all(a is b for a, b in zip(got, wanted, strict=True))


def test_defaults() -> None:
    """As documented: a tenth of the steps to warm up, three tenths to settle."""
    search = make()
    assert (search.kind, search.tile_rows, search.temperature) == ("expected_l1", 16, (1.0, 1.0))
    assert (search.warmup, search.settle) == (0.1, 0.3)
    assert search.controller is not None and search.controller.weight == 0.1
    assert search.weight == 0.0 and search.penalty().item() == 0.0  # before the first step
    (mask_group,) = search.parameter_groups(search.dam, lr=1.0)
    assert (mask_group["lr"], mask_group["weight_decay"]) == (0.05, 0.0)
    groups = search.parameter_groups(torch.nn.Linear(2, 2), lr=0.1)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 0.0), (0.05, 0.0)]


def test_a_weight_of_zero_is_no_penalty() -> None:
    search = make(weight=0.0, sparsity=None, warmup=0.0)
    search.begin_step(50)
    assert search.weight == 0.0 and search.penalty().item() == 0.0


def test_a_single_step() -> None:
    dam = sb.DifferentiableAttentionMask(1, 1, 4)
    search = MaskSearch(dam, 1, weight=2.0, warmup=0.0, settle=0.0)
    search.begin_step(0)
    assert search.weight == 2.0
    with pytest.raises(ValueError, match="total_steps=0"):
        MaskSearch(dam, 0, weight=2.0)


def test_metrics() -> None:
    search = make()
    with torch.no_grad():
        search.dam.alpha.copy_(torch.linspace(-1, 3, 512).view(1, 2, 256))
    metrics = search.metrics()
    p = search.dam.probabilities()
    assert metrics["mask_sparsity"] == pytest.approx(1 - p.mean().item(), abs=1e-6)
    assert metrics["mask_hard_sparsity"] == pytest.approx((p <= 0.5).float().mean().item())


def make_top(scope: str = "head", **options: Any) -> MaskSearch:
    torch.manual_seed(0)
    dam = sb.DifferentiableAttentionMask(
        2, 2, 16, symmetric=False, sampling="top", scope=scope, init_std=1.0
    )
    return MaskSearch(dam, 100, **{"sparsity": 0.9, **options})


def test_the_likeliest_positions_grow_fewer() -> None:
    """From first_sparsity, over a cubic ramp between warmup and settle, to the goal."""
    search = make_top(first_sparsity=0.3, warmup=0.1, settle=0.3)
    assert search.controller is None
    for step, wanted in (
        (0, 0.3),
        (10, 0.3),
        (25, 0.9 - 0.6 * 0.75**3),
        (40, 0.9 - 0.6 * 0.5**3),
        (70, 0.9),
        (99, 0.9),
    ):
        search.begin_step(step)
        assert search.dam.density == pytest.approx(1.0 - wanted, abs=1e-12)
        kept = search.dam().detach().sum((2, 3))
        assert kept.eq(int((1.0 - wanted) * 256 + 1e-6)).all()
        metrics = search.metrics()
        expected = 1.0 - kept[0, 0].item() / 256
        assert metrics["mask_sparsity"] == pytest.approx(expected, abs=1e-12)
        assert metrics["mask_hard_sparsity"] == metrics["mask_sparsity"]
        assert search.weight == 0.0 and search.penalty().item() == 0.0
    at_once = make_top(scope="global")
    at_once.begin_step(0)
    assert at_once.dam().sum() == 102  # a tenth of 1024


def test_metrics_of_the_likeliest_count_positions() -> None:
    """Distances of many pairs: whole ones are kept, fewer positions than asked for."""
    dam = sb.DifferentiableAttentionMask(1, 2, 8, "toeplitz", sampling="top")
    with torch.no_grad():
        dam.alpha.copy_(-torch.arange(8.0))  # the diagonal first, then its neighbours
    search = MaskSearch(dam, 10, sparsity=0.7)
    search.begin_step(9)
    assert search.metrics()["mask_sparsity"] == 1.0 - 8 / 64  # the neighbours' 14 do not fit in 19


@pytest.mark.parametrize("penalty", ["expected_l1", "l1", "executed_area", "plan"])
def test_the_likeliest_with_a_penalty(penalty: str) -> None:
    """At a fixed weight, once warmup is over; the sparsity is not its business."""
    options = {"target": "cpu", "refresh": 10} if penalty == "plan" else {}
    search = make_top(penalty=penalty, weight=2.0, **options)
    search.begin_step(9)
    search.dam()
    assert search.penalty().item() == 0.0
    search.begin_step(10)
    search.dam()
    assert search.weight == 2.0
    cost = search.penalty()
    cost.backward()
    assert search.dam.alpha.grad.gt(0).all()  # every position costs something
    p = search.dam.probabilities()
    if penalty == "executed_area":
        area = (1 - (1 - p).prod(2)).mean()  # all 16 rows are a tile
        torch.testing.assert_close(cost, 2 * (area + p.mean()), rtol=1e-5, atol=0)
    elif penalty == "l1":
        torch.testing.assert_close(cost, 2 * search.dam().mean(), rtol=1e-5, atol=0)
    elif penalty == "plan":
        tiles = search.plan.tiles
        priced = search.dam.penalty("plan", tiles=tiles, reduction="mean")
        torch.testing.assert_close(cost, 2 * (priced + p.mean()), rtol=1e-5, atol=0)


def test_a_restored_search_has_its_density() -> None:
    """Before the next step, too: a training that is over is still evaluated."""
    first = make_top(first_sparsity=0.3)
    first.begin_step(40)
    second = make_top(first_sparsity=0.3)
    assert second.dam.density == 1.0
    second.load_state_dict(first.state_dict())
    assert second.dam.density == first.dam.density
    state = first.state_dict()
    del state["density"]  # as earlier versions wrote it
    third = make_top(first_sparsity=0.3)
    third.load_state_dict(state)
    third.begin_step(41), first.begin_step(41)
    assert third.dam.density == first.dam.density
    assert "density" not in make().state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": None}, r"keep a given share .*sampling='top'\); give sparsity, the goal"),
        ({"sparsity": None, "weight": 1.0}, "give sparsity, the goal"),
        ({"first_sparsity": 0.95}, "from 0 to the goal, sparsity=0.9, got 0.95"),
        ({"first_sparsity": -0.1}, "from 0 to the goal"),
        ({"first_sparsity": float("nan")}, "from 0 to the goal"),
    ],
)
def test_errors_of_the_likeliest(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_top(**options)
    for other in ({}, {"sparsity": None, "weight": 1.0}):
        with pytest.raises(ValueError, match=r"first_sparsity=0.5, but .*'gumbel'.*leave it out"):
            make(first_sparsity=0.5, **other)


def test_state() -> None:
    """A restored search goes on as the first would have."""
    first = make()
    for step in range(40):
        first.begin_step(step)
    second = make()
    second.load_state_dict(first.state_dict())
    for search in (first, second):
        search.begin_step(40)
    assert first.weight == second.weight > 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": None}, "give sparsity"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": 0.95}, r"seq_len=16 that leaves no row empty has at most 0.9375"),
        ({"weight": -1.0}, "weight must be finite"),
        ({"weight": float("inf")}, "weight must be finite"),
        ({"temperature": (float("inf"), 1.0)}, "temperature must be above 0"),
        ({"warmup": -0.1}, "but warmup is -0.1"),
        ({"settle": 1.0, "warmup": 0.0}, "but settle is 1.0"),
        ({"penalty": "l0"}, "penalty must be one of"),
        ({"tile_rows": 0}, "tile_rows=0"),
        ({"penalty": "plan", "target": "h100"}, "h100 is sm90"),
        ({"penalty": "plan", "objective": "bytes"}, "objective must be one of"),
        ({"penalty": "plan", "refresh": 0}, "refresh=0 but must be at least 1"),
        ({"temperature": (1.0, 0.0)}, "temperature must be above 0"),
        ({"warmup": 0.7, "settle": 0.3}, "leaves? some between them, but both is 1.0"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
    with pytest.raises(TypeError, match="must be a DifferentiableAttentionMask"):
        MaskSearch(torch.nn.Linear(1, 1), 10, sparsity=0.5)  # type: ignore[arg-type]
