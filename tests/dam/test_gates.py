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


def test_grouped_heads_bias_and_the_default_scale() -> None:
    """Query heads 0 and 1 share key head 0; scores are q k / sqrt(D) + bias."""
    torch.manual_seed(0)
    q = torch.randn(2, 4, 5, 9, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 6, 9, dtype=torch.float64)
    mask, bias = torch.rand(4, 5, 6, dtype=torch.float64), torch.randn(1, 4, 5, 6).double()
    out, p = gated_attention(q, k, v, mask, bias=bias)
    for h in range(4):
        scores = q[:, h] @ k[:, h // 2].transpose(-1, -2) / 3.0 + bias[:, h]
        expected = formula(scores[:, None], mask[h], "softmax")[:, 0]
        torch.testing.assert_close(p[:, h], expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(out[:, h], expected @ v[:, h // 2], rtol=1e-12, atol=1e-14)


def test_a_key_hidden_from_one_head_or_row_is_seen_by_the_others() -> None:
    """Only what no head and no query may see may hold anything; each sequence by itself."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 3, 4, dtype=torch.float64)
    mask = torch.rand(2, 3, 3, dtype=torch.float64)
    allowed = torch.ones(2, 2, 3, 3, dtype=torch.bool)
    allowed[0, 1, :, 0] = False  # hidden from one head
    allowed[0, :, 0, 1] = False  # and from one row
    allowed[1, :, :, 2] = False  # from everybody, in one sequence
    v[1, :, 2] = k[1, :, 2] = math.nan
    out, p = gated_attention(q, k, v, mask, allowed=allowed)
    assert (p[allowed] > 0).all() and (p[~allowed] == 0).all() and out.isfinite().all()
    torch.testing.assert_close(out[0], p[0] @ v[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(out[1], p[1, :, :, :2] @ v[1, :, :2], rtol=1e-12, atol=1e-14)


def test_dropout() -> None:
    """Of the probabilities, at its rate and rescaled; the output is of what is left."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 64, 8)
    mask = torch.ones(2, 64, 64)
    _, whole = gated_attention(q, k, v, mask)
    out, p = gated_attention(q, k, v, mask, dropout_p=0.25)
    kept = p > 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)  # six deviations
    torch.testing.assert_close(p[kept], whole[kept] / 0.75)
    torch.testing.assert_close(out, p @ v)
    again, _ = gated_attention(q, k, v, mask)
    torch.testing.assert_close(again, whole @ v)  # none by default


def test_the_gradient_of_a_far_dropped_position_is_bounded() -> None:
    """Up to 20 above the largest kept score by its formula, and no more beyond."""
    for above, counted in ((10.0, 10.0), (20.0, 20.0), (21.0, 20.0), (1000.0, 20.0)):
        scores = torch.tensor([[[[1.0, 0.0, 1.0 + above]]]], dtype=torch.float64)
        mask = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
        p = gated_probabilities(scores, mask)
        (dm,) = torch.autograd.grad(p[..., 0].sum(), mask)
        total = 1.0 + math.exp(-1.0)
        expected = -math.exp(counted) / total**2  # P~ (dP - delta), with dP = 0
        assert dm[2].item() == pytest.approx(expected, rel=1e-9)


def test_low_precision_masks_and_scores() -> None:
    """Probabilities come in q's dtype, from an fp32 softmax; a bool mask is one of 0 and 1."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 8).bfloat16()
    mask = torch.rand(2, 6, 6) < 0.7
    out, p = gated_attention(q, k, v, mask)
    assert out.dtype == p.dtype == torch.bfloat16
    _, exact_p = gated_attention(q.double(), k.double(), v.double(), mask.double())
    # The products are rounded to 8 bits, then p is; softmax moves by at most what scores do.
    shift = (q.double() @ k.double().transpose(-1, -2)).abs().max() * 8**-0.5 * 2.0**-8
    assert (p.double() - exact_p).abs().max() <= shift + 2.0**-8
    assert torch.equal(out, p @ v)
