"""The masks that a search draws: by chance (Gumbel-sigmoid), or the likeliest positions (top)."""

from __future__ import annotations

import torch

SAMPLINGS = ("gumbel", "top")


def gumbel_sigmoid(
    alpha: torch.Tensor, temperature: torch.Tensor, generator: torch.Generator | None
) -> torch.Tensor:
    """sigmoid((alpha + G1 - G2) / temperature) with G1, G2 ~ Gumbel(0, 1), of alpha's shape."""
    # log u - log(1 - u) is distributed as the difference of two Gumbel variables.
    uniform = torch.rand(
        alpha.shape, generator=generator, device=alpha.device, dtype=torch.float32
    )
    logistic = torch.logit(uniform, eps=2.0**-25).to(alpha.dtype)
    return torch.sigmoid((alpha + logistic) / temperature.to(alpha.dtype))


def top_share(
    alpha: torch.Tensor, counts: torch.Tensor, density: float, scope: str
) -> torch.Tensor:
    """1 for the parameters with the largest alpha, 0 for the others, of alpha's shape and dtype.

    Args:
        alpha: [L, H, P].
        counts: [P], how many positions each parameter decides.
        density: share of the positions to keep, in (0, 1]; whole parameters, so that a little
            less may be kept, but one at least.
        scope: in each "head" alike, or "global", over all layers and heads.
    """
    values = alpha.detach().flatten(0, 1)  # a row for each head
    if scope == "global":
        values = values.reshape(1, -1)
    order = values.argsort(dim=-1, descending=True, stable=True)
    sizes = counts.double().expand_as(alpha).reshape(values.shape).gather(-1, order)
    taken = sizes.cumsum(-1) <= density * sizes.sum(-1, keepdim=True) * (1.0 + 1e-12)
    taken[:, 0] = True
    kept = torch.zeros_like(values).scatter_(-1, order, taken.to(values.dtype))
    return kept.reshape(alpha.shape)
