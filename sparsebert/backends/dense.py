"""The dense route: all N x M scores, for heads where skipping does not pay.

Tensors are [B, H, N, D] here, `mask` is bool [H or 1, N, M] or None for everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from sparsebert.backends import torch_engines as engines
from sparsebert.backends.call import SCRATCH, Call
from sparsebert.support.tensors import may_hold_any


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, call: Call
) -> tuple[torch.Tensor, torch.Tensor]:
    """o [B, H, N, D] and LSE [B, H, N]; without `call.fused` differentiable to any order."""
    if call.fused:
        allowed = allowed_positions(mask, call.key_mask)
        o, lse = engines.fused_forward(q, k, v, allowed, call.scale)
        if call.key_mask is not None and allowed is not None:  # a row may have lost all its keys
            hidden = rows_without_any(allowed)
            if may_hold_any(hidden):
                o = o.masked_fill(hidden[..., None], 0.0)
                lse = lse.masked_fill(hidden, -math.inf)
        return o, lse
    parts = [
        engines.composite_forward(q[:, :, rows], k, v, allowed, factor, call.scale)
        for rows, allowed, factor in _steps(q, k, mask, call)
    ]
    return torch.cat([o for o, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def backward(
    grad_o: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    mask: torch.Tensor | None,
    call: Call,
) -> tuple[torch.Tensor, ...]:
    """Gradients of q, k and v; `o` and `lse` are the forward's results."""
    lse = lse.masked_fill(lse == -math.inf, 0.0)  # a dead row has exp(-inf - 0) = 0 everywhere
    if call.fused:
        allowed = allowed_positions(mask, call.key_mask)
        return engines.fused_backward(grad_o, q, k, v, o, lse, allowed, call.scale)
    delta = (grad_o * o).sum(-1) if grad_lse is None else (grad_o * o).sum(-1) - grad_lse
    parts_dq, dk, dv = [], torch.zeros_like(k), torch.zeros_like(v)
    for rows, allowed, factor in _steps(q, k, mask, call):
        dq_part, dk_part, dv_part = engines.composite_backward(
            grad_o[:, :, rows], q[:, :, rows], k, v, delta[:, :, rows], lse[:, :, rows],
            allowed, factor, call.scale,
        )  # fmt: skip
        parts_dq.append(dq_part)
        dk += dk_part
        dv += dv_part
    return torch.cat(parts_dq, 2), dk, dv


def allowed_positions(
    mask: torch.Tensor | None, key_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """Mask and key mask together: bool [B or 1, H or 1, N or 1, M]; None for everything."""
    if key_mask is None:
        return None if mask is None else mask[None]
    real = key_mask[:, None, None, :]
    return real if mask is None else mask[None] & real


def rows_without_any(allowed: torch.Tensor) -> torch.Tensor:
    """Queries that may attend to nothing: bool [B or 1, H or 1, N or 1].

    As bytes, because on the CPU `any` over the last dimension takes up to 70 times as long.
    """
    return allowed.view(torch.uint8).amax(dim=-1) == 0


def _steps(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, call: Call
) -> Iterator[tuple[slice, torch.Tensor | None, torch.Tensor | None]]:
    """Cut the queries into steps of bounded memory."""
    batch, heads, q_len, _ = q.shape
    kv_len = k.shape[2]
    size = max(1, SCRATCH // max(1, batch * heads * kv_len))  # the batch may be empty
    for start in range(0, q_len, size):
        rows = slice(start, min(start + size, q_len))
        allowed = allowed_positions(None if mask is None else mask[:, rows], call.key_mask)
        factor = None
        if call.dropout is not None:
            query = torch.arange(rows.start, rows.stop, device=q.device)[:, None]
            key = torch.arange(kv_len, device=q.device)
            keys = call.dropout.keys[:, :, None, None]
            factor = call.dropout.factor(keys, query, key, q.dtype)
        yield rows, allowed, factor
