"""Attention with all scores, for what no plan can express: biases, 4-D masks, given weights."""

from __future__ import annotations

import torch
from torch.nn import functional


def dense_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    allowed: torch.Tensor,
    *,
    bias: torch.Tensor | None,
    scale: float,
    dropout_p: float,
    need_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """softmax(scale q k^T + bias) v over the allowed positions; a row without any gives zeros.

    Args:
        q: [B, H, N, D]; k, v: [B, H_kv, M, D], H a multiple of H_kv.
        allowed: bool, broadcasts to [B, H, N, M].
        bias: added to the scores, broadcasts likewise, or None.
        dropout_p: dropout of the probabilities, drawn from torch's generator.
        need_weights: also return the probabilities (after dropout, as transformers' eager does).

    Returns the output [B, H, N, D], and the probabilities [B, H, N, M] or None.
    """
    alive = allowed.any(dim=-1, keepdim=True)  # [B, H, N, 1]
    # What no query sees, and queries that see nothing, may hold anything: 0 * NaN would be NaN.
    q = q.masked_fill(~alive, 0.0)
    unseen = _unseen_keys(allowed, k.shape[1])
    k, v = k.masked_fill(unseen, 0.0), v.masked_fill(unseen, 0.0)
    # A row without any allowed position sees everything, so that its softmax is finite, and is
    # set to zero afterwards, which also makes its gradients exactly zero.
    if bias is not None:  # which may hold -inf in all of such a row
        bias = bias.to(q.dtype).masked_fill(~allowed, -torch.inf).masked_fill(~alive, 0.0)
    allowed = allowed | ~alive
    if not need_weights:
        out = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=allowed if bias is None else bias,
            dropout_p=dropout_p,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out.masked_fill(~alive, 0.0), None

    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(-1, -2) * scale
    scores = scores.masked_fill(~allowed, -torch.inf) if bias is None else scores + bias
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))
    weights = functional.dropout(weights.masked_fill(~alive, 0.0).to(q.dtype), p=dropout_p)
    return weights @ v, weights


def _unseen_keys(allowed: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Keys that no query of the heads sharing them attends to: bool [B or 1, H_kv or 1, M, 1]."""
    seen = allowed.any(dim=-2)
    if seen.shape[1] not in (1, kv_heads):
        seen = seen.unflatten(1, (kv_heads, -1)).any(dim=2)
    return ~seen[..., None]
