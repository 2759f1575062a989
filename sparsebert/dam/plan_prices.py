"""From a mask to the tiles that a plan would run it in, priced by the cost model.

The searches are the compiler's own. What is left out of the prices is what does not depend on
the columns: calls, launches, tiles and rows as such, merging.
"""

from __future__ import annotations

import numpy as np
import torch

from sparsebert.backends.routing import planned_for
from sparsebert.compiler.aim import Aim
from sparsebert.compiler.cost.instruction_sets import isa_for
from sparsebert.compiler.cost.model import DEFAULT_HEAD_DIM, usual_copies
from sparsebert.compiler.shared_tiles import tiles_of
from sparsebert.dam.penalties import consecutive_tiles
from sparsebert.dam.priced_tiles import PricedTiles
from sparsebert.dam.structure import Layout, first_in_group
from sparsebert.masks import AttentionMask
from sparsebert.tiles.format import HEIGHTS, TileSet
from sparsebert.tiles.outlines import groups_of_rows, outlines_of_head

_COLUMNS = 1024
"""Over so many columns the price of one is taken, a multiple of all steps and chunks."""


def price_tiles(mask: AttentionMask, layout: Layout, target: str, objective: str) -> PricedTiles:
    """The tiles that plans of the mask's layers would have, with the prices of their columns.

    A position that a tile of its row gathers belongs to that tile: an entry of the mask to the
    one that covers it, another position to the cheapest that gathers its column, where it would
    cost next to nothing. Every other position belongs to the first, tallest tile of its row, as a
    further column of it; positions of rows without a tile to a group of rows that follow each
    other. Heads that the plan would run dense are priced in their best tiles.

    Prices by time are those of the forward pass at head size 64 with one thread, as the constants
    were fitted, so that processes and resumed searches agree. The unit of all is what a score
    costs in a full tile of the cheapest height.

    Args:
        mask: [L, H, N, N].
        layout: how the positions share parameters.
        target, objective: as for `compile_plan`, checked.
    """
    lengths = mask.q_len, mask.kv_len
    aim = _aim(mask.num_heads, target, objective)
    price = _ColumnPrices(aim, *lengths)
    found: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}  # by a head's bits
    heads = [bits for layer in mask.bits for bits in layer]
    distinct = list({bits.tobytes(): bits for bits in heads}.items())
    covers = dict(enumerate(aim.search([bits for _, bits in distinct], *lengths)))
    tiles = tiles_of(covers, len(covers), *lengths)
    for head, (key, _) in enumerate(distinct):
        found[key] = _groups_of_head(tiles, head, price)
    groups, columns = zip(*(found[bits.tobytes()] for bits in heads), strict=True)
    column = np.zeros((len(heads), max(map(len, columns))))
    for row, prices in zip(column, columns, strict=True):
        row[: len(prices)] = prices
    first = None
    if layout.structure != "full":  # where positions of one column never share a parameter
        first = torch.from_numpy(np.stack([first_in_group(layout, each) for each in groups]))
    return price.tiles(torch.from_numpy(np.stack(groups)), first, column)


def tiles_in_order(layout: Layout, heads: int, target: str, objective: str) -> PricedTiles:
    """The lowest tiles, of rows that follow each other, the same for all heads, priced alike."""
    n, height = layout.seq_len, min(HEIGHTS)
    price = _ColumnPrices(_aim(heads, target, objective), n, n)
    in_order = consecutive_tiles(layout, height)
    rows = in_order.column[0].numpy().astype(np.int64)
    return price.tiles(in_order.group, in_order.first, price.of(height, rows)[None])


def _aim(heads: int, target: str, objective: str) -> Aim:
    """What plans are searched for by, of layers whose heads differ."""
    backend = planned_for(target)
    calls = DEFAULT_HEAD_DIM, 1, usual_copies(target, heads)
    return Aim(target, objective, calls, heads, backend, isa_for(target, backend))


class _ColumnPrices:
    """What an aim has columns of tiles and entries cost.

    The unit of `PricedTiles` is a score of a full tile of the cheapest height.
    """

    def __init__(self, aim: Aim, q_len: int, kv_len: int) -> None:
        self._groups = aim.group_pricing(q_len, kv_len) if aim.singles else None
        self._tiles = None if aim.singles else aim.pricing(q_len, kv_len)
        heights = HEIGHTS if self._groups is None else HEIGHTS[:1]
        self._unit = min(float(self.of(h, np.array([h]))[0]) / h for h in heights)

    def tiles(
        self, group: torch.Tensor, first: torch.Tensor | None, column: np.ndarray
    ) -> PricedTiles:
        """Tiles whose columns have these prices, [K, G], and what entries cost beside them."""
        column = column / self._unit
        if self._groups is None:
            return PricedTiles(group, first, torch.from_numpy(column))
        entry = self._groups.single / self._unit
        entry_column = self._groups.single_column / self._unit
        return PricedTiles(group, first, torch.from_numpy(column), entry, entry_column)

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
