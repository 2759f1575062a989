"""The expected executed area: what the kernels pay for a mask that is still a set of chances."""

from __future__ import annotations

import torch

from sparsebert.dam.priced_tiles import PricedTiles
from sparsebert.dam.structure import Layout, first_in_tile

KINDS = ("l1", "expected_l1", "executed_area", "plan")


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
