"""Attention under a soft mask: three ways to let values between 0 and 1 into a softmax.

Everything is computed with all scores; this is for learning a mask, `sparse_attention` is for
using one.
"""

from __future__ import annotations

import torch

GATES = ("softmax", "additive", "post")

ADDITIVE = -10000.0
"""What the paper's code adds to the score of a dropped position."""

_LARGEST_EXPONENT = 20.0
"""How far a dropped score counts above the largest kept one, in the gradient of its mask value.

Its exponential, 5e8, times a gradient of ordinary size can still be squared in fp32, as Adam does.
"""


def gated_probabilities(
    scores: torch.Tensor,
    mask: torch.Tensor,
    allowed: torch.Tensor | None = None,
    *,
    gate: str = "softmax",
) -> torch.Tensor:
    """Attention probabilities under a mask of values from 0 to 1.

    Args:
        scores: S, scaled, [B, H, N, M], fp32 or fp64.
        mask: M, broadcasts to the scores; gradients flow into it.
        allowed: bool, broadcasts to the scores; what it forbids (padding) has no part in
            anything: no probability and no gradient. A row in which it forbids all gives zeros.
        gate: where the mask enters:

            * "softmax": M exp(S) / sum(M exp(S)). For a mask of 0 and 1 this is attention to
              exactly the kept positions; the gradient of M is P~ (dP - delta), with P~ = exp(S) /
              sum(M exp(S)) also where M = 0, so that a dropped position can come back. A row of
              zeros gives zeros, no gradient to S, and to M the gradient dP: what keeping one
              position alone would bring.
            * "additive": softmax(S + (1 - M) * -10000), the paper's code: a gradient only where
              M is near 1, and 10000 times as large.
            * "post": M * softmax(S), the paper's importance analysis: rows need not sum to 1.

    Returns [B, H, N, M].

    Raises:
        ValueError: an unknown gate.
    """
    if gate not in GATES:
        raise ValueError(f"gated_probabilities: gate must be one of {GATES}, got {gate!r}")
    mask = mask.to(scores.dtype)
    if gate != "softmax":
        if gate == "additive":
            scores = scores + (1.0 - mask) * ADDITIVE
        probabilities = _softmax(scores, allowed)
        return probabilities * mask if gate == "post" else probabilities

    if allowed is not None:
        mask = torch.where(allowed, mask, 0.0)
    kept = mask.detach() > 0.0
    alive = kept.any(dim=-1, keepdim=True)
    largest = scores.detach().masked_fill(~kept, -torch.inf).amax(dim=-1, keepdim=True)
    # Kept scores are at most the largest. A dropped one may be far above it: its exponential is
    # bounded, which bounds the gradient of its mask value.
    exponent = (scores - largest.masked_fill(~alive, 0.0)).clamp(max=_LARGEST_EXPONENT)
    weights = mask * torch.where(alive, exponent.exp(), 1.0)
    total = weights.sum(dim=-1, keepdim=True)
    return weights / torch.where(alive, total, 1.0)


def _softmax(scores: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
    """softmax over the allowed positions; zeros in a row that has none."""
    if allowed is None:
        return torch.softmax(scores, dim=-1)
    alive = allowed.any(dim=-1, keepdim=True)
    scores = scores.masked_fill(~allowed & alive, -torch.inf)
    return torch.where(allowed, torch.softmax(scores, dim=-1), 0.0)


def gated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    *,
    gate: str = "softmax",
    scale: float | None = None,
    bias: torch.Tensor | None = None,
    allowed: torch.Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention with all scores under a mask of values from 0 to 1.

    Args:
        q: [B, H, N, D]; k, v: [B, H_kv, M, D], H a multiple of H_kv.
        mask: [H or 1, N, M], values from 0 to 1.
        gate: see `gated_probabilities`.
        scale: of the scores; None means D ** -0.5.
        bias: added to the scores, broadcasts to [B, H, N, M], or None.
        allowed: bool, broadcasts to [B, H, N, M], or None: see `gated_probabilities`. Keys that
            no query may attend to may hold anything, NaN included.
        dropout_p: dropout of the probabilities, drawn from torch's generator.

    Returns the output [B, H, N, D] and the probabilities (after dropout) [B, H, N, M], in q's
    dtype; the softmax is in fp32 at least.

    Example:
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8)
        >>> out, _ = gated_attention(q, k, v, torch.rand(2, 5, 5))
        >>> out.shape
        torch.Size([1, 2, 5, 8])
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if allowed is not None:
        # 0 * NaN is NaN: what hidden keys hold must not meet even a zero probability.
        seen = allowed.any(dim=-2).any(dim=1)[:, None, :, None]  # [B, 1, M, 1]
        k, v = torch.where(seen, k, 0.0), torch.where(seen, v, 0.0)
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    probabilities = gated_probabilities(scores, mask, allowed, gate=gate)
    probabilities = torch.nn.functional.dropout(probabilities.to(q.dtype), dropout_p)
    return probabilities @ v, probabilities
