"""Pieces: tiles over some of a mask's entries, and the operations that make and change them.

`cut` cuts the groups of a row order into tiles of the best heights. `peel` takes the columns that
many rows of a group share out of a mask. `give_back` returns the entries of peeled tiles that do
not pay. Together they split a mask into disjoint pieces, each with the row order that suits it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from sparsebert.compiler import bitmatrix
from sparsebert.compiler.orders import SMALLEST, Order
from sparsebert.tiles.format import COLUMN_CHUNK
from sparsebert.tiles.outlines import TileOutlines

Price = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""price(height, real rows [T], padded columns [T]) -> cost of each tile, [T]."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tiles that cover exactly the entries of `words`, each row by one tile at most.

    Attributes:
        name: how the rows were grouped.
        words: uint64 [N, words], the entries.
        tiles: the tiles by height, tallest first.
        cost: sum of the tiles' prices when it was made.
    """

    name: str
    words: np.ndarray
    tiles: tuple[TileOutlines, ...]
    cost: float


def all_tiles(pieces: Iterable[Piece]) -> list[TileOutlines]:
    """The tiles of all pieces."""
    return [tiles for piece in pieces for tiles in piece.tiles]


def cut(words: np.ndarray, order: Order, price: Price, heights: tuple[int, ...]) -> Piece:
    """Cut the groups of an order into tiles: each group in halves wherever that is cheaper."""
    return cut_variants(words, order, price, (heights,))[0]


def cut_variants(
    words: np.ndarray, order: Order, price: Price, choices: tuple[tuple[int, ...], ...]
) -> list[Piece]:
    """The same for several choices of heights, one piece for each."""
    levels = _levels(words, order)
    prices = [price(level.height, level.real_rows, level.padded) for level in levels]
    return [_cheapest_halving(words, order.name, levels, prices, heights) for heights in choices]


def _levels(words: np.ndarray, order: Order) -> list[TileOutlines]:
    """All tiles that halving the groups of an order may give, by height, thinnest first."""
    union = np.bitwise_or.reduce(bitmatrix.take(words, order.rows.reshape(-1, SMALLEST)), axis=1)
    levels = [TileOutlines(order.rows.reshape(-1, SMALLEST), bitmatrix.count(union))]
    while levels[-1].height < order.rows.shape[1]:
        union = union[0::2] | union[1::2]
        height = 2 * levels[-1].height
        levels.append(TileOutlines(order.rows.reshape(-1, height), bitmatrix.count(union)))
    return levels


def _cheapest_halving(
    words: np.ndarray,
    name: str,
    levels: list[TileOutlines],
    prices: list[np.ndarray],
    heights: tuple[int, ...],
) -> Piece:
    """Decide from the thinnest tiles up which halves to join, then list the tiles that stand.

    Groups smaller than every allowed height become tiles of their own size.
    """
    allowed = [level.height in heights for level in levels]
    if not any(allowed):
        allowed[-1] = True
    cheapest = np.full(2 * len(levels[0].rows), np.inf)
    joined = []
    for level, price, usable in zip(levels, prices, allowed, strict=True):
        halves = cheapest[0::2] + cheapest[1::2]
        whole = np.where(level.width > 0, price, 0.0) if usable else np.full(len(price), np.inf)
        joined.append(whole <= halves)
        cheapest = np.minimum(whole, halves)
    cost = float(cheapest.sum())

    decided = np.zeros(len(cheapest), dtype=bool)
    chosen = []
    for level, is_joined in zip(reversed(levels), reversed(joined), strict=True):
        taken = is_joined & ~decided & (level.width > 0)
        if taken.any():
            chosen.append(TileOutlines(level.rows[taken], level.width[taken]))
        decided = np.repeat(decided | is_joined, 2)
    return Piece(name, words, tuple(chosen), cost)


def peel(words: np.ndarray, order: Order, height: int, share: float) -> np.ndarray:
    """The entries in columns that at least `share` of a group's rows have: words like `words`.

    Groups are cut to `height` rows first. The needed count is a power of two, at least 2.
    """
    slots = order.rows.reshape(-1, min(height, order.rows.shape[1]))
    typical = float(np.median((slots >= 0).sum(axis=1)))
    needed = 1 << max(1, round(np.log2(max(2.0, share * typical))))
    group = bitmatrix.take(words, slots)
    shared = bitmatrix.columns_with(group, min(needed, slots.shape[1]))
    group &= shared[:, None, :]
    peeled = np.zeros_like(words)
    peeled[slots[slots >= 0]] = group[slots >= 0]
    return peeled


