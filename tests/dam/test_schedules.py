"""Schedules and the sparsity controller: by their formulas, step by step, and in a training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sparsebert as sb
from sparsebert.dam.schedules import SparsityController, annealed, ramp


def test_annealed_goes_by_equal_ratios() -> None:
    assert [annealed(16.0, 1.0, p) for p in (0.25, 0.5, 0.75)] == [8.0, 4.0, 2.0]
    assert annealed(1.0, 16.0, 0.25) == 2.0 and annealed(3.0, 3.0, 0.3) == 3.0


def test_ramp_is_cubic() -> None:
    assert ramp(0.8, 0.5) == pytest.approx(0.8 - 0.8 / 8)
    assert ramp(0.9, 0.5, start=0.5) == pytest.approx(0.9 - 0.4 / 8)
    assert ramp(0.9, -1.0, start=0.5) == ramp(0.9, 0.0, start=0.5) == pytest.approx(0.5)
    assert ramp(0.9, 2.0, start=0.5) == 0.9


def log_odds(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.3])
def test_one_step_at_the_goal(density: float) -> None:
    """The weight moves by rate times the distance in log odds; boost is added for the moment."""
    controller = SparsityController(0.9, weight=2.0, rate=0.1, boost=3.0)
    used = controller.update(density)
    distance = log_odds(density) - log_odds(0.1)
    assert controller.weight == pytest.approx(2.0 * math.exp(0.1 * distance))
    assert used == pytest.approx(controller.weight * math.exp(3.0 * distance))


@pytest.mark.parametrize(("sparsity", "start"), [(0.9, 0.5), (0.3, 0.3)])
def test_the_goal_rises_from_one_half(sparsity: float, start: float) -> None:
    """On the way the density to be reached follows the ramp, from 1/2 or the goal, if denser."""
    for progress in (0.0, 0.5, 1.0):
        wanted = 1 - ramp(sparsity, progress, start=start)
        controller = SparsityController(sparsity, weight=2.0)
        assert controller.update(wanted, progress) == pytest.approx(2.0)
        assert controller.weight == pytest.approx(2.0)


def test_far_densities_count_as_near_ones() -> None:
    """Distances end at 2, also where the density rounds to 0 or 1."""
    for density, sign in ((1.0, 1), (0.9999, 1), (0.0, -1), (1e-4, -1)):
        controller = SparsityController(0.9, weight=2.0, rate=0.5, boost=1.0)
        used = controller.update(density)
        assert controller.weight == pytest.approx(2.0 * math.exp(sign))
        assert used == pytest.approx(controller.weight * math.exp(2.0 * sign))


def test_the_weight_stays_in_bounds() -> None:
    controller = SparsityController(0.9, weight=2.0, least=1.0, most=4.0, rate=5.0)
    assert controller.update(0.99) == controller.weight == 4.0
    for _ in range(3):
        controller.update(0.001)
    assert controller.weight == 1.0


def test_defaults() -> None:
    controller = SparsityController(0.9)
    assert (controller.weight, controller.rate, controller.boost) == (0.1, 0.1, 2.0)
    assert (controller.least, controller.most) == (1e-6, 1e6)


@pytest.mark.parametrize("name", ["weight", "rate", "least", "most"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_gains_and_bounds_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0 and finite"):
        SparsityController(0.9, **{name: value})


def test_schedules() -> None:
    assert [annealed(4.0, 0.25, p) for p in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [4, 4, 1, 0.25, 0.25]
    assert [ramp(0.9, p) for p in (0.0, 1.0, 3.0)] == [0.0, 0.9, 0.9]
    steps = [ramp(0.9, p) for p in np.linspace(0, 1, 20)]
    assert steps == sorted(steps)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.96])
def test_controller_reaches_the_sparsity(sparsity: float, scale: float) -> None:
    """Against a task that wants some positions much, others little, by Adam as in training."""
    torch.manual_seed(0)
    dam = sb.DifferentiableAttentionMask(1, 2, 32, symmetric=False)
    worth = scale * torch.rand(dam.alpha.shape) ** 4 / dam.alpha.numel()
    controller = SparsityController(sparsity)
    optimizer = torch.optim.Adam([dam.alpha], lr=0.05)
    steps = 400
    for step in range(steps):
        progress = step / (0.7 * steps)
        weight = controller.update(dam.expected_density, progress)
        task = ((1 - dam()).flatten(-2) * worth).sum()
        optimizer.zero_grad()
        (task + weight * dam.penalty(reduction="mean")).backward()
        optimizer.step()
    assert dam.expected_density == pytest.approx(1 - sparsity, abs=0.02)
    kept = dam.binarize(sparsity=sparsity).dense().flatten(-2)
    assert worth[kept].mean() > worth[~kept].mean()


@pytest.mark.parametrize("arguments", [{"sparsity": 0.0}, {"sparsity": 1.0}, {"rate": -1.0}])
def test_controller_errors(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        SparsityController(**{"sparsity": 0.5, **arguments})
