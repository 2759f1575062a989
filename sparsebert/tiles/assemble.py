"""Putting tiles together: from loose tiles, or the tiles of several sets, to one `TileSet`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sparsebert.tiles.entries import Entries, join_entries, no_entries, pick_rows
from sparsebert.tiles.format import TileSet

UNPACKED_LIMIT = 1 << 26
"""Bytes of unpacked bits that building and cropping work on at once."""


@dataclasses.dataclass(frozen=True)
class LooseTiles:
    """Some tiles in any order, empty ones too, with the arrays of `TileSet` but no starts.

    Attributes:
        head, height, full, width: as in `TileSet`, int [T].
        padded: int64 [T], columns with padding.
        word_bytes: int64 [T], bytes of each tile's words.
        rows, cols, words: of one tile after another.
    """

    head: np.ndarray
    height: np.ndarray
    rows: np.ndarray
    full: np.ndarray
    width: np.ndarray
    padded: np.ndarray
    cols: np.ndarray
    word_bytes: np.ndarray
    words: np.ndarray


def assemble(
    pieces: Sequence[LooseTiles],
    num_heads: int,
    num_rows: int,
    num_cols: int,
    entries: Entries | None = None,
) -> TileSet:
    """One TileSet of all pieces, without empty tiles, tallest first and then by work.

    `entries` are those that stand alone, of all rows of all heads; None means none.
    """
    entries = no_entries(num_heads * num_rows) if entries is None else entries

    def column(name: str, dtype: type) -> np.ndarray:
        parts = [getattr(piece, name) for piece in pieces]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)

    height, width = column("height", np.int32), column("width", np.int32)
    padded, word_bytes = column("padded", np.int64), column("word_bytes", np.int64)
    order = np.lexsort((-width, -height))
    order = order[width[order] > 0]

    def reorder(flat: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        new_starts = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)
        return flat[ragged_index(starts, order)], new_starts

    rows, row_start = reorder(column("rows", np.int32), height)
    cols, col_start = reorder(column("cols", np.int32), padded)
    words, word_start = reorder(column("words", np.uint8), word_bytes)
    return TileSet(
        num_heads=num_heads,
        num_rows=num_rows,
        num_cols=num_cols,
        head=column("head", np.int32)[order],
        height=height[order],
        row_start=row_start,
        rows=rows,
        full=column("full", np.int32)[order],
        width=width[order],
        col_start=col_start,
        cols=cols,
        word_start=word_start,
        words=words,
        entry_start=entries.start,
        entry_cols=entries.cols,
    )


def ragged_index(starts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Indices of what the chosen tiles have in a ragged array, one tile after another."""
    length = (starts[1:] - starts[:-1])[chosen]
    first = np.cumsum(length) - length
    index: np.ndarray = np.repeat(starts[chosen] - first, length) + np.arange(length.sum())
    return index


def without_heads(tiles: TileSet, dropped: np.ndarray) -> TileSet:
    """What covers all distinct heads but those that `dropped`, bool [U], names."""
    pieces = [_loose(tiles, np.flatnonzero(~dropped[tiles.head]))]
    entries = pick_rows(tiles.entries, np.repeat(~dropped, tiles.num_rows))
    return assemble(pieces, tiles.num_heads, tiles.num_rows, tiles.num_cols, entries)


def join_heads(parts: list[TileSet]) -> TileSet:
    """One set of what covers different heads of the same mask."""
    pieces = [_loose(tiles, np.arange(tiles.num_tiles)) for tiles in parts]
    entries = join_entries([tiles.entries for tiles in parts])
    return assemble(pieces, parts[0].num_heads, parts[0].num_rows, parts[0].num_cols, entries)


def _loose(tiles: TileSet, chosen: np.ndarray) -> LooseTiles:
    """The chosen tiles as `assemble` takes them."""
    return LooseTiles(
        head=tiles.head[chosen],
        height=tiles.height[chosen],
        rows=tiles.rows[ragged_index(tiles.row_start, chosen)],
        full=tiles.full[chosen],
        width=tiles.width[chosen],
        padded=tiles.padded_width[chosen],
        cols=tiles.cols[ragged_index(tiles.col_start, chosen)],
        word_bytes=np.diff(tiles.word_start)[chosen],
        words=tiles.words[ragged_index(tiles.word_start, chosen)],
    )