def give_back(piece: Piece, plain: Piece, price: Price, chunk: int = COLUMN_CHUNK) -> np.ndarray:
    """The entries of `piece` whose tiles cost more than they save, as words.

    What a tile saves is what the tiles of `plain` would grow by if they had its entries too, at
    the price of a chunk of columns.
    """
    tile_of_row, union, column_price = _plain_unions(plain, price, chunk)
    returned = np.zeros_like(piece.words)
    for tiles in piece.tiles:
        index, slot = np.nonzero(tiles.rows >= 0)
        rows = tiles.rows[index, slot]
        target = tile_of_row[rows]
        order = np.lexsort((target, index))
        index, target, rows = index[order], target[order], rows[order]
        starts = np.flatnonzero(
            np.r_[True, (index[1:] != index[:-1]) | (target[1:] != target[:-1])]
        )
        moved = np.bitwise_or.reduceat(piece.words[rows], starts, axis=0)
        growth = bitmatrix.count(moved & ~union[target[starts]]) * column_price[target[starts]]
        saved = np.bincount(index[starts], weights=growth, minlength=len(tiles.rows))
        loses = saved < price(tiles.height, tiles.real_rows, tiles.padded)
        back = tiles.rows[loses]
        back = back[back >= 0]
        returned[back] = piece.words[back]
    return returned


def _plain_unions(
    plain: Piece, price: Price, chunk: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row its tile, and for each tile its columns and the price of one more column.

    Rows without a tile get one that has no columns yet, at the price of the cheapest.
    """
    tile_of_row = np.full(len(plain.words), -1, dtype=np.int64)
    unions, prices, first = [], [], 0
    for tiles in plain.tiles:
        count = len(tiles.rows)
        index, slot = np.nonzero(tiles.rows >= 0)
        tile_of_row[tiles.rows[index, slot]] = first + index
        unions.append(np.bitwise_or.reduce(bitmatrix.take(plain.words, tiles.rows), axis=1))
        wider = price(tiles.height, tiles.real_rows, tiles.padded + chunk)
        now = price(tiles.height, tiles.real_rows, tiles.padded)
        prices.append((wider - now) / chunk)
        first += count
    alone, columns = np.full(1, SMALLEST), np.full(1, chunk)
    one_column = price(SMALLEST, alone, columns * 2) - price(SMALLEST, alone, columns)
    unions.append(np.zeros((1, plain.words.shape[1]), dtype=plain.words.dtype))
    prices.append(one_column / chunk)
    tile_of_row[tile_of_row < 0] = first
    return tile_of_row, np.concatenate(unions), np.concatenate(prices)


def split_wide(pieces: tuple[Piece, ...], limit: int, columns: int) -> Iterator[Piece]:
    """Pieces whose tiles with more than `limit` columns are split into ranges of columns."""
    for piece in pieces:
        widest = max((int(tiles.width.max()) for tiles in piece.tiles), default=0)
        if widest <= limit:
            yield piece
            continue
        wide = np.zeros_like(piece.words)
        for tiles in piece.tiles:
            rows = tiles.rows[tiles.width > limit]
            rows = rows[rows >= 0]
            wide[rows] = piece.words[rows]
        narrow = tuple(_some(tiles, tiles.width <= limit) for tiles in piece.tiles)
        yield _rebuild(piece, piece.words ^ wide, narrow, piece.name)
        parts = -(-widest // limit)
        edges = np.linspace(0, columns, parts + 1).astype(np.int64)
        wide_rows = [tiles.rows[tiles.width > limit] for tiles in piece.tiles]
        for start, stop in itertools.pairwise(edges):
            inside = wide & bitmatrix.column_range(start, stop, wide.shape[1])
            part = tuple(
                TileOutlines(_with_entries(inside, rows), _widths(inside, rows))
                for rows in wide_rows
            )
            yield _rebuild(piece, inside, part, f"{piece.name} (split by columns)")


def _with_entries(words: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The slots [T, height] of tiles without the rows that have no entry; the empty ones last."""
    has_entries = np.asarray(words.any(axis=1))
    used = (rows >= 0) & has_entries[np.maximum(rows, 0)]
    order = np.argsort(~used, axis=1, kind="stable")
    kept: np.ndarray = np.take_along_axis(np.where(used, rows, -1), order, axis=1)
    return kept


def _some(tiles: TileOutlines, keep: np.ndarray) -> TileOutlines:
    return TileOutlines(tiles.rows[keep], tiles.width[keep])


def _widths(words: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return bitmatrix.count(np.bitwise_or.reduce(bitmatrix.take(words, rows), axis=1))


def _rebuild(piece: Piece, words: np.ndarray, tiles: tuple[TileOutlines, ...], name: str) -> Piece:
    """The piece with other entries and tiles, less the tiles that are empty now."""
    kept = tuple(_some(t, t.width > 0) for t in tiles if (t.width > 0).any())
    return dataclasses.replace(piece, name=name, words=words, tiles=kept)
