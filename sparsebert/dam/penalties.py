"""The expected executed area: what the kernels pay for a mask that is still a set of chances."""

from __future__ import annotations

import torch
from torch.nn import functional

from sparsebert.dam.structure import Layout, first_in_tile

KINDS = ("l1", "expected_l1", "executed_area")


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
    n = log_dropped.shape[-1]
    if layout.structure != "full":
        first = torch.from_numpy(first_in_tile(layout, tile_rows)).to(log_dropped.device)
        log_dropped = log_dropped.masked_fill(~first, 0.0)
    tiles = -(-n // tile_rows)
    padded = functional.pad(log_dropped, (0, 0, 0, tiles * tile_rows - n))  # no row: log 1
    none_kept = padded.unflatten(-2, (tiles, tile_rows)).sum(-2)  # [L, H, tiles, N]
    rows = torch.full((tiles, 1), float(tile_rows), device=padded.device, dtype=padded.dtype)
    rows[-1] = n - (tiles - 1) * tile_rows
    return -(torch.expm1(none_kept) * rows).sum()
