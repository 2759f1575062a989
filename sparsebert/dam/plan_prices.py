"""From a mask to the tiles that a plan would run it in, priced by the cost model.

The searches are the compiler's own. What is left out of the prices is what does not depend on
the columns: calls, launches, tiles and rows as such, merging.
"""

from __future__ import annotations

import numpy as np
import torch

from sparsebert.backends.routing import planned_for
from sparsebert.compiler.aim import Aim
from sparsebert.compiler.compile import complete
from sparsebert.compiler.cost.model import DEFAULT_HEAD_DIM
from sparsebert.compiler.shared_tiles import tiles_of
from sparsebert.dam.priced_tiles import PricedTiles
from sparsebert.dam.structure import Layout, first_in_group
from sparsebert.masks import AttentionMask
from sparsebert.tiles.format import HEIGHTS, TileSet
from sparsebert.tiles.outlines import groups_of_rows, outlines_of_head

_COLUMNS = 1024
"""Over so many columns the price of one is taken, a multiple of all steps and chunks."""


def price_tiles(
    mask: AttentionMask, layout: Layout, target: str, objective: str = "time"
) -> PricedTiles:
    """The tiles that plans of the mask's layers would have, with the prices of their columns.

    A position that a tile of its row gathers belongs to that tile: an entry of the mask to the
    one that covers it, another position to the cheapest that gathers its column, where it would
    cost next to nothing. Every other position belongs to the first, tallest tile of its row, as a
    further column of it; positions of rows without a tile to a group of rows that follow each
    other. Heads that the plan would run dense are priced in their best tiles.

    Prices are those of the forward pass at head size 64 with one thread, as the constants were
    fitted, so that processes and resumed searches agree; their unit is what a score costs in a
    full tile of the cheapest height.

    Args:
        mask: [L, H, N, N].
        layout: how the positions share parameters.
        target, objective: as for `compile_plan`, checked.
    """
    parts = [_layer(mask.layer(layer), target, objective) for layer in range(mask.num_layers)]
    group = np.concatenate([part[0] for part in parts])
    groups = int(group.max()) + 1
    column = np.zeros((len(group), groups))
    for prices, head in zip((row for part in parts for row in part[1]), column, strict=True):
        head[: len(prices)] = prices
    first = None
    if layout.structure != "full":  # where positions of one column never share a parameter
        first = torch.from_numpy(np.stack([first_in_group(layout, each) for each in group]))
    _, _, unit, entry, entry_column = parts[0]
    return PricedTiles(
        torch.from_numpy(group),
        first,
        torch.from_numpy(column / unit),
        None if entry is None else entry / unit,
        entry_column / unit,
    )


def _layer(
    mask: AttentionMask, target: str, objective: str
) -> tuple[np.ndarray, list[np.ndarray], float, float | None, float]:
    """Groups [H, N, N] and columns' prices of one layer's heads; unit and prices of entries."""
    request = complete(mask, target, objective, DEFAULT_HEAD_DIM, 1, None, planned_for(target))
    packed, lengths = mask.bits[0], (mask.q_len, mask.kv_len)
    seen: dict[bytes, int] = {}
    distinct = [seen.setdefault(bits.tobytes(), len(seen)) for bits in packed]
    firsts = [distinct.index(u) for u in range(len(seen))]
    aim = Aim(
        request.target,
        request.objective,
        request.calls,
        len(distinct) if len(seen) > 1 else 1,
        request.backend,
        request.isa,
    )
    covers = aim.search([packed[head] for head in firsts], *lengths)
    tiles = tiles_of(dict(enumerate(covers)), len(covers), *lengths)
    price = _ColumnPrices(aim, *lengths)
    found = [_groups_of_head(tiles, head, price) for head in range(len(covers))]
    return (
        np.stack([found[u][0] for u in distinct]),
        [found[u][1] for u in distinct],
        price.unit,
        price.entry,
        price.entry_column,
    )


class _ColumnPrices:
    """What an aim has columns of tiles and entries cost.

    Attributes:
        unit: a score of a full tile of the cheapest height.
        entry, entry_column: see `PricedTiles`.
    """

    def __init__(self, aim: Aim, q_len: int, kv_len: int) -> None:
        self._groups = aim.group_pricing(q_len, kv_len) if aim.singles else None
        self._tiles = None if aim.singles else aim.pricing(q_len, kv_len)
        self.entry = None if self._groups is None else self._groups.single
        self.entry_column = 0.0 if self._groups is None else self._groups.single_column
        heights = HEIGHTS if self._groups is None else HEIGHTS[:1]
        self.unit = min(float(self.of(h, np.array([h]))[0]) / h for h in heights)

    def of(self, height: int, rows: np.ndarray) -> np.ndarray:
        """One column of tiles of a height with so many real rows, [T]."""
        if self._groups is not None:
            return self._groups.column(rows)
        assert self._tiles is not None
        none, many = (
            self._tiles.tile(height, rows, np.full(len(rows), width)) for width in (0, _COLUMNS)
        )
        price: np.ndarray = (many - none) / _COLUMNS
        return price


def _groups_of_head(
    tiles: TileSet, head: int, price: _ColumnPrices
) -> tuple[np.ndarray, np.ndarray]:
    """The group of each position of a distinct head, [N, N], and what each pays for a column.

    The first groups are the head's tiles, in their order.
    """
    n = tiles.num_rows
    own = np.flatnonzero(tiles.head == head).tolist()
    of_row = groups_of_rows(outlines_of_head(tiles, head), n)
    rows = np.bincount(of_row, minlength=len(own))
    heights = np.full(len(rows), min(HEIGHTS))
    heights[: len(own)] = tiles.height[own]
    for group, tile in enumerate(own):
        rows[group] = np.count_nonzero(tiles.row_slots(tile) >= 0)
    column = np.empty(len(rows))
    for height in np.unique(heights):
        column[heights == height] = price.of(int(height), rows[heights == height])

    group_of = np.repeat(of_row[:, None], n, axis=1)
    cheapest = np.full((n, n), np.inf)
    for group, tile in enumerate(own):
        slots, gathered = tiles.row_slots(tile), tiles.columns(tile)[: tiles.width[tile]]
        cells = np.ix_(slots[slots >= 0], gathered)
        covered = tiles.allowed(tile)[slots >= 0, : tiles.width[tile]]
        # What a tile covers is its own, for less than any price.
        offer = np.where(covered, -1.0, column[group])
        better = offer < cheapest[cells]
        group_of[cells] = np.where(better, group, group_of[cells])
        cheapest[cells] = np.minimum(cheapest[cells], offer)
    return group_of, column
