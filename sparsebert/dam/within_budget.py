"""The positions of most worth that cost no more than a budget, in the tiles of a plan.

In a tile a column costs the same whether one of its rows needs it or all do. So columns are
chosen, not positions, and of a column that is gathered every position is kept: it is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sparsebert.dam.priced_tiles import PricedTiles

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_HALVINGS = 50


class _Choice(NamedTuple):
    """Positions that are kept, bool [K, N, N], and what each group pays for each column, [B]."""

    kept: Bools
    cost: Floats


def within_budget(
    worth: Floats,
    must: Bools,
    wanted: Bools,
    may: Bools,
    tiles: PricedTiles,
    budget: float,
    allow_empty_rows: bool,
) -> Bools:
    """Positions to keep, bool [K, N, N], whose cost by `tiles` is at most `budget`.

    At a given exchange rate between worth and cost the best choice is made column by column: to
    gather it, to keep some entries alone, or to leave it. The lowest rate is sought at which that
    fits the budget; what is left of it buys columns that are worth a little less.

    Args:
        worth: of each position, [K, N, N], not negative.
        must: positions that are kept in any case, [K, N, N].
        wanted: positions that are kept, too, if all of them fit the budget.
        may: those that may be kept, [N, N] or [K, N, N]; all of the others are among them.
        tiles: of K heads, or the same for all.
        budget: of all heads together, in the unit of the tiles' prices.
        allow_empty_rows: else a row that would have no position gets one that may be kept, in the
            column of most worth to the rows that it gathers together with.

    Raises:
        ValueError: what must be kept costs more.
    """
    columns = _Columns(worth, must | wanted, may, tiles)
    if columns.choose(columns.nothing_pays).cost.sum() <= budget:
        return _search(columns, budget)
    must = must.copy()
    while True:
        columns = _Columns(worth, must, may, tiles)
        kept = _search(columns, budget)
        empty = ~kept.any(axis=2) & columns.may.any(axis=2)
        if allow_empty_rows or not empty.any():
            return kept
        best = np.where(columns.may, columns.in_all[columns.place], -1.0).argmax(axis=2)
        head, row = np.nonzero(empty)
        must[head, row, best[head, row]] = True


def best_within_budget(
    worth: Floats,
    must: Bools,
    wanted: Bools,
    may: Bools,
    choices: Sequence[PricedTiles],
    budget: float,
    allow_empty_rows: bool,
) -> Bools:
    """`within_budget` in those of several tiles in which the budget buys the most worth."""
    found: list[Bools] = []
    refused: list[ValueError] = []
    for tiles in choices:
        try:
            found.append(within_budget(worth, must, wanted, may, tiles, budget, allow_empty_rows))
        except ValueError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return max(found, key=lambda kept: float(worth[kept].sum()))


def _search(columns: _Columns, budget: float) -> Bools:
    low, high = 0.0, columns.nothing_pays
    most, least = columns.choose(low), columns.choose(high)
    if most.cost.sum() <= budget:
        return most.kept
    if least.cost.sum() > budget:
        share, most_share = least.cost.sum() / columns.place.size, budget / columns.place.size
        raise ValueError(
            f"binarize: executed={most_share:.4g}, but what must stay (kept tokens, and at least "
            f"one position a row) costs a share of {share:.4f}; ask for more, or "
            "allow_empty_rows=True"
        )
    for _ in range(_HALVINGS):
        rate = 0.5 * (low + high)
        choice = columns.choose(rate)
        if choice.cost.sum() > budget:
            low, most = rate, choice
        else:
            high, least = rate, choice
    # Left are columns that no rate tells apart: those are taken that fit.
    more = most.cost - least.cost
    changed = np.flatnonzero(more)
    fits = np.cumsum(more[changed]) <= budget - least.cost.sum()
    taken = np.zeros(len(more), dtype=bool)
    taken[changed[fits]] = True
    return np.where(taken[columns.place], most.kept, least.kept)


class _Columns:
    """The columns of all groups of rows of all heads, B of them.

    Attributes:
        place: int64 [K, N, N], the column that each position is in.
        may: as for `within_budget`, [K, N, N].
        in_all: the worth of all positions of each column, [B].
        nothing_pays: a rate at which no position is worth its price.
    """

    def __init__(self, worth: Floats, must: Bools, may: Bools, tiles: PricedTiles) -> None:
        heads, n, _ = worth.shape
        group, column = tiles.group.cpu().numpy(), tiles.column.cpu().double().numpy()
        groups = column.shape[-1]
        shared = np.broadcast_to(group, worth.shape)
        self.place = (shared + np.arange(heads)[:, None, None] * groups) * n + np.arange(n)
        self._gathered = np.repeat(np.broadcast_to(column, (heads, groups)), n)
        self._entry, self._entry_column = tiles.entry, tiles.entry_column
        self._worth, self._must = np.where(may, worth, 0.0), must
        self.may = np.broadcast_to(may, worth.shape)
        self.in_all = self._sum(self._worth)
        self._with_must = self._sum(must) > 0
        prices = [price for price in (*column[column > 0], tiles.entry) if price is not None]
        self.nothing_pays = (1.0 + float(self.in_all.max())) / min(prices)

    def _sum(self, values: npt.NDArray[np.float64] | Bools) -> Floats:
        """Over the positions of each column, [B]."""
        weights = values.ravel().astype(np.float64)
        return np.bincount(self.place.ravel(), weights, len(self._gathered)).astype(np.float64)

    def choose(self, rate: float) -> _Choice:
        """The best choice where a unit of cost is worth `rate`."""
        gain = self.in_all - rate * self._gathered
        if self._entry is None:
            alone, cost = self._must, np.zeros_like(gain)
            gain_alone = np.where(self._with_must, -np.inf, 0.0)  # that cannot be
        else:
            alone = self._must | (self.may & (self._worth > rate * self._entry))
            entries = self._sum(alone)
            cost = self._entry * entries + self._entry_column * (entries > 0)
            gain_alone = self._sum(self._worth * alone) - rate * cost
        left = ~self._with_must & (gain_alone <= 0.0)
        gathered = gain > np.where(left, 0.0, gain_alone)
        cost = np.where(gathered, self._gathered, np.where(left, 0.0, cost))
        kept = np.where(gathered[self.place], self.may, alone & ~left[self.place])
        return _Choice(kept, cost)
