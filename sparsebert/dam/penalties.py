"""What is added to the loss to make a mask sparse, or cheap to execute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from sparsebert.dam.priced_tiles import PricedTiles
from sparsebert.dam.structure import Layout, first_in_tile
from sparsebert.support import checks

_NAME = "DifferentiableAttentionMask.penalty"
KINDS = ("l1", "expected_l1", "executed_area", "plan")


def mask_penalty(
    alpha: torch.Tensor,
    layout: Layout,
    counts: torch.Tensor,
    expand: Callable[[torch.Tensor], torch.Tensor],
    *,
    drawn: torch.Tensor | None,
    kind: str,
    sample: torch.Tensor | None,
    tile_rows: int,
    tiles: PricedTiles | None,
    reduction: str,
) -> torch.Tensor:
    """The penalty of a mask whose positions are kept with probability sigmoid(alpha), a scalar.

    Args:
        alpha: [L, H, P].
        layout: how the positions share parameters.
        counts: [P], how many positions each parameter decides.
        expand: from values of the parameters, [L, H, P], to the positions, [L, H, N, N].
        drawn: values of the parameters that were drawn last, [L, H, P]; None if none were.

    The rest, and the errors: see `DifferentiableAttentionMask.penalty`.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"{_NAME}: reduction must be 'sum' or 'mean', got {reduction!r}")
    if kind not in KINDS:
        raise ValueError(f"{_NAME}: kind must be one of {KINDS}, got {kind!r}")
    if sample is not None and kind != "l1":
        raise ValueError(f"{_NAME}: kind={kind!r} takes no sample; only 'l1' does")
    if (kind == "plan") != (tiles is not None):
        raise ValueError(
            f"{_NAME}: kind={kind!r} with tiles={type(tiles).__name__}; the kind 'plan' needs the "
            "tiles of a plan, the others take none (MaskSearch(dam, ..., penalty='plan') makes "
            "them)"
        )
    size = alpha.shape[0] * alpha.shape[1] * layout.seq_len**2
    if kind in ("executed_area", "plan"):
        tile_rows = checks.integer(_NAME, "tile_rows", tile_rows, 1)
        # log(1 - sigmoid(alpha)), without 1 - p, which would round to 0 for sure positions.
        log_dropped = expand(functional.logsigmoid(-alpha))
        if tiles is None:
            total = executed_area(log_dropped, layout, tile_rows)
        else:
            total = tiles.expected(log_dropped)
    elif kind == "expected_l1":
        total = (torch.sigmoid(alpha) * counts).sum()
    elif sample is not None:
        total, size = sample.sum(), sample.numel()
    elif drawn is None:
        raise ValueError(
            f"{_NAME}: kind='l1' counts a sample, and none was drawn yet; run the model first, or "
            "pass sample=dam.sample()"
        )
    else:
        total = (drawn * counts).sum()
    return total / size if reduction == "mean" else total


def executed_area(log_dropped: torch.Tensor, layout: Layout, tile_rows: int) -> torch.Tensor:
    """Scores that tiles of `tile_rows` consecutive rows are expected to compute, a scalar.

    A tile gathers a column if one of its rows keeps it; with p the chance of each position,

        sum over tiles t and columns j of  rows(t) * (1 - prod over i in t of (1 - p_ij)),

    the product over positions that are drawn independently (those that share a parameter count
    once). So a second row in a column that a tile has anyway costs next to nothing.

    Args:
        log_dropped: log(1 - p), [L, H, N, N].
        layout: how the positions share parameters.
        tile_rows: rows of a tile.
    """
    return consecutive_tiles(layout, tile_rows).to(log_dropped.device).expected(log_dropped)


def consecutive_tiles(layout: Layout, tile_rows: int) -> PricedTiles:
    """Tiles of `tile_rows` rows in order, the same for all heads; a column costs its rows."""
    n = layout.seq_len
    first = None
    if layout.structure != "full":  # where positions of one column never share a parameter
        first = torch.from_numpy(first_in_tile(layout, tile_rows))[None]
    rows = torch.arange(n)
    return PricedTiles(
        group=(rows // tile_rows)[None, :, None].expand(1, n, n),
        first=first,
        column=(n - rows[::tile_rows]).clamp(max=tile_rows)[None].double(),
    )
