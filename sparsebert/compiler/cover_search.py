"""Choosing the tiles of one head's mask: the search over covers.

A *cover* is a list of pieces, each a part of the mask's entries with tiles of its own; the pieces
are disjoint and together they are the mask, so a row may be in several tiles. The search:

1. One pass. Every row order covers the whole mask by itself, with long rows (global tokens) among
   the others or apart from them. The cheapest wins.
2. Peeling. For every row order, the columns that most rows of a group share are peeled off into
   tiles of that order; what is left is covered in one pass. Peeled tiles that cost more than they
   save go back. The cheapest wins if it beats step 1, and what is left is peeled again.
3. Balance. Very wide tiles are split by columns where the cost model says that a few long programs
   would keep the machine waiting.

Everything works on packed bits; no loop runs over entries.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from sparsebert.compiler import bitmatrix
from sparsebert.compiler.orders import Order, equal_rows, folded, in_order, union_growth
from sparsebert.compiler.pieces import (
    Piece,
    all_tiles,
    cut,
    cut_variants,
    give_back,
    peel,
    split_wide,
)
from sparsebert.compiler.pricing import Pricing
from sparsebert.compiler.strides import find_strides
from sparsebert.tiles.format import COLUMN_CHUNK

_LONG_ROW = 4
"""A row is long if it has more than this many times the entries of the median row."""

_MAX_PEELS = 3
_LEAST_GAIN = 0.99
"""A further peel must bring the cost below this share of what it was."""

_SHARES = (0.5, 0.25)
"""Columns are peeled off if at least this share of a group's rows have them."""

_MAX_STRIDES = 4
_STRIPS = (2, 4, 8)
"""Widths of the strips that a folded grid is cut into, beside 1."""

_PROMISING = 3
"""The best so many orders are tried again on what the best peeling leaves."""

_ROOM = 1.25
"""So many times the usual tile's columns are not too long."""

_FINALISTS = 2
"""So many of the cheapest covers are tried with their wide tiles split."""

_MOST_PARTS = 16
"""A tile is split into so many parts at most."""

_REPORTED = 5
"""Covers that the report names beside the best."""


@dataclasses.dataclass(frozen=True)
class Cover:
    """Disjoint pieces that together cover one head's mask.

    Attributes:
        name: how the rows were grouped, in words.
        pieces: the pieces; those that were peeled off come first.
        cost: by the pricing that chose it (microseconds, or executed entries).
        tried: name and cost of the other covers that came close, cheapest first.
        singles: the entries that stand alone, words like those of the pieces; None if none may.
    """

    name: str
    pieces: tuple[Piece, ...]
    cost: float
    tried: tuple[tuple[str, float], ...] = ()
    singles: bitmatrix.Words | None = None


def close_ones(tried: dict[str, float], best: str) -> tuple[tuple[str, float], ...]:
    """Name and cost of the covers that came close to the best, cheapest first."""
    others = sorted((cost, other) for other, cost in tried.items() if other != best)
    return tuple((other, cost) for cost, other in others[:_REPORTED])


def best_cover(
    packed: np.ndarray,
    columns: int,
    pricing: Pricing,
    go_on: Callable[[], None] = lambda: None,
) -> Cover:
    """The cheapest cover found for a mask, uint8 [N, ceil(columns / 8)].

    `go_on` is called now and then, for whoever watches a long search.
    """
    words = bitmatrix.to_words(packed)
    rows = np.flatnonzero(words.any(axis=1))
    if not len(rows):
        return Cover("nothing to attend", (), pricing.total([]))
    search = _Search(pricing, go_on)
    plain, for_peeling = _orders(packed, words, rows, columns, pricing)
    for order in [*for_peeling, *plain]:
        search.one_pass(words, order)
    search.peel_repeatedly(words, for_peeling)
    search.balance(columns)
    return search.result()


