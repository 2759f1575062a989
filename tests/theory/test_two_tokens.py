"""Two tokens without the diagonal, as in docs/theory.md: what attention cannot do, and layers can.

That two tokens are enough for a universal network all the same is in test_constructed.py.
"""

from __future__ import annotations

import pytest
import torch

import sparsebert as sb

TWO = sb.patterns.dense(2).without_diagonal()
EPS = torch.finfo(torch.float64).eps


def draw(batch: int, heads: int, tokens: int, dim: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, batch, heads, tokens, dim, dtype=torch.float64)


# ------------------------------------------------------------------------------ attention alone


@pytest.mark.parametrize("size", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_attention_swaps_the_values_whatever_queries_and_keys_are(
    size: float, dtype: torch.dtype
) -> None:
    q, k, v = draw(7, 3, 2, 5).to(dtype)
    out, lse = sb.sparse_attention(size * q, size * k, v, TWO, return_lse=True)
    assert torch.equal(out, v.flip(2))
    assert torch.isfinite(lse).all()
    # With the diagonal, or with a third token, they count.
    full = sb.sparse_attention(q, k, v, sb.patterns.dense(2))
    assert (full - v.flip(2)).abs().max() > 0.1


def test_so_queries_and_keys_learn_nothing() -> None:
    """The gradient of a score is p (do v - do o), here p = 1 and o = v: zero, but for rounding.

    Each dot product of D terms is off by at most D eps times the sum of its terms' sizes.
    """
    q, k, v = (x.requires_grad_() for x in draw(7, 3, 2, 5))
    grad = torch.randn(7, 3, 2, 5, dtype=torch.float64)
    dq, dk, dv = torch.autograd.grad(sb.sparse_attention(q, k, v, TWO), (q, k, v), grad)
    score = 2 * 5 * EPS * (grad.abs() * v.flip(2).abs()).sum(-1).max()
    assert dq.abs().max() <= score * k.abs().max()
    assert dk.abs().max() <= score * q.abs().max()
    assert torch.equal(dv, grad.flip(2))


def test_no_attention_layer_takes_the_larger_of_two() -> None:
    """Its first output is the same for (0, 0.5) and (1, 0.5), whose maxima differ by a half.

    So one of the two is off by a quarter at least, whatever the weights, the heads and whatever
    function follows.
    """
    low, high = (torch.tensor([[a, 0.5]], dtype=torch.float64) for a in (0.0, 1.0))
    for heads, dim in ((1, 1), (3, 4), (12, 64)):
        weights = draw(1, heads, 1, dim, count=4)
        first = [
            sb.sparse_attention(*(x[:, None, :, None] * weights[:3]), TWO)[0, :, 0]
            for x in (low, high)
        ]
        assert torch.equal(first[0], first[1])
    assert high.max() - low.max() == 0.5


# ------------------------------------------------------------------------------ one block


def pair_that_looks_alike(weight: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Two points of the unit square with the same x1 + weight x2, maxima a half apart or more."""
    if weight < 0:
        return (0.0, 0.0), (-weight, 1.0) if weight >= -1 else (1.0, -1 / weight)
    if weight == 0:
        return (0.0, 0.0), (0.0, 1.0)
    middle = min(weight, 1.0) / (1 + weight)
    return ((0.0, 1.0) if weight <= 1 else (1.0, 0.0)), (middle, middle)


@pytest.mark.parametrize("weight", [0.0, 1.0, -1.0, 0.3, -0.3, 4.0, -4.0, 1e-9, -1e9, None])
def test_one_block_of_one_channel_is_off_by_a_quarter(weight: float | None) -> None:
    """x1 + attention is x1 + w x2: heads add up to one number w. Then comes any function of it."""
    factors = draw(1, 3, 1, 4, count=4)
    if weight is not None:
        factors[2:] = 0.0
        factors[2:, :, :, :, 0] = 1.0
        factors[3] *= weight / 3
    w = float((factors[2] * factors[3]).sum())
    one, other = pair_that_looks_alike(w)
    x = torch.tensor([one, other], dtype=torch.float64)  # [inputs, tokens]
    q, k, v = x[:, None, :, None] * factors[:3]
    attention = (sb.sparse_attention(q, k, v, TWO) * factors[3]).sum((1, 3))
    stream = (x + attention)[:, 0]
    sizes = 1 + float((factors[2] * factors[3]).abs().sum())
    assert (stream[0] - stream[1]).abs() <= 40 * EPS * sizes  # sums of 13 terms, and w's own
    assert (x[0].max() - x[1].max()).abs() >= 0.5 - EPS


def test_with_the_diagonal_one_block_of_one_channel_will_do() -> None:
    """On [1, 2]: x1 + w attention, over w; attention prefers the larger token, most for large b.

    Off by the share of the smaller one, gap exp(-b x1 gap) <= 1 / (e b), and by x1 / w <= 2 / w.
    Without the diagonal the bound of a quarter stands: shifted inputs shift the stream.
    """
    b, w = 100.0, 1000.0
    line = torch.linspace(1, 2, 33, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    keys = x[:, None, :, None]
    attention = sb.sparse_attention(b * keys, keys, keys, sb.patterns.dense(2), scale=1.0)
    out = (x + w * attention[:, 0, :, 0]) / w
    error = (out - x.max(-1, keepdim=True).values).abs().max()
    assert error <= 1 / (torch.e * b) + 2 / w + 1e-12
    assert error < 0.01


def test_with_a_second_channel_one_block_without_the_diagonal_will_do() -> None:
    """Attention brings the other token beside the own one; max = x2 + relu(x1 - x2) after it."""
    x = torch.rand(100, 2, dtype=torch.float64)
    stream = torch.stack([x, torch.zeros_like(x)], -1)  # [batch, tokens, channels]
    value = stream[:, None] @ torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    zeros = torch.zeros_like(value)
    stream = stream + sb.sparse_attention(zeros, zeros, value, TWO)[:, 0]
    own, other = stream.unbind(-1)
    expected = x.max(-1, keepdim=True).values.expand(-1, 2)
    torch.testing.assert_close(other + torch.relu(own - other), expected, rtol=2 * EPS, atol=EPS)


# ------------------------------------------------------------------------------ selective shift


def selective_shift(ids: torch.Tensor, mask: sb.AttentionMask) -> torch.Tensor:
    """The largest less the smallest of what each token sees: two heads of hard attention."""
    k = ids[:, None, :, None].expand(-1, 2, -1, -1)
    q = torch.tensor([1e6, -1e6], dtype=torch.float64).reshape(1, 2, 1, 1).expand_as(k)
    both = sb.sparse_attention(q, k, k, mask, scale=1.0)[..., 0]
    return both[:, 0] - both[:, 1]


def test_the_selective_shift_needs_three_tokens() -> None:
    """The step of the published proof that is empty for two tokens without the diagonal."""
    two, three = (
        torch.tensor([ids], dtype=torch.float64) for ids in ([0.25, 0.75], [0.25, 0.75, 2.0])
    )
    assert selective_shift(two, sb.patterns.dense(2)).tolist() == [[0.5, 0.5]]
    assert selective_shift(two, TWO).tolist() == [[0.0, 0.0]]
    off = sb.patterns.dense(3).without_diagonal()
    assert selective_shift(three, off).tolist() == [[1.25, 1.75, 0.5]]
    # Two others that are equal are one: the proof leaves such inputs out, or has positions.
    equal = torch.tensor([[0.25, 0.75, 0.75]], dtype=torch.float64)
    assert selective_shift(equal, off).tolist() == [[0.0, 0.5, 0.5]]
