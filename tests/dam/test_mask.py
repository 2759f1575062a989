"""The DifferentiableAttentionMask by itself: structures, samples, modes, what it refuses."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

import sparsebert as sb
from tests.dam.dams import STRUCTURES, make


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure(name: str) -> None:
    """Positions share a value exactly where the structure says so."""
    n = 7
    values = make(name, n=n).probabilities()[0, 0].detach().numpy()
    for i, j, k, m in itertools.product(range(n), repeat=4):
        a, b = (i, j), (k, m)
        if "symmetric" in name:
            a, b = tuple(sorted(a)), tuple(sorted(b))
        if "tokens" in name:
            same = _of_token(a, n, name) == _of_token(b, n, name)
        elif "toeplitz" in name:
            same = a[0] - a[1] == b[0] - b[1]
        elif "block" in name:
            same = (a[0] // 2, a[1] // 2) == (b[0] // 2, b[1] // 2)
        else:
            same = a == b
        assert (values[i, j] == values[k, m]) == same


def _of_token(position: tuple[int, int], n: int, name: str) -> tuple[str, int]:
    """The row or column of the first or last token (the last and columns win), or a distance."""
    i, j = position
    for token in (n - 1, 0):
        if token in (i, j):
            column = "symmetric" in name or j == token
            return "column" if column else "row", token
    return "distance", i - j


def test_own_tokens_are_checked_and_kept_in_masks() -> None:
    with pytest.raises(ValueError, match="takes no own_tokens"):
        sb.DifferentiableAttentionMask(1, 1, 8, own_tokens=(0,))
    with pytest.raises(ValueError, match="own_tokens"):
        sb.DifferentiableAttentionMask(1, 1, 8, "toeplitz", own_tokens=(8,))
    dam = make("toeplitz and tokens", n=9)
    assert dam.own_tokens == (0, 8)
    assert dam.binarize(sparsity=0.5).provenance["dam"]["own_tokens"] == [0, 8]
    assert dam.counts.sum() == 81 and dam.counts.min() >= 1  # no parameter decides nothing


@pytest.mark.parametrize("name", STRUCTURES)
def test_sample_is_a_bernoulli_draw(name: str) -> None:
    """Hard samples are 0 or 1 and keep each position as often as its probability says."""
    dam = make(name)
    draws = 2000
    mean = torch.zeros(1, 2, 7, 7, dtype=torch.float64)
    for _ in range(draws):
        sample = dam.sample().detach()
        assert ((sample == 0) | (sample == 1)).all()
        mean += sample / draws
    p = dam.probabilities().detach()
    # Six standard deviations of a mean of draws; 98 positions.
    assert ((mean - p).abs() <= 6 * (p * (1 - p) / draws).sqrt()).all()


def test_straight_through_gradient() -> None:
    """The gradient of a hard sample is that of the unrounded one."""
    dam = make("full", temperature=0.7)
    weight = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    grads = {}
    for hard in (True, False):
        dam.hard = hard
        torch.manual_seed(5)
        (grads[hard],) = torch.autograd.grad((dam.sample() * weight).sum(), dam.alpha)
    torch.manual_seed(5)
    uniform = torch.rand(dam.alpha.shape).double()
    soft = torch.sigmoid((dam.alpha + torch.log(uniform / (1 - uniform))) / 0.7)
    expected = weight.flatten(-2) * soft * (1 - soft) / 0.7
    assert torch.equal(grads[True], grads[False])
    torch.testing.assert_close(grads[False], expected.detach(), rtol=1e-6, atol=1e-9)


def test_noise() -> None:
    """torch.manual_seed repeats `sample`; `forward` has a stream of its own."""
    dam = make("full", n=16)
    torch.manual_seed(3)
    first = dam.sample()
    assert not torch.equal(first, dam.sample())
    torch.manual_seed(3)
    assert torch.equal(first, dam.sample())
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(
        dam.sample(generator=generator), dam.sample(generator=generator.manual_seed(1))
    )
    # forward does not touch torch's generator, a copy goes on alike, and so does a restored one
    dam(), dam()
    other = make("full", n=16, seed=123)
    other.load_state_dict(dam.state_dict())
    twin = copy.deepcopy(dam)
    state = torch.get_rng_state()
    expected = dam()
    assert torch.equal(twin(), expected) and torch.equal(other(), expected)
    assert not torch.equal(dam(), expected)
    assert torch.equal(state, torch.get_rng_state())


def test_modes() -> None:
    """Evaluation draws nothing; without noise a sample is the probabilities."""
    dam = make("full, symmetric")
    p = dam.probabilities()
    assert torch.equal(dam.eval()(), (p > 0.5).double())
    dam.hard = False
    assert torch.equal(dam(), p)
    assert torch.equal(make("full", hard=False, noise=False)(), make("full").probabilities())
    rounded = make("full", noise=False)()
    assert torch.equal(rounded.detach(), (make("full").probabilities() > 0.5).double())


@pytest.mark.parametrize("name", STRUCTURES)
def test_shorter_lengths(name: str) -> None:
    """A shorter sequence sees the top-left part of the same draw."""
    whole, part = make(name, layers=2, seed=4), make(name, layers=2, seed=4)
    assert torch.equal(whole()[..., :5, :5], part(5))
    assert torch.equal(whole.probabilities()[..., :3, :3], part.probabilities(3))
    with pytest.raises(ValueError, match=r"8 tokens, but the mask covers seq_len=7"):
        whole(8)


def test_first_probability() -> None:
    dam = sb.DifferentiableAttentionMask(1, 4, 32, init_probability=0.9)
    assert dam.expected_density == pytest.approx(0.9, abs=1e-3)
    assert dam.probabilities().std() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": "banded"}, "structure must be one of"),
        ({"structure": "block"}, "needs a block_size"),
        ({"block_size": 4}, "take none"),
        ({"structure": "block", "block_size": 0}, "block_size=0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"init_probability": 1.0}, r"init_probability must be in \(0, 1\)"),
        ({"init_std": -1.0}, "init_std"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_constructor_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sb.DifferentiableAttentionMask(1, 2, 8, **arguments)
    with pytest.raises(TypeError, match="num_heads must be an integer"):
        sb.DifferentiableAttentionMask(1, 2.0, 8)  # type: ignore[arg-type]