def _orders(
    packed: np.ndarray, words: np.ndarray, rows: np.ndarray, columns: int, pricing: Pricing
) -> tuple[list[Order], list[Order]]:
    """Row orders worth trying for all entries only, and those worth peeling columns off too."""
    size = max(pricing.height_choices[0])
    together = equal_rows(words, rows, size)
    peeling = [in_order(rows, size), *([together] if together else [])]
    plain = []
    for stride in find_strides(packed, columns, _MAX_STRIDES):
        peeling.append(folded(rows, stride, 1, 0, size))
        offset = len(words) % stride  # special tokens stand before the grid
        plain += [folded(rows, stride, s, offset, size) for s in _STRIPS if s < stride]
    usual, long = long_rows(words, rows)
    peeling.append(union_growth(words, usual, long, pricing.greedy_height))
    return plain, peeling


def long_rows(words: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into usual and long ones."""
    counts = bitmatrix.count(words[rows])
    is_long = counts > _LONG_ROW * np.median(counts)
    return rows[~is_long], rows[is_long]


@dataclasses.dataclass(frozen=True)
class _Peeling:
    """A cover in progress: pieces peeled off, and the entries that they leave."""

    cost: float
    pieces: tuple[Piece, ...]
    rest: np.ndarray


class _Search:
    """The best cover so far, and the operations that look for a better one."""

    def __init__(self, pricing: Pricing, go_on: Callable[[], None] = lambda: None) -> None:
        self._pricing = pricing
        self._go_on = go_on
        self._heights = pricing.height_choices[0]
        self._tried: dict[str, float] = {}
        self._best: tuple[Piece, ...] = ()
        self._cost = np.inf
        self._finalists: list[tuple[float, tuple[Piece, ...]]] = []

    def result(self) -> Cover:
        """The best cover found."""
        name = name_of(self._best)
        return Cover(name, self._best, self._cost, close_ones(self._tried, name))

    def one_pass(self, words: np.ndarray, order: Order) -> None:
        """Try to cover everything in one order."""
        for pieces in self._passes(words, order, self._pricing.height_choices):
            self._offer(pieces)

    def peel_repeatedly(self, words: np.ndarray, orders: list[Order]) -> None:
        """Peel off what some order covers well, as often as that brings the cost down."""
        state = _Peeling(self._cost, (), words)
        for _ in range(_MAX_PEELS):
            best, least = None, []  # of all peelings, and the least cost with each order
            for order in orders:
                least.append(np.inf)
                for peeling in self._peel(state, order):
                    least[-1] = min(least[-1], peeling.cost)
                    best = min(best or peeling, peeling, key=lambda peeling: peeling.cost)
            if best is None or best.cost > _LEAST_GAIN * state.cost:
                return
            state = best
            orders = [orders[i] for i in np.argsort(least, kind="stable")[:_PROMISING]]

    def balance(self, columns: int) -> None:
        """Split very wide tiles by columns where that pays, in the best covers."""
        covers = [pieces for _, pieces in self._finalists] or [self._best]
        self._cost = np.inf
        for pieces in covers:
            for limit in (None, *self._limits(pieces)):
                split = pieces if limit is None else tuple(split_wide(pieces, limit, columns))
                cost = self._pricing.balanced_total(split)
                if limit is None:
                    self._tried[name_of(pieces)] = cost
                if cost < self._cost:
                    self._best, self._cost = split, cost

    def _limits(self, pieces: tuple[Piece, ...]) -> list[int]:
        """Widths to split at: the objective's, and what is a little more than the usual tile's."""
        limits, tiles = set(self._pricing.split_limits), all_tiles(pieces)
        if not limits or not tiles:
            return []
        widths = np.concatenate([each.width for each in tiles])
        limits.add(-(-int(_ROOM * float(np.median(widths))) // COLUMN_CHUNK) * COLUMN_CHUNK)
        widest = int(widths.max())
        return sorted(limit for limit in limits if limit < widest <= _MOST_PARTS * limit)

    def _offer(self, pieces: tuple[Piece, ...]) -> float:
        self._go_on()
        cost = self._pricing.total(pieces)
        name = name_of(pieces)
        self._tried[name] = min(cost, self._tried.get(name, np.inf))
        if cost < self._cost:
            self._best, self._cost = pieces, cost
        if self._pricing.split_limits and cost <= self._tried[name]:
            others = [each for each in self._finalists if name_of(each[1]) != name]
            ranked = sorted([*others, (cost, pieces)], key=lambda each: each[0])
            self._finalists = ranked[:_FINALISTS]
        return cost

    def _passes(
        self, words: np.ndarray, order: Order, choices: tuple[tuple[int, ...], ...]
    ) -> Iterator[tuple[Piece, ...]]:
        """Covers of `words` in one order: long rows among the others, and apart."""
        price, size = self._pricing.tile, max(self._heights)
        for piece in cut_variants(words, order, price, choices):
            yield (piece,)
        _, long = long_rows(words, np.flatnonzero(words.any(axis=1)))
        if not len(long):
            return
        of_long = np.zeros_like(words)
        of_long[long] = words[long]
        of_heights = choices if self._pricing.alike else (self._heights,)
        aparts = [
            dataclasses.replace(apart, name=f"{len(long)} long rows")
            for apart in cut_variants(of_long, in_order(long, size), price, of_heights)
        ] * (len(choices) // len(of_heights))
        others = cut_variants(words ^ of_long, order, price, choices)
        yield from zip(aparts, others, strict=True)

    def _plain(self, words: np.ndarray, choices: tuple[tuple[int, ...], ...]) -> tuple[Piece, ...]:
        """The cheapest cover of what peeling left, rows in order."""
        rows = np.flatnonzero(words.any(axis=1))
        if not len(rows):
            return ()
        order = in_order(rows, max(self._heights))
        return min(self._passes(words, order, choices), key=self._pricing.total)

    def _peel(self, state: _Peeling, order: Order) -> Iterator[_Peeling]:
        """Covers that peel the rest of `state` in one order."""
        for height, share in itertools.product(self._pricing.peel_heights, _SHARES):
            part = peel(state.rest, order, height, share)
            if not part.any():
                continue
            price, choices = self._pricing.peeled_tile, self._pricing.height_choices
            plain = self._plain(state.rest ^ part, (self._heights,))
            if plain:
                tiles = cut(part, order, price, self._heights)
                part ^= give_back(tiles, plain[-1], price, self._pricing.chunk)
            if not part.any():
                continue
            if self._pricing.alike:
                yield from self._peeled_alike(state, part, order)
                continue
            plain = self._plain(state.rest ^ part, choices)
            yield self._peeled(state, part, cut(part, order, price, self._heights), plain)

    def _peeled_alike(self, state: _Peeling, part: np.ndarray, order: Order) -> Iterator[_Peeling]:
        """Peelings of `part` whose tiles take their heights from the same set as those of the
        rest, for each set.
        """
        price, choices = self._pricing.peeled_tile, self._pricing.height_choices
        rest = state.rest ^ part
        rows = np.flatnonzero(rest.any(axis=1))
        plain: list[tuple[Piece, ...]] = [()] * len(choices)
        if len(rows):
            plain = list(self._passes(rest, in_order(rows, max(self._heights)), choices))
        for place, piece in enumerate(cut_variants(part, order, price, choices)):
            of_heights = plain[place :: len(choices)]
            yield self._peeled(state, part, piece, min(of_heights, key=self._pricing.total))

    def _peeled(
        self, state: _Peeling, part: np.ndarray, piece: Piece, plain: tuple[Piece, ...]
    ) -> _Peeling:
        pieces = (*state.pieces, piece)
        cost = self._offer((*pieces, *plain))
        return _Peeling(cost, pieces, state.rest ^ part)


def name_of(pieces: Iterable[Piece]) -> str:
    """How the rows of some pieces are grouped, in words."""
    return " + ".join(dict.fromkeys(piece.name for piece in pieces if piece.tiles))
