"""Masks of the likeliest positions: exact shares, gradients, files, and the order of equals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import sparsebert as sb
from sparsebert.dam.sampling import top_share
from tests.dam.dams import STRUCTURES, make

DENSITIES = (1e-9, 0.013, 0.1, 0.25, 1.0 - 0.9, 0.5, 1.0 / 3.0, 0.99, 1.0)


def by_hand(alpha: torch.Tensor, counts: list[int], density: float, scope: str) -> torch.Tensor:
    """One parameter after the other, the likeliest first, the first of equals first."""
    layers, heads, parameters = alpha.shape
    kept = torch.zeros_like(alpha)
    everywhere = [
        (i, j, k) for i in range(layers) for j in range(heads) for k in range(parameters)
    ]
    groups = [everywhere]
    if scope == "head":
        groups = [
            [at for at in everywhere if at[:2] == (i, j)]
            for i in range(layers)
            for j in range(heads)
        ]
    for group in groups:
        # Rounded to a whole position where density says one up to rounding: 1 - 0.9 is not 0.1.
        budget = round(density * sum(counts[at[2]] for at in group), 6)
        used = 0
        for number, at in enumerate(sorted(group, key=lambda at: (-float(alpha[at]), at))):
            used += counts[at[2]]
            if used > budget and number > 0:
                break
            kept[at] = 1.0
    return kept


@pytest.mark.parametrize("scope", ["head", "global"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_exact_share_at_every_density(name: str, scope: str) -> None:
    dam = make(name, layers=2, heads=3, sampling="top", scope=scope)
    counts = torch.bincount(dam.index.flatten()).tolist()
    for density in DENSITIES:
        dam.set_density(density)
        expected = by_hand(dam.alpha.detach(), counts, density, scope)
        with torch.no_grad():
            mask = dam()
        assert torch.equal(mask, dam.expand(expected))
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        if name == "full" and scope == "head" and density * 49 >= 1:
            assert mask.sum((2, 3)).eq(int(density * 49 + 1e-6)).all()


@pytest.mark.parametrize("scope", ["head", "global"])
def test_the_first_of_equals(scope: str) -> None:
    alpha = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]]])
    kept = top_share(alpha, torch.tensor([1, 1, 1, 1]), 0.5, scope)
    expected = {"head": [[1, 1, 0, 0], [1, 1, 0, 0]], "global": [[1, 1, 1, 1], [0, 0, 0, 0]]}
    assert kept[0].tolist() == expected[scope]
    one = top_share(torch.zeros(1, 1, 1), torch.tensor([9]), 0.01, scope)
    assert one.tolist() == [[[1.0]]]  # one parameter: it is kept, or nothing would be


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_counts_are_exact_in_any_precision(dtype: torch.dtype) -> None:
    """bf16 knows no 259: a distance that so many pairs have must not count as 260."""
    n = 600
    dam = make("toeplitz", heads=1, n=n, sampling="top", dtype=dtype)
    counts = torch.bincount(dam.index.flatten()).tolist()
    assert dam.counts.tolist() == counts
    for density in (0.1, 0.3, 0.6, 0.8):
        dam.set_density(density)
        expected = by_hand(dam.alpha.detach(), counts, density, "head")
        assert torch.equal(dam.draw().detach(), expected)


def test_rounding_costs_no_position() -> None:
    """1 - 0.9 is a little less than 0.1."""
    dam = make("full", n=10, sampling="top")
    for tenths in range(1, 10):
        dam.set_density(1.0 - tenths / 10)
        assert dam().sum((2, 3)).eq(100 - 10 * tenths).all()


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("training", [True, False])
def test_gradient_goes_straight_through(name: str, training: bool) -> None:
    """That of every parameter is the sum over its positions, kept or not."""
    dam = make(name, sampling="top", density=0.3).train(training)
    weights = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    (dam() * weights).sum().backward()
    expected = torch.zeros_like(dam.alpha)
    for i in range(7):
        for j in range(7):
            expected[..., dam.index[i, j]] += weights[..., i, j]
    torch.testing.assert_close(dam.alpha.grad, expected)


def test_no_noise_and_the_same_in_evaluation() -> None:
    dam = make("full", sampling="top", density=0.3, temperature=7.0)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    first, second = dam(), dam.sample(generator=torch.Generator().manual_seed(1))
    dam.set_temperature(0.1)
    assert (
        torch.equal(first, second)
        and torch.equal(first, dam())
        and torch.equal(first, dam.eval()())
    )
    assert dam.draws == 0 and dam._stream[1] == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_shorter_sequences_have_a_part_of_the_mask() -> None:
    """Not a share of their own: the same positions as in a longer one."""
    dam = make("full, symmetric", sampling="top", density=0.3)
    whole = dam()
    for n in (1, 4, 7):
        assert torch.equal(dam(n), whole[..., :n, :n])
    with pytest.raises(ValueError, match="8 tokens, but the mask covers seq_len=7"):
        dam(8)


@pytest.mark.parametrize("scope", ["head", "global"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_what_is_trained_is_what_binarize_makes(name: str, scope: str) -> None:
    dam = make(name, layers=2, sampling="top", scope=scope)
    # A parameter of more positions than the share is drawn all the same, or nothing would be.
    least = float(dam.counts.max()) / 49
    for density in (max(0.2, least), 0.35, 0.6):
        dam.set_density(density)
        mask = dam.binarize(sparsity=1.0 - density, allow_empty_rows=True)
        assert torch.equal(mask.dense(), dam().detach().bool())


def test_copies_and_settings() -> None:
    dam = make("full", sampling="top", density=0.3, scope="global")
    dam.set_density(0.2)
    dam()
    twin = copy.deepcopy(dam)
    assert twin.settings() == dam.settings()
    assert (twin.density, twin.sampling, twin.scope) == (0.2, "top", "global")
    assert torch.equal(twin(), dam())
    twin.set_density(0.9)
    assert dam.density == 0.2
    given = dam.binarize(sparsity=0.5).provenance
    assert given is not None
    assert given["dam"] == dam.settings() and given["scope"] == "global"
    assert given["dam"]["sampling"] == "top" and given["dam"]["density"] == 0.2
    again = sb.DifferentiableAttentionMask(**dam.settings(), dtype=torch.float64)
    again.load_state_dict(dam.state_dict())
    assert torch.equal(again(), dam())


def test_penalty_of_the_mask_itself() -> None:
    """ "l1" counts what is kept; its gradient is the count of each parameter."""
    dam = make("toeplitz, symmetric", sampling="top", density=0.3)
    mask = dam()
    dam.penalty("l1").backward()
    assert dam.penalty("l1").item() == mask.sum().item()
    assert torch.equal(dam.alpha.grad, dam.counts.double().expand_as(dam.alpha))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": "best"}, "sampling must be one of"),
        ({"scope": "layer"}, "scope must be one of"),
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ({"density": 1.1}, r"density must be in \(0, 1\], got 1.1"),
        ({"density": float("nan")}, r"density must be in \(0, 1\], got nan"),
        ({"sampling": "top", "hard": False}, "leave both out"),
        ({"sampling": "top", "noise": False}, "leave both out"),
    ],
)
def test_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("full", **settings)
    with pytest.raises(ValueError, match="density must be in"):
        make("full", sampling="top").set_density(-0.1)
