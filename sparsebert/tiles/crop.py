"""Cropping tiles: those of the top-left part of a mask, from those of the whole."""

from __future__ import annotations

import itertools

import numpy as np

from sparsebert.tiles.assemble import UNPACKED_LIMIT, LooseTiles, assemble, ragged_index
from sparsebert.tiles.entries import crop_entries
from sparsebert.tiles.format import HEIGHTS, TileSet, pad_columns


def crop_tiles(tiles: TileSet, num_rows: int, num_cols: int) -> TileSet:
    """The tiles, and single entries, of the first `num_rows` rows and `num_cols` columns.

    Rows and columns beyond are dropped, then columns that no row left attends to, then empty
    tiles; tiles get the least height that holds their rows. Nothing is compiled again.
    """
    inside = (tiles.rows >= 0) & (tiles.rows < num_rows)
    left = np.diff(np.concatenate([[0], np.cumsum(inside)])[tiles.row_start])
    new_height = np.array(HEIGHTS)[np.searchsorted(HEIGHTS, left)]
    pieces = []
    for height, new in itertools.product(HEIGHTS, HEIGHTS):
        chosen = np.flatnonzero((tiles.height == height) & (new_height == new) & (left > 0))
        if not len(chosen):
            continue
        step = max(1, UNPACKED_LIMIT // (height * int(tiles.padded_width[chosen].max())))
        pieces += [
            _crop_tiles(tiles, chosen[start : start + step], new, num_rows, num_cols)
            for start in range(0, len(chosen), step)
        ]
    entries = crop_entries(tiles.entries, tiles.num_heads, tiles.num_rows, num_rows, num_cols)
    return assemble(pieces, tiles.num_heads, num_rows, num_cols, entries)


def _crop_tiles(
    tiles: TileSet, chosen: np.ndarray, new_height: int, num_rows: int, num_cols: int
) -> LooseTiles:
    """The same for some tiles that have one height, and one new height."""
    height, count = int(tiles.height[chosen[0]]), len(chosen)
    rows = tiles.rows[ragged_index(tiles.row_start, chosen)].reshape(count, height)
    keep_row = (rows >= 0) & (rows < num_rows)
    # Rows kept first, in their order.
    moved = np.argsort(~keep_row, axis=1, kind="stable")[:, :new_height]
    rows = np.where(keep_row, rows, -1)
    rows = np.take_along_axis(rows, moved, axis=1)

    # One line for each listed column of each tile: who attends to it, in the new row order.
    full, width = tiles.full[chosen].astype(np.int64), tiles.width[chosen].astype(np.int64)
    padded = tiles.padded_width[chosen]
    tile = np.repeat(np.arange(count), padded)
    rank = np.arange(len(tile)) - np.repeat(np.cumsum(padded) - padded, padded)
    is_full = rank < full[tile]
    bits = np.zeros((len(tile), height), dtype=bool)
    words = tiles.words[ragged_index(tiles.word_start, chosen)].reshape(-1, height // 8)
    bits[~is_full] = np.unpackbits(words, axis=1, bitorder="little").view(bool)
    bits = np.take_along_axis(bits, moved[tile], axis=1)
    bits[is_full] = True
    bits &= (rows >= 0)[tile]
    cols = tiles.cols[ragged_index(tiles.col_start, chosen)]
    keep = (cols < num_cols) & (rank < width[tile]) & bits.any(axis=1)

    full = np.bincount(tile[keep & is_full], minlength=count)
    width = np.bincount(tile[keep], minlength=count)
    padded = pad_columns(width)
    source = np.flatnonzero(keep)
    # Each new column's place among those kept; padding repeats the last one of its tile.
    tile = np.repeat(np.arange(count), padded)
    rank = np.arange(len(tile)) - np.repeat(np.cumsum(padded) - padded, padded)
    place = (np.cumsum(width) - width)[tile] + np.minimum(rank, width[tile] - 1)
    source = source[place]
    bits = bits[source] & (rank < width[tile])[:, None]
    return LooseTiles(
        head=tiles.head[chosen],
        height=np.full(count, new_height, dtype=np.int32),
        rows=rows.astype(np.int32).reshape(-1),
        full=full.astype(np.int32),
        width=width.astype(np.int32),
        padded=padded,
        cols=cols[source],
        word_bytes=(padded - full) * (new_height // 8),
        words=np.packbits(bits[rank >= full[tile]], axis=1, bitorder="little").reshape(-1),
    )
