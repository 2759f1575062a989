"""Dense attention by torch's SDPA itself, differentiated by torch.

For plans that run wholly dense: our own op around it would take longer than short sequences do.
"""

from __future__ import annotations

import torch

from sparsebert.backends.call import expand_heads, needed
from sparsebert.backends.dense import allowed_positions, rows_without_any
from sparsebert.support.tensors import may_hold_any


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    unused: torch.Tensor | None,
    key_mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """o [B, H, N, D] of q [B, H, N, D] and k, v [B, H_kv, M, D].

    Args:
        mask: bool [H or 1, N, M], every query with a key at least; None for everything.
        unused: bool [H or 1, M], keys that no query attends to; None if there are none.
        key_mask: bool [B, M].
    """
    key_mask = needed(key_mask)
    hidden = None if unused is None else unused[None]
    if key_mask is not None:
        padding = ~key_mask[:, None, :]
        hidden = padding if hidden is None else padding | hidden
    if hidden is not None:  # 0 * NaN would be NaN
        k, v = (_zero_rows(x, hidden, q.shape[1]) for x in (k, v))
    allowed = allowed_positions(mask, key_mask)
    if key_mask is None or allowed is None:
        return _sdpa(q, k, v, allowed, scale)
    dead = rows_without_any(allowed)[..., None]
    if not may_hold_any(dead):
        return _sdpa(q, k, v, allowed, scale)
    # They attend to everything, which is finite, and what comes of it is thrown away.
    o = _sdpa(q.masked_fill(dead, 0.0), k, v, allowed | dead, scale)
    return o.masked_fill(dead, 0.0)


def _zero_rows(x: torch.Tensor, hidden: torch.Tensor, heads: int) -> torch.Tensor:
    """x [B, H_kv, M, D] with zeros where `hidden` [B or 1, H or 1, M], and in its gradient."""
    if hidden.shape[1] not in (1, x.shape[1]):  # a key head may be hidden for one query head only
        x = expand_heads(x, heads)
    return x.masked_fill(hidden[..., None], 0.0)


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    grouped = int(q.shape[1]) != int(k.shape[1])  # sizes are tensors under torch.jit.trace
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped
    )
