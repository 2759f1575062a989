"""Choosing tiles of 16 rows, and the entries that stand alone, of one head's mask.

For backends that run single entries beside tiles. Every row order is cut into groups of 16. The
columns that many rows of a group share, so many that a tile's column costs less than their entries
would, become the group's tile if all of them together save more than a tile costs. What is left is
tried again in other orders, where rows that are in a tile already pay for being merged: the window
of a strided mask is shared by neighbours, its columns by residue classes. Whatever no tile covers
in the end stands alone.

Everything works on packed bits; no loop runs over entries or rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from sparsebert.compiler import bitmatrix
from sparsebert.compiler.bitmatrix import Words
from sparsebert.compiler.cover_search import Cover, close_ones, long_rows, name_of
from sparsebert.compiler.orders import SMALLEST, Order, equal_rows, folded, in_order, union_growth
from sparsebert.compiler.pieces import Piece, all_tiles
from sparsebert.compiler.pricing import GroupPricing
from sparsebert.compiler.strides import find_strides
from sparsebert.tiles.outlines import NO_SINGLES, Singles, TileOutlines, groups_of_rows

_MAX_TILES = 3
"""Orders that are combined, so tiles that a row may be in."""

_PROMISING = 3
"""So many covers are continued in other orders, those first that may become the cheapest."""

_LEAST_GAIN = 0.99
"""A further order must bring the cost below this share of what it was."""

_MAX_STRIDES = 4
_SAMPLED_ROWS = 24
_SAMPLED_WORDS = 16
_WORTH_GROWING = 0.02
"""Groups are grown if rows that are alike would save this share more than the best other order."""

_AT_ONCE = 1 << 25
"""Bytes of groups that are looked at together."""

_ALONE = "single entries"


@dataclasses.dataclass(frozen=True)
class _State:
    """A cover in progress.

    Attributes:
        pieces: the tiles so far.
        rest: uint64 [N, words], entries that are in none of them.
        singles: the same, counted.
        in_tile: bool [N], rows that are in one.
        cost: if the rest stands alone.
    """

    pieces: tuple[Piece, ...]
    rest: Words
    singles: Singles
    in_tile: np.ndarray
    cost: float

    @property
    def name(self) -> str:
        """How it covers the mask, in words."""
        parts = [name_of(self.pieces)] if self.pieces else []
        return " + ".join([*parts, *([_ALONE] if self.singles.entries else [])])


def best_groups(
    packed: np.ndarray,
    columns: int,
    pricing: GroupPricing,
    go_on: Callable[[], None] = lambda: None,
) -> Cover:
    """The cheapest cover found for a mask, uint8 [N, ceil(columns / 8)].

    `go_on` is called now and then, for whoever watches a long search.
    """
    words = bitmatrix.to_words(packed)
    rows = np.flatnonzero(words.any(axis=1))
    if not len(rows):
        return Cover("nothing to attend", (), pricing.total([], NO_SINGLES))
    search = _GroupSearch(pricing, words, go_on)
    usual, long = long_rows(words, rows)
    orders = [in_order(usual, SMALLEST)]
    together = equal_rows(words, usual, SMALLEST)
    orders += [together] if together else []
    orders += [
        folded(usual, stride, 1, 0, SMALLEST)
        for stride in find_strides(packed, columns, _MAX_STRIDES)
    ]
    orders = [_with_long(order, long) for order in orders]
    search.try_orders(orders)
    if search.groups_may_pay(usual):
        grown = _with_long(union_growth(words, usual, long[:0], SMALLEST), long)
        orders.append(grown)
        search.try_orders([grown])
    search.combine(orders)
    return search.result()


def _with_long(order: Order, long: np.ndarray) -> Order:
    """The order with groups of long rows at its end."""
    if not len(long):
        return order
    return Order(order.name, np.concatenate([order.rows, in_order(long, SMALLEST).rows]))


class _GroupSearch:
    """The best cover so far, and the operations that look for a better one."""

    def __init__(self, pricing: GroupPricing, words: Words, go_on: Callable[[], None]) -> None:
        self._pricing = pricing
        self._go_on = go_on
        self._tried: dict[str, float] = {}
        none = np.zeros(len(words), dtype=bool)
        self._latest: list[_State] = []
        self._first = self._best = self._state((), words, none)

    def result(self) -> Cover:
        """The best cover found."""
        best = self._best
        tried = close_ones(self._tried, best.name)
        return Cover(best.name, best.pieces, best.cost, tried, best.rest)

    def try_orders(self, orders: list[Order], state: _State | None = None) -> None:
        """Covers with the tiles of one of some orders; beside those of `state`, if it is given."""
        for order in orders:
            new = self._add(state or self._first, order)
            if new is not None:
                self._latest.append(new)
                self._best = min(self._best, new, key=lambda state: state.cost)

    def groups_may_pay(self, rows: np.ndarray) -> bool:
        """Whether groups of rows that are most alike save clearly more than the best order.

        A sample of rows says it, each with those that share the most with it in every other word;
        what they share in the words between is no accident.
        """
        rest = self._first.rest
        halves = 2 if rest.shape[1] > 1 else 1
        words = rest[rows, ::halves]
        some = np.ascontiguousarray(words[:, :: max(1, words.shape[1] // _SAMPLED_WORDS)])
        sample = np.unique(np.linspace(0, len(rows) - 1, _SAMPLED_ROWS).astype(np.int64))
        shared = np.stack([bitmatrix.count(some & some[row]) for row in sample])
        near = np.argsort(-shared, axis=1, kind="stable")[:, :SMALLEST]
        slots = np.full((len(sample), SMALLEST), -1, dtype=np.int32)
        slots[:, : near.shape[1]] = rows[near]
        group, real = bitmatrix.take(rest, slots), slots >= 0
        if halves > 1:
            group[:, :, ::halves] = 0
        _, saved = self._worth(group, real, Singles(1, 0), np.ones(len(slots), dtype=bool))
        tile = self._pricing.tile
        saved = np.maximum(halves * saved - tile, 0.0)
        grown = float(saved.mean()) * len(rows) / SMALLEST
        best = self._best.cost
        return grown - (self._first.cost - best) > _WORTH_GROWING * best

    def combine(self, orders: list[Order]) -> None:
        """Add the tiles of other orders to the best covers, as often as that pays.

        No order saves more of what is left than it did of everything.
        """
        saved = {new.pieces[0].name: self._first.cost - new.cost for new in self._latest}
        for _ in range(_MAX_TILES - 1):
            goal = _LEAST_GAIN * self._best.cost
            before, self._latest = self._latest, []
            for state in sorted(before, key=self._least)[:_PROMISING]:
                if self._least(state) > goal:
                    return
                others = [o for o in orders if o.name != state.pieces[-1].name]
                may = [o for o in others if state.cost - saved.get(o.name, 0.0) < goal]
                self.try_orders(may, state)
            if self._best.cost > goal:
                return

    def _least(self, state: _State) -> float:
        """What the cover would cost if full tiles took all that stands alone."""
        entries, pricing = state.singles.entries, self._pricing
        in_tiles = entries / SMALLEST * float(pricing.column(np.array([SMALLEST]))[0])
        alone = entries * pricing.single + state.singles.columns * pricing.single_column
        return state.cost - max(0.0, alone - in_tiles)

    def _state(self, pieces: tuple[Piece, ...], rest: Words, in_tile: np.ndarray) -> _State:
        self._go_on()
        singles = count_singles(rest, pieces)
        cost = self._pricing.total(pieces, singles)
        state = _State(pieces, rest, singles, in_tile, cost)
        self._tried[state.name] = min(cost, self._tried.get(state.name, np.inf))
        return state

    def _add(self, state: _State, order: Order) -> _State | None:
        """The cover with the tiles of an order that pay; None where none does."""
        part, in_tile = np.zeros_like(state.rest), state.in_tile.copy()
        rows, width = [], []
        step = max(1, _AT_ONCE // (SMALLEST * part[0].nbytes))
        for first in range(0, len(order.rows), step):
            slots = order.rows[first : first + step]
            group, saved = self._shared(state, slots)
            pays = saved > 0
            slots, group = _only_used(slots[pays], group[pays])
            part[slots[slots >= 0]] = group[slots >= 0]
            in_tile[slots[slots >= 0]] = True
            rows.append(slots)
            width.append(bitmatrix.count(np.bitwise_or.reduce(group, axis=1)))
        tiles = TileOutlines(np.concatenate(rows), np.concatenate(width))
        if not len(tiles.rows):
            return None
        piece = Piece(order.name, part, (tiles,), 0.0)
        return self._state((*state.pieces, piece), state.rest ^ part, in_tile)

    def _shared(self, state: _State, slots: np.ndarray) -> tuple[Words, np.ndarray]:
        """The entries that would be tiles of some groups, [G, 16, words], and what each saves."""
        group, real = bitmatrix.take(state.rest, slots), slots >= 0
        follow = slots.max(axis=1) - slots[:, 0] < 2 * SMALLEST
        columns, saved = self._worth(group, real, state.singles, follow)
        group &= columns[:, None, :]
        merged = (group.any(axis=2) & real & state.in_tile[slots]).sum(axis=1)
        return group, saved - self._pricing.tile - merged * self._pricing.merge

    def _worth(
        self, group: Words, real: np.ndarray, singles: Singles, follow: np.ndarray
    ) -> tuple[Words, np.ndarray]:
        """The columns that are worth a tile's column, [G, words], and what they save in all.

        Of groups [G, 16, words] with real rows, bool [G, 16]. Single entries of rows that follow
        each other share what they load: where the rows of a group do, bool [G], a column is loaded
        once, and elsewhere its entries share it as all of `singles` do.
        """
        pricing = self._pricing
        share = singles.columns / max(1, singles.entries)
        entry = pricing.single + np.where(follow, 0.0, share * pricing.single_column)
        column = pricing.column(real.sum(axis=1)) - np.where(follow, pricing.single_column, 0.0)
        needed = 1 + np.floor(np.maximum(0.0, column) / entry).astype(np.int64)
        columns = bitmatrix.columns_with(group, np.minimum(needed, SMALLEST + 1))
        entries = bitmatrix.count(group & columns[:, None, :]).sum(axis=1)
        return columns, entries * entry - bitmatrix.count(columns) * column


def count_singles(words: Words, pieces: Iterable[Piece]) -> Singles:
    """Entries that stand alone beside some pieces, uint64 [N, words], counted."""
    group = groups_of_rows(all_tiles(pieces), len(words))
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    union = np.bitwise_or.reduceat(words[order], starts, axis=0)
    return Singles(int(bitmatrix.count(words).sum()), int(bitmatrix.count(union).sum()))


def _only_used(slots: np.ndarray, group: Words) -> tuple[np.ndarray, Words]:
    """Groups without the rows that have no entries, [G, 16] and [G, 16, words]."""
    used = group.any(axis=2) & (slots >= 0)
    order = np.argsort(~used, axis=1, kind="stable")
    slots = np.take_along_axis(np.where(used, slots, -1), order, axis=1)
    return slots, np.take_along_axis(group, order[:, :, None], axis=1)
