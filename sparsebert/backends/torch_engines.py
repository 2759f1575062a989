"""Batched attention of one shape, forward and backward, by two engines of equal meaning.

q, grad_o, o: [..., A, R, D]; k, v: [..., A, C, D]; lse: [..., A, R]; `allowed` is bool and
`factor` floating, both broadcastable to [..., A, R, C]; None means everything is allowed, or that
nothing is dropped.

* The fused engine calls the flash attention kernels that torch has for CPU tensors.
* The composite engine is plain torch operations, for everything those kernels lack: other
  devices, dropout, a gradient of the LSE, and derivatives of any order.
"""

from __future__ import annotations

import math

import torch


def fused_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """o [..., A, R, D] and LSE [..., A, R]. A row with nothing to attend gives 0 and 0."""
    lead = q.shape[:-3]
    o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(x.flatten(0, -4) for x in (q, k, v)), attn_mask=_bias(allowed, q), scale=scale
    )
    return o.unflatten(0, lead), lse.unflatten(0, lead)


def fused_backward(
    grad_o: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    allowed: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """dq, dk, dv; o and lse may be those of the whole row where this is a part of it."""
    lead = q.shape[:-3]
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *(x.flatten(0, -4) for x in (grad_o, q, k, v, o)),
        lse.flatten(0, -3),
        0.0,
        False,
        attn_mask=_bias(allowed, q),
        scale=scale,
    )
    return tuple(gradient.unflatten(0, lead) for gradient in gradients)


def _bias(allowed: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor | None:
    """The additive mask of the flash kernels, 4D."""
    if allowed is None:
        return None
    bias = torch.where(allowed, q.new_zeros(()), q.new_full((), -math.inf))
    return bias.expand(*q.shape[:-3], -1, -1, -1).flatten(0, -4)


def composite_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    allowed: torch.Tensor | None,
    factor: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """o and LSE. A row with nothing to attend gives 0 and -inf."""
    scores = q @ k.transpose(-1, -2) * scale
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    row_max = scores.detach().amax(-1, keepdim=True)
    row_max = row_max.masked_fill(row_max == -math.inf, 0.0)
    weights = torch.exp(scores - row_max)
    row_sum = weights.sum(-1, keepdim=True)
    dead = row_sum == 0.0
    safe_sum = row_sum.masked_fill(dead, 1.0)
    if factor is not None:
        weights = weights * factor
    lse = (row_max + safe_sum.log()).masked_fill(dead, -math.inf)
    return (weights @ v) / safe_sum, lse.squeeze(-1)


def composite_backward(
    grad_o: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    delta: torch.Tensor,
    lse: torch.Tensor,
    allowed: torch.Tensor | None,
    factor: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """dq, dk, dv; delta [..., A, R] is the row sum of grad_o * o, less the gradient of the LSE."""
    scores = (q @ k.transpose(-1, -2)).mul_(scale)
    if allowed is not None:
        scores.masked_fill_(~allowed, -math.inf)
    p = scores.sub_(lse[..., None]).exp_()
    dp = grad_o @ v.transpose(-1, -2)
    dropped = p
    if factor is not None:
        dropped = p * factor
        dp.mul_(factor)
    ds = dp.sub_(delta[..., None]).mul_(p).mul_(scale)
    return ds @ k, ds.transpose(-1, -2) @ q, dropped.transpose(-1, -2) @ grad_o
