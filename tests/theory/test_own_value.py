"""A layer with the diagonal out of one without it, exactly: docs/theory.md, its third part."""

from __future__ import annotations

import pytest
import torch

import sparsebert as sb

EPS = torch.finfo(torch.float64).eps
N, D = 65, 8
MASKS = {
    "dense": sb.patterns.dense(N),
    "longformer": sb.patterns.longformer(N),
    "strided": sb.patterns.strided(N),
    "causal": sb.patterns.causal(N),  # the first token sees itself alone: without it nothing
}


def inputs(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v [B, H, N, D] and the scores of the diagonal [B, H, N, 1]."""
    q, k, v = 2.0 * torch.randn(3, 2, 3, tokens, D, dtype=torch.float64)
    return q, k, v, (q * k).sum(-1, keepdim=True) * D**-0.5


def softmax_rounding(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    """Of attention over N tokens in fp64: scores off by D + 2 roundings of their terms' size,
    which moves weights by twice that, relatively; then sums of N terms, twice."""
    score = (q.abs() @ k.abs().transpose(-1, -2)).max() * D**-0.5
    return float((2 * (D + 2) * score + 2 * q.shape[-2] + 8) * EPS * v.abs().max())


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("lse_of", ["sparse_attention", "reference_attention"])
def test_the_own_value_can_be_added_afterwards(name: str, lse_of: str) -> None:
    """o = (1 - w) o_off + w v with w = sigmoid(s_ii - lse_off).

    w moves by at most a quarter of what lse moves; sparse_attention rounds lse to fp32, and the
    reference does not.
    """
    q, k, v, own = inputs(N)
    off, lse = getattr(sb, lse_of)(q, k, v, MASKS[name].without_diagonal(), return_lse=True)
    w = torch.sigmoid(own - lse.double()[..., None])
    got = (1 - w) * off + w * v
    expected = sb.reference_attention(q, k, v, MASKS[name])
    unit = torch.finfo(lse.dtype).eps / 2
    moved = lse.double().abs().nan_to_num(posinf=0.0)[..., None] * unit / 4 * (v - off).abs()
    bound = 3 * softmax_rounding(q, k, v) + moved
    assert ((got - expected).abs() <= bound).all()
    assert (off - expected).abs().max() > 1e3 * bound.max()  # the own value counts here
    assert MASKS[name] != MASKS[name].without_diagonal()


@pytest.mark.parametrize("tokens", [2, 3, 64])
def test_a_sink_tells_the_next_function_how_much_the_others_weigh(tokens: int) -> None:
    """One more token with key 0, whose value is 1 in a channel of its own, where others have 0.

    There r = 1 / (Z + 1) comes out, Z = sum over others of exp(s_ij), so a function of the token
    alone finishes the job: o = (o' + r e v) / (1 - r + r e) with e = exp(s_ii).
    """
    q, k, v, own = inputs(tokens)
    more = q.new_zeros(2, 3, 1, D)
    marked = torch.nn.functional.pad(torch.cat([v, more], 2), (0, 1))
    marked[:, :, -1, -1] = 1.0
    mask = sb.patterns.dense(tokens + 1).without_diagonal()
    # A head size of one more; the scale stays that of D.
    q_more, k_more = (torch.nn.functional.pad(torch.cat([x, more], 2), (0, 1)) for x in (q, k))
    out = sb.sparse_attention(q_more, k_more, marked, mask, scale=D**-0.5)[:, :, :tokens]
    off, r = out[..., :D], out[..., D:]
    e = own.exp()
    below = 1 - r + r * e
    got = (off + r * e * v) / below
    expected = sb.reference_attention(q, k, v, sb.patterns.dense(tokens))
    # Above and below the line everything is rounded as softmax is, times e where it stands.
    bound = 4 * softmax_rounding(q, k, v) * (1 + r * e) / below + softmax_rounding(q, k, v)
    assert ((got - expected).abs() <= bound).all()
    assert (got - off).abs().max() > 1e3 * bound.median()


def test_the_own_token_comes_through_by_its_query_alone() -> None:
    """Without the diagonal and without a residual connection. (With two tokens not even so.)"""
    mask = sb.patterns.dense(5).without_diagonal()
    q, k, v, _ = inputs(5)
    before = sb.sparse_attention(q, k, v, mask)[:, :, 3]
    for name, moves in (("q", True), ("k", False), ("v", False)):
        tensors = {"q": q.clone(), "k": k.clone(), "v": v.clone()}
        tensors[name][:, :, 3] += 1.0
        after = sb.sparse_attention(**tensors, plan=mask)[:, :, 3]
        assert torch.equal(before, after) == (not moves)
    others = v[:, :, [0, 1, 2, 4]]
    slack = softmax_rounding(q, k, v)  # a convex combination of the others' values
    assert (before <= others.amax(2) + slack).all() and (before >= others.amin(2) - slack).all()
