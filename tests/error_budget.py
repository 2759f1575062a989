"""Error budgets that follow from the arithmetic; no test picks a tolerance by hand.

A result in some dtype may err by at most twice as much as dense PyTorch does in the same dtype,
on the same (already rounded) inputs, against the fp64 reference, plus one rounding step of the
largest value. dq and dk are sums of differences dP - delta, which cancel (to exactly zero for a
row with one key), so one fp32 rounding step of what cancels is added there. For fp64 the reference
is no more precise than the result; there the bound is that of a sum of as many terms as any
element has, rounded at every step.
"""

from __future__ import annotations

import torch


def dense_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    allowed: torch.Tensor,
    scale: float,
    factor: torch.Tensor | None = None,
) -> torch.Tensor:
    """What a user would call in their dtype; allowed and the dropout factor are [B, H, N, M].

    torch's own attention, or where there is dropout, which that draws itself, its formula.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    dead = ~allowed.any(-1, keepdim=True)
    allowed = allowed | dead
    if factor is None:
        o = torch.nn.functional.scaled_dot_product_attention(q, k, v, allowed, scale=scale)
    else:
        scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~allowed, float("-inf"))
        o = (torch.softmax(scores, -1) * factor) @ v
    return o.masked_fill(dead, 0.0)


def dense_lse(
    q: torch.Tensor, k: torch.Tensor, allowed: torch.Tensor, scale: float
) -> torch.Tensor:
    """The LSE by plain operations in q's dtype, -inf in dead rows."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~allowed, float("-inf"))
    return torch.logsumexp(scores, -1)


def budget(exact: torch.Tensor, dense: torch.Tensor, cancelling: float = 0.0) -> float:
    """The largest error allowed.

    `exact` is in fp64, `dense` by PyTorch in the tested dtype, `cancelling` the size of the terms
    that cancel in the result.
    """
    if exact.numel() == 0:
        return 0.0
    rounding = torch.finfo(dense.dtype).eps * exact.abs().max().item()
    return 2.0 * error(dense, exact) + rounding + torch.finfo(torch.float32).eps * cancelling


def budget_fp64(exact: torch.Tensor, length: int) -> float:
    """The rounding of a chain of `length` fp64 operations on values of the size of the result."""
    return length * torch.finfo(torch.float64).eps * max(1.0, exact.abs().max().item())


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest absolute difference; NaN anywhere counts as infinite."""
    difference = (result.double() - exact).abs()
    return difference.nan_to_num(nan=float("inf")).max().item() if difference.numel() else 0.0
