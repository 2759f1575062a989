"""hidden_distance: by hand, and deaf to padding."""

from __future__ import annotations

import math

import pytest
import torch

from sparsebert.dam.distillation import hidden_distance

B, N, E = 3, 5, 4
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 1]])


def states(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, N, E, generator=generator, dtype=torch.float64).to(dtype)


def by_hand(hidden: torch.Tensor, wanted: torch.Tensor, real: torch.Tensor) -> float:
    shares = []
    for b in range(B):
        far = size = 0.0
        for i in range(N):
            if real[b, i]:
                for e in range(E):
                    far += (float(hidden[b, i, e]) - float(wanted[b, i, e])) ** 2
                    size += float(wanted[b, i, e]) ** 2
        shares.append(far / size)
    return sum(shares) / B


def test_by_hand() -> None:
    hidden, wanted = states(0), states(1)
    for mask in (REAL, REAL.bool(), REAL.float()):
        assert float(hidden_distance(hidden, wanted, mask)) == pytest.approx(
            by_hand(hidden, wanted, REAL), rel=1e-12
        )
    everything = torch.ones_like(REAL)
    whole = float(hidden_distance(hidden, wanted))
    assert whole == pytest.approx(by_hand(hidden, wanted, everything), rel=1e-12)
    assert float(hidden_distance(wanted, wanted, REAL)) == 0.0
    assert float(hidden_distance(0 * wanted, wanted, REAL)) == pytest.approx(1.0, rel=1e-12)


def test_mean_over_batches_is_that_of_one() -> None:
    """So that accumulated batches of one size are one large batch."""
    hidden, wanted = states(0), states(1)
    parts = [hidden_distance(*(x[i : i + 1] for x in (hidden, wanted, REAL))) for i in range(B)]
    whole = hidden_distance(hidden, wanted, REAL)
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_gradients_reach_hidden_alone() -> None:
    hidden, wanted = states(0).requires_grad_(), states(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda h: hidden_distance(h, wanted, REAL), hidden)
    hidden_distance(hidden, wanted, REAL).backward()
    assert wanted.grad is None and hidden.grad is not None
    assert hidden.grad[REAL == 0].eq(0).all() and hidden.grad[REAL == 1].ne(0).all()


@pytest.mark.parametrize("spoilt", ["hidden", "wanted", "both"])
def test_padding_may_hold_anything(spoilt: str) -> None:
    hidden, wanted = states(0), states(1)
    expected = hidden_distance(hidden, wanted, REAL)
    if spoilt != "wanted":
        hidden = hidden.masked_fill(REAL[..., None] == 0, math.nan)
    if spoilt != "hidden":
        wanted = wanted.masked_fill(REAL[..., None] == 0, math.inf)
    hidden.requires_grad_()
    distance = hidden_distance(hidden, wanted, REAL)
    distance.backward()
    assert torch.equal(distance, expected)
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_an_example_of_padding_alone() -> None:
    real = REAL.clone()
    real[1] = 0
    hidden = states(0).requires_grad_()
    distance = hidden_distance(hidden, states(1), real)
    distance.backward()
    one, third = (
        float(hidden_distance(states(0)[b : b + 1], states(1)[b : b + 1], real[b : b + 1]))
        for b in (0, 2)
    )
    assert distance.item() == pytest.approx((one + third) / 3.0, rel=1e-12)
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_half_precision_is_summed_in_fp32() -> None:
    hidden, wanted = states(0, torch.bfloat16), states(1, torch.bfloat16)
    distance = hidden_distance(hidden, wanted, REAL)
    assert distance.dtype == torch.float32
    assert float(distance) == pytest.approx(by_hand(hidden, wanted, REAL), rel=1e-5)
    assert hidden_distance(states(0), wanted).dtype == torch.float64


def test_errors() -> None:
    hidden = states(0)
    with pytest.raises(ValueError, match=r"hidden states \[3, 5, 4\] and \[3, 4, 4\]"):
        hidden_distance(hidden, hidden[:, :4])
    with pytest.raises(ValueError, match=r"both must be \[B, N, E\]"):
        hidden_distance(hidden[0], hidden[0])
    with pytest.raises(ValueError, match=r"attention_mask is \[3, 1, 5, 5\], .*= \[3, 5\]"):
        hidden_distance(hidden, hidden, torch.ones(B, 1, N, N))
