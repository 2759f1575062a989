"""Which tiles of a side run first, and which rows go from one tile to the next.

A row that exactly two tiles cover can be chained: the first leaves its result in the output, and
the second, in a later launch, goes on from there. That moves a quarter of the bytes that two
partial results in scratch take, which a third launch reads again. It needs the two in different
launches, so the tiles are coloured: tiles are joined by the rows that they share, and neighbours
get different stages as far as there are two colours for them. Covers are mostly made of two parts,
each with an order of its own, and these are the colours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparsebert.compiler.cost.launches import WORTH_A_LAUNCH
from sparsebert.kernels.layout import CONTINUED, FINAL
from sparsebert.tiles.format import TileSet


class Covering(NamedTuple):
    """How tiles cover the rows of U distinct heads, and what becomes of their results.

    Attributes:
        stage: int64 [T], in which launch each tile is.
        tile: int64, the tile of each row slot.
        rows: int32, the row of each slot; -1 where it is empty or its tile has no entry of the
            row: a key row that attends to nothing may hold NaN, and should not even be loaded.
        slots: int32, for each row slot: `FINAL`, `CONTINUED` or the row's place in scratch.
        partials: int64 [U, rows], partial results of each row.
        first: int64 [U, rows], the number of the first of them; those of a head are numbered
            together, those of a row lie next to each other.
        covered: bool [U, rows], whether any tile covers the row.
    """

    stage: np.ndarray
    tile: np.ndarray
    rows: np.ndarray
    slots: np.ndarray
    partials: np.ndarray
    first: np.ndarray
    covered: np.ndarray

    def tiles_with(self, flags: np.ndarray) -> np.ndarray:
        """Whether any row slot of each tile has its flag set, bool [T]."""
        found: np.ndarray = np.bincount(self.tile[flags], minlength=len(self.stage)) > 0
        return found


def cover_rows(tiles: TileSet) -> Covering:
    """What the tiles of one direction do to each row."""
    tile_of_slot = np.repeat(np.arange(tiles.num_tiles), np.diff(tiles.row_start))
    rows = _rows_in_use(tiles)
    used = np.flatnonzero(rows >= 0)
    tile = tile_of_slot[used]
    place = tiles.head[tile].astype(np.int64) * tiles.num_rows + rows[used]
    total = tiles.num_heads * tiles.num_rows
    stages = choose_stages(place, tile, tiles.num_tiles, total)
    covered = np.bincount(place, minlength=total)
    scratch = (covered[place] > 1) & ~stages.is_first & ~stages.goes_on

    count = np.bincount(place[scratch], minlength=total)
    count = count.reshape(tiles.num_heads, tiles.num_rows)
    first = (np.cumsum(count, axis=1) - count).astype(np.int64)
    slots = np.full(len(rows), FINAL, dtype=np.int32)
    slots[used[stages.goes_on]] = CONTINUED
    chosen = np.flatnonzero(scratch)
    chosen = chosen[np.argsort(place[chosen], kind="stable")]  # by row, in the order of its tiles
    ordered = place[chosen]
    rank = np.arange(len(chosen)) - np.searchsorted(ordered, ordered, side="left")
    slots[used[chosen]] = 2 * (first.reshape(-1)[ordered] + rank) + (rank > 0)
    is_covered = (covered > 0).reshape(count.shape)
    return Covering(stages.tile, tile_of_slot, rows, slots, count, first, is_covered)


def _rows_in_use(tiles: TileSet) -> np.ndarray:
    """The row of each slot, see `Covering.rows`."""
    rows = tiles.rows.astype(np.int32)
    for tile in np.flatnonzero(tiles.full == 0):  # else every row has entries
        words = tiles.words[tiles.word_start[tile] : tiles.word_start[tile + 1]]
        any_column = np.bitwise_or.reduce(words.reshape(-1, tiles.height[tile] // 8), axis=0)
        slots = slice(tiles.row_start[tile], tiles.row_start[tile + 1])
        used = np.unpackbits(any_column, bitorder="little") != 0
        rows[slots] = np.where(used, rows[slots], -1)
    return rows


class Stages(NamedTuple):
    """When tiles run, and how rows pass between them.

    Attributes:
        tile: int64 [T], 0 or 1, in which launch each tile is.
        is_first: bool [E], of each covering: it is the first of two of a chained row.
        goes_on: bool [E], of each covering: it is the second.
    """

    tile: np.ndarray
    is_first: np.ndarray
    goes_on: np.ndarray


def choose_stages(place: np.ndarray, tile: np.ndarray, num_tiles: int, num_places: int) -> Stages:
    """Stages of tiles, given which row each covering is of.

    Args:
        place: int64 [E], for each row slot in use the number of its row (of its head).
        tile: int64 [E], the tile that covers it.
        num_tiles: T.
        num_places: rows of all heads.
    """
    nothing = np.zeros(len(place), dtype=bool)
    unchained = Stages(np.zeros(num_tiles, dtype=np.int64), nothing, nothing)
    count = np.bincount(place, minlength=num_places)
    twice = np.flatnonzero(count[place] == 2)
    pairs = twice[np.argsort(place[twice], kind="stable")].reshape(-1, 2)
    if len(pairs) * WORTH_A_LAUNCH < num_places:
        return unchained
    stage = _two_colours(tile[pairs], num_tiles)
    of_pair = stage[tile[pairs]]
    chained = of_pair[:, 0] != of_pair[:, 1]
    if chained.sum() * WORTH_A_LAUNCH < num_places:
        return unchained
    is_first, goes_on = nothing.copy(), nothing.copy()
    is_first[pairs[chained][of_pair[chained] == 0]] = True
    goes_on[pairs[chained][of_pair[chained] == 1]] = True
    return Stages(stage, is_first, goes_on)


def _two_colours(edges: np.ndarray, num_nodes: int) -> np.ndarray:
    """0 or 1 for each node, int64 [T], so that the ends of edges [E, 2] differ where they can.

    Breadth first from one node of each connected part, by the parity of the distance.
    """
    edges = np.unique(edges, axis=0)
    ends = np.concatenate([edges, edges[:, ::-1]])
    part = np.arange(num_nodes)
    while True:  # each part takes the number of its first node
        nearest = part.copy()
        np.minimum.at(nearest, ends[:, 0], part[ends[:, 1]])
        nearest = nearest[nearest]
        if np.array_equal(nearest, part):
            break
        part = nearest
    colour = np.where(part == np.arange(num_nodes), 0, -1)
    while True:
        reached = ends[(colour[ends[:, 0]] >= 0) & (colour[ends[:, 1]] < 0)]
        if not len(reached):
            return colour
        colour[reached[:, 1]] = 1 - colour[reached[:, 0]]
