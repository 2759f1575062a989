"""The three gates against their formulas, written out densely in fp64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck

import sparsebert as sb
from sparsebert.dam.gates import GATES, gated_attention, gated_probabilities


def inputs(gate: str = "softmax") -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [B, H, N, M] and a mask [H, N, M] with zeros, ones and values between.

    For the additive gate just below 1, as it cuts everything else off altogether.
    """
    torch.manual_seed(0)
    scores = torch.randn(2, 2, 6, 7, dtype=torch.float64)
    mask = torch.rand(2, 6, 7, dtype=torch.float64)
    mask[:, :, 0] = 0.0
    mask[:, :, 1] = 1.0
    return scores, 1.0 - 1e-4 * mask if gate == "additive" else mask


def formula(scores: torch.Tensor, mask: torch.Tensor, gate: str) -> torch.Tensor:
    """As in the definitions, position by position, without any care for overflow."""
    if gate == "softmax":
        weights = mask * scores.exp()
        return weights / weights.sum(-1, keepdim=True)
    if gate == "additive":
        weights = (scores + (1 - mask) * -10000).exp()
        return weights / weights.sum(-1, keepdim=True)
    weights = scores.exp()
    return mask * weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("gate", GATES)
def test_value_and_gradients(gate: str) -> None:
    scores, mask = (x.requires_grad_() for x in inputs(gate))
    weight = torch.randn_like(scores)
    got, expected = gated_probabilities(scores, mask, gate=gate), formula(scores, mask, gate)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)
    ours, theirs = (
        torch.autograd.grad((p * weight).sum(), (scores, mask)) for p in (got, expected)
    )
    # Sums of a few dozen terms of order 1 (times 10,000 in the additive gate's mask).
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12 * other.abs().max().item())


@pytest.mark.parametrize("gate", GATES)
def test_gradcheck(gate: str) -> None:
    """Also with forbidden positions; the additive gate's steps must be small against 1e-4."""
    scores, mask = (x.requires_grad_() for x in inputs(gate))
    allowed = torch.rand(2, 1, 6, 7) < 0.8
    allowed[:, :, 0] = False
    allowed[..., 1] = True

    def attention(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return gated_probabilities(scores, mask, allowed, gate=gate)

    eps = 1e-8 if gate == "additive" else 1e-6
    atol = 1e-2 if gate == "additive" else 1e-6  # of gradients of order 1,000
    assert gradcheck(attention, (scores, mask), eps=eps, atol=atol, fast_mode=True)


def test_softmax_gate_reaches_dropped_positions() -> None:
    """dM = P~ (dP - delta), with P~ = exp(S) / sum(M exp(S)), also where M = 0."""
    scores, mask = inputs()
    mask = (mask > 0.5).double().requires_grad_()
    weight = torch.randn_like(scores)
    p = gated_probabilities(scores, mask)
    (got,) = torch.autograd.grad((p * weight).sum(), mask)
    open_ = scores.exp() / (mask * scores.exp()).sum(-1, keepdim=True)
    delta = (p * weight).sum(-1, keepdim=True)
    expected = (open_ * (weight - delta)).sum(0)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-12, atol=1e-13)
    assert (got[mask == 0] != 0).all()


def test_additive_gate_does_not() -> None:
    scores, mask = inputs()
    mask = (mask > 0.5).double().requires_grad_()
    p = gated_probabilities(scores, mask, gate="additive")
    (got,) = torch.autograd.grad((p * torch.randn_like(p)).sum(), mask)
    assert (got[mask == 0] == 0).all() and (got[mask == 1] != 0).any()


