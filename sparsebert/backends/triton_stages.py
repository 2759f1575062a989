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
