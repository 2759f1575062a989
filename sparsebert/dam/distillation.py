"""Distillation: a sparse model held to what the dense one computes, without any labels."""

from __future__ import annotations

import torch


def hidden_distance(
    hidden: torch.Tensor, wanted: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared distance of hidden states from those wanted, as a share of these, a scalar.

    sum |h - w|^2 / sum |w|^2 over the real tokens: 0 where they agree, 1 for h = 0.

    Args:
        hidden, wanted: [B, N, E]; gradients reach hidden alone.
        attention_mask: [B, N], nonzero where tokens are real; None: all are.
    """
    wanted = wanted.detach().float()
    squares = (hidden.float() - wanted).square().sum(-1), wanted.square().sum(-1)
    if attention_mask is not None:
        real = attention_mask.bool()
        squares = squares[0].masked_fill(~real, 0.0), squares[1].masked_fill(~real, 0.0)
    distance: torch.Tensor = squares[0].sum() / squares[1].sum()
    return distance