@pytest.mark.parametrize("gate", ["softmax", "additive"])
def test_binary_mask_is_masked_attention(gate: str) -> None:
    """For 0 and 1 both gates are attention to exactly the kept positions."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, 8, dtype=torch.float64)
    mask = torch.rand(4, 9, 9) < 0.4
    mask[..., 0] = True
    key_mask = torch.rand(2, 9) < 0.8
    key_mask[:, 0] = True
    out, _ = gated_attention(
        q, k, v, mask.double(), gate=gate, allowed=key_mask[:, None, None], scale=0.3
    )
    exact = sb.reference_attention(q, k, v, sb.AttentionMask.from_dense(mask), scale=0.3,
                                   key_mask=key_mask)  # fmt: skip
    torch.testing.assert_close(out, exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gate", GATES)
def test_far_scores(gate: str, dtype: torch.dtype) -> None:
    """A dropped score far above the kept ones: finite, and the kept ones still decide."""
    q = torch.tensor([[[[1.0], [1.0]]]], dtype=dtype, requires_grad=True)
    k = torch.tensor([[[[1.0], [300.0], [-2.0]]]], dtype=dtype, requires_grad=True)
    v = torch.tensor([[[[1.0], [5.0], [2.0]]]], dtype=dtype, requires_grad=True)
    mask = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]], requires_grad=True)
    out, p = gated_attention(q, k, v, mask, gate=gate)
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v, mask))  # type: ignore[union-attr]
    if gate == "softmax":
        expected = math.exp(3.0) / (1 + math.exp(3.0))
        assert p[0, 0, 0].tolist() == pytest.approx(
            [expected, 0.0, 1 - expected], abs=2 * torch.finfo(dtype).eps
        )


def test_dead_rows() -> None:
    """Zeros; no gradient to the scores; to the mask what keeping one position would bring."""
    scores, mask = inputs()
    mask[:, 2] = 0.0
    scores, mask = scores.requires_grad_(), mask.requires_grad_()
    p = gated_probabilities(scores, mask)
    weight = torch.randn_like(p)
    ds, dm = torch.autograd.grad((p * weight).sum(), (scores, mask))
    assert (p[:, :, 2] == 0).all() and (ds[:, :, 2] == 0).all()
    torch.testing.assert_close(dm[:, 2], weight[:, :, 2].sum(0))
    assert ds.isfinite().all() and dm.isfinite().all()


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_padding_reaches_nothing(gate: str, garbage: float) -> None:
    """Equal bits, whatever hidden keys hold; no gradient to them, nor to their mask."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 5, 4, dtype=torch.float64)
    mask = torch.rand(2, 5, 5, dtype=torch.float64)
    key_mask = torch.tensor([[True, True, False, True, False]] * 2)

    def run(hidden: float) -> tuple[Any, ...]:
        k2, v2 = (x.clone() for x in (k, v))
        k2[:, :, ~key_mask[0]] = hidden
        v2[:, :, ~key_mask[0]] = hidden
        leaves = [x.clone().requires_grad_() for x in (q, k2, v2, mask)]
        out, _ = gated_attention(*leaves, gate=gate, allowed=key_mask[:, None, None])
        return out, *torch.autograd.grad(out.sin().sum(), leaves)

    clean, dirty = run(0.0), run(garbage)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    _, _, dk, dv, dm = dirty
    hidden = ~key_mask[0]
    assert (dk[:, :, hidden] == 0).all() and (dv[:, :, hidden] == 0).all()
    assert (dm[..., hidden] == 0).all() and (dm[..., ~hidden] != 0).any()


@pytest.mark.parametrize("gate", GATES)
def test_no_allowed_position(gate: str) -> None:
    scores, mask = (x.requires_grad_() for x in inputs())
    p = gated_probabilities(scores, mask, torch.zeros(2, 1, 1, 7, dtype=torch.bool), gate=gate)
    ds, dm = torch.autograd.grad(p.sum(), (scores, mask))
    assert (p == 0).all() and (ds == 0).all() and (dm == 0).all()


def test_unknown_gate() -> None:
    with pytest.raises(ValueError, match="gate must be one of"):
        gated_probabilities(*inputs(), gate="hard")
