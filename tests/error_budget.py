"""Error budgets that follow from the arithmetic; no test picks a tolerance by hand.

A result in some dtype may err by at most twice as much as plain dense PyTorch does in the same
dtype, on the same (already rounded) inputs, against the fp64 reference, plus one rounding step of
the largest value. For fp64 itself the reference is no more precise than the result; there the
bound is that of a dot product of length D + M, rounded at every step.
"""

from __future__ import annotations

import torch


def naive_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    allowed: torch.Tensor,
    scale: float,
    factor: torch.Tensor | None = None,
) -> torch.Tensor:
    """What a user would write in their dtype: dense scores, -inf, softmax; allowed [B, H, N, M]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    dead = ~allowed.any(-1, keepdim=True)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~(allowed | dead), float("-inf"))
    p = torch.softmax(scores, -1).masked_fill(dead, 0.0)
    return (p if factor is None else p * factor) @ v


def budget(exact: torch.Tensor, dense: torch.Tensor) -> float:
    """The largest error allowed: `exact` in fp64, `dense` by plain PyTorch in the tested dtype."""
    largest = exact.abs().max().item() if exact.numel() else 0.0
    dense_error = (dense.double() - exact).abs().max().item() if exact.numel() else 0.0
    return 2.0 * dense_error + torch.finfo(dense.dtype).eps * largest


def budget_fp64(exact: torch.Tensor, length: int) -> float:
    """The rounding of a chain of `length` fp64 operations on values of the size of the result."""
    return length * torch.finfo(torch.float64).eps * max(1.0, exact.abs().max().item())


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest absolute difference; NaN anywhere counts as infinite."""
    difference = (result.double() - exact).abs()
    return difference.nan_to_num(nan=float("inf")).max().item() if difference.numel() else 0.0
