"""Building tiles: from the rows of each tile and the mask's bits to a `TileSet`."""

from __future__ import annotations

import dataclasses

import numpy as np

from sparsebert.masks.bits import Bits
from sparsebert.tiles.assemble import UNPACKED_LIMIT, LooseTiles, assemble
from sparsebert.tiles.entries import list_entries
from sparsebert.tiles.format import TileSet, pad_columns


@dataclasses.dataclass(frozen=True)
class TileGroup:
    """Tiles of one height over one part of one head's mask, before their columns are listed.

    Attributes:
        head: the distinct head.
        bits: uint8 [num_rows, ceil(num_cols / 8)], little-endian packed: the entries that these
            tiles cover (the whole mask, or one part of a mask that several groups cover).
        rows: int32 [T, height], the rows of each tile, -1 for empty slots at the end.
    """

    head: int
    bits: np.ndarray
    rows: np.ndarray


def build_tile_set(
    groups: list[TileGroup],
    num_heads: int,
    num_rows: int,
    num_cols: int,
    singles: dict[int, Bits] | None = None,
) -> TileSet:
    """List every tile's columns and words, and drop tiles that cover nothing.

    `singles` are the bits of the entries that stand alone, by distinct head.
    """
    pieces: list[LooseTiles] = []
    for group in groups:
        step = max(1, UNPACKED_LIMIT // max(1, group.rows.shape[1] * num_cols))
        pieces += [
            _build_tiles(group, group.rows[start : start + step], num_cols)
            for start in range(0, len(group.rows), step)
        ]
    entries = list_entries(singles or {}, num_heads, num_rows)
    return assemble(pieces, num_heads, num_rows, num_cols, entries)


def _build_tiles(group: TileGroup, rows: np.ndarray, num_cols: int) -> LooseTiles:
    tiles, height = rows.shape
    packed = group.bits[rows]  # [T, height, bytes]; empty slots hold some row's bits until below
    empty = (rows < 0)[..., None]
    union = np.bitwise_or.reduce(np.where(empty, 0, packed), axis=1)
    shared = np.bitwise_and.reduce(np.where(empty, 0xFF, packed), axis=1) & union
    packed[rows < 0] = 0

    def unpack(bits: np.ndarray) -> np.ndarray:
        return np.unpackbits(bits, axis=-1, count=num_cols, bitorder="little").view(bool)

    is_full, is_used = unpack(shared), unpack(union)
    full, width = is_full.sum(1), is_used.sum(1)
    padded = pad_columns(width)
    col_start = np.concatenate([[0], np.cumsum(padded)])
    cols = np.zeros(col_start[-1], dtype=np.int32)
    tile_f, col_f = np.nonzero(is_full)
    tile_p, col_p = np.nonzero(is_used & ~is_full)
    rank_f = np.arange(len(tile_f)) - (np.cumsum(full) - full)[tile_f]
    partial = width - full
    rank_p = np.arange(len(tile_p)) - (np.cumsum(partial) - partial)[tile_p] + full[tile_p]
    cols[col_start[tile_f] + rank_f] = col_f
    cols[col_start[tile_p] + rank_p] = col_p
    pad = padded - width
    tile_e = np.repeat(np.arange(tiles), pad)
    rank_e = np.arange(len(tile_e)) - (np.cumsum(pad) - pad)[tile_e] + width[tile_e]
    cols[col_start[tile_e] + rank_e] = cols[col_start[tile_e] + width[tile_e] - 1]

    per_column = height // 8
    word_count = padded - full
    word_start = np.concatenate([[0], np.cumsum(word_count)])
    words = np.zeros((word_start[-1], per_column), dtype=np.uint8)
    column_bits = packed[tile_p, :, col_p >> 3] >> (col_p & 7).astype(np.uint8)[:, None] & 1
    words[word_start[tile_p] + rank_p - full[tile_p]] = np.packbits(
        column_bits, axis=1, bitorder="little"
    )
    return LooseTiles(
        head=np.full(tiles, group.head, dtype=np.int32),
        height=np.full(tiles, height, dtype=np.int32),
        rows=rows.astype(np.int32).reshape(-1),
        full=full.astype(np.int32),
        width=width.astype(np.int32),
        padded=padded,
        cols=cols,
        word_bytes=word_count * per_column,
        words=words.reshape(-1),
    )
