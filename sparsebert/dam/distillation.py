"""Distillation: a sparse model held to what the dense one computes, without any labels."""

from __future__ import annotations

import torch


def hidden_distance(
    hidden: torch.Tensor, wanted: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared distance of hidden states from those wanted, as a share of these, a scalar.

    The mean over the examples of sum |h - w|^2 / sum |w|^2 over an example's real tokens: 0 where
    they agree, 1 for h = 0. An example without any real token counts as 0.

    Args:
        hidden, wanted: [B, N, E]; gradients reach hidden alone.
        attention_mask: [B, N], nonzero where tokens are real; None: all are. What padding holds,
            NaN included, has no part in the distance or its gradient.

    Computed in fp32 at least.

    Raises:
        ValueError: shapes that do not fit.
    """
    if hidden.shape != wanted.shape or hidden.ndim != 3:
        raise ValueError(
            f"hidden_distance: hidden states {list(hidden.shape)} and {list(wanted.shape)}; both "
            "must be [B, N, E]"
        )
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    wanted = wanted.detach().to(dtype)
    difference = hidden.to(dtype) - wanted
    if attention_mask is not None:
        if attention_mask.shape != hidden.shape[:2]:
            raise ValueError(
                f"hidden_distance: attention_mask is {list(attention_mask.shape)}, but must be "
                f"[B, N] = {list(hidden.shape[:2])}, one value for each hidden state"
            )
        # Before the squares: the gradient of NaN squared is NaN, even where nothing follows it.
        padding = ~attention_mask.bool()[..., None]
        difference = difference.masked_fill(padding, 0.0)
        wanted = wanted.masked_fill(padding, 0.0)
    size = wanted.square().sum((1, 2)).clamp(min=torch.finfo(dtype).tiny)
    distance: torch.Tensor = (difference.square().sum((1, 2)) / size).mean()
    return distance
