"""Tiles: the format between the mask compiler and whatever executes a plan.

A tile is a set of rows, in any order, that share one sorted list of gathered columns. Columns
that every row of the tile attends to come first and need no test; each of the rest carries a word
of `height` bits, bit r of it for row r of the tile (1 = attend). A row may be in several tiles,
each covering other entries of the mask; every entry is covered exactly once.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

COLUMN_CHUNK = 16
"""A tile's column list is padded to a multiple of this; padding columns have the word 0."""

HEIGHTS = (16, 32, 64, 128)
"""Row slots that a tile may have."""

_UNPACKED_LIMIT = 1 << 26  # bytes of unpacked bits that building works on at once


@dataclasses.dataclass(frozen=True, eq=False)
class TileSet:
    """All tiles of a plan in one direction, as ragged arrays.

    With T tiles over U distinct heads of `num_rows` x `num_cols`:

    Attributes:
        num_heads: U.
        num_rows, num_cols: the size of the mask that the tiles cover.
        head: int32 [T], the distinct head of each tile.
        height: int32 [T], row slots, one of `HEIGHTS`.
        row_start: int64 [T + 1], where each tile's slots begin in `rows`.
        rows: int32, row of each slot, -1 for an empty slot (always the last slots of a tile).
        full: int32 [T], how many leading columns every (real) row of the tile attends to.
        width: int32 [T], columns without padding.
        col_start: int64 [T + 1], where each tile's padded columns begin in `cols`.
        cols: int32, column numbers: the full ones, ascending, then the others, ascending, then
            the last one repeated as padding.
        word_start: int64 [T + 1], where each tile's words begin in `words`, in bytes.
        words: uint8, for each column after the full ones `height / 8` bytes, little endian.

    Tiles are sorted by height, tallest first, and then by descending work.
    """

    num_heads: int
    num_rows: int
    num_cols: int
    head: np.ndarray
    height: np.ndarray
    row_start: np.ndarray
    rows: np.ndarray
    full: np.ndarray
    width: np.ndarray
    col_start: np.ndarray
    cols: np.ndarray
    word_start: np.ndarray
    words: np.ndarray

    @property
    def num_tiles(self) -> int:
        """T, over all distinct heads."""
        return len(self.head)

    @property
    def arrays(self) -> list[np.ndarray]:
        """All arrays."""
        return [value for value in vars(self).values() if isinstance(value, np.ndarray)]

    @property
    def padded_width(self) -> np.ndarray:
        """int64 [T], columns with padding."""
        return np.diff(self.col_start)

    def row_slots(self, tile: int) -> np.ndarray:
        """The row of each slot of one tile: int32 [height], -1 where empty."""
        return self.rows[self.row_start[tile] : self.row_start[tile + 1]]

    def columns(self, tile: int) -> np.ndarray:
        """The padded column list of one tile."""
        return self.cols[self.col_start[tile] : self.col_start[tile + 1]]

    def allowed(self, tile: int) -> np.ndarray:
        """What one tile covers: bool [height, padded width], False in empty slots and padding."""
        height, full = int(self.height[tile]), int(self.full[tile])
        words = self.words[self.word_start[tile] : self.word_start[tile + 1]]
        allowed = np.zeros((height, len(self.columns(tile))), dtype=bool)
        allowed[:, :full] = (self.row_slots(tile) >= 0)[:, None]
        bits = np.unpackbits(words.reshape(-1, height // 8), axis=1, bitorder="little")
        allowed[:, full:] = bits.T
        return allowed

    def dense(self) -> np.ndarray:
        """The union of what the tiles cover: bool [U, num_rows, num_cols]."""
        mask = np.zeros((self.num_heads, self.num_rows, self.num_cols), dtype=bool)
        for tile in range(self.num_tiles):
            slots, columns = self.row_slots(tile), self.columns(tile)[: self.width[tile]]
            used = slots >= 0
            covered = self.allowed(tile)[used, : self.width[tile]]
            mask[self.head[tile], slots[used][:, None], columns[None, :]] |= covered
        return mask


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
    groups: list[TileGroup], num_heads: int, num_rows: int, num_cols: int
) -> TileSet:
    """List every tile's columns and words, and drop tiles that cover nothing."""
    pieces: list[dict[str, np.ndarray]] = []
    for group in groups:
        step = max(1, _UNPACKED_LIMIT // max(1, group.rows.shape[1] * num_cols))
        pieces += [
            _build_tiles(group, group.rows[start : start + step], num_cols)
            for start in range(0, len(group.rows), step)
        ]
    return _join(pieces, num_heads, num_rows, num_cols)


def _build_tiles(group: TileGroup, rows: np.ndarray, num_cols: int) -> dict[str, np.ndarray]:
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
    padded = -(-width // COLUMN_CHUNK) * COLUMN_CHUNK
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
    column_bits = unpack(packed)[tile_p, :, col_p]  # [partial columns, height]
    words[word_start[tile_p] + rank_p - full[tile_p]] = np.packbits(
        column_bits, axis=1, bitorder="little"
    )
    return {
        "head": np.full(tiles, group.head, dtype=np.int32),
        "height": np.full(tiles, height, dtype=np.int32),
        "rows": rows.astype(np.int32).reshape(-1),
        "full": full.astype(np.int32),
        "width": width.astype(np.int32),
        "padded": padded,
        "cols": cols,
        "word_bytes": word_count * per_column,
        "words": words.reshape(-1),
    }


def crop_tiles(tiles: TileSet, num_rows: int, num_cols: int) -> TileSet:
    """The tiles of the mask's first `num_rows` rows and `num_cols` columns.

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
        step = max(1, _UNPACKED_LIMIT // (height * int(tiles.padded_width[chosen].max())))
        pieces += [
            _crop_tiles(tiles, chosen[start : start + step], new, num_rows, num_cols)
            for start in range(0, len(chosen), step)
        ]
    return _join(pieces, tiles.num_heads, num_rows, num_cols)


def _crop_tiles(
    tiles: TileSet, chosen: np.ndarray, new_height: int, num_rows: int, num_cols: int
) -> dict[str, np.ndarray]:
    """The same for some tiles that have one height, and one new height."""
    height, count = int(tiles.height[chosen[0]]), len(chosen)
    rows = tiles.rows[_ranges(tiles.row_start, chosen)].reshape(count, height)
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
    words = tiles.words[_ranges(tiles.word_start, chosen)].reshape(-1, height // 8)
    bits[~is_full] = np.unpackbits(words, axis=1, bitorder="little").view(bool)
    bits = np.take_along_axis(bits, moved[tile], axis=1)
    bits[is_full] = True
    bits &= (rows >= 0)[tile]
    cols = tiles.cols[_ranges(tiles.col_start, chosen)]
    keep = (cols < num_cols) & (rank < width[tile]) & bits.any(axis=1)

    full = np.bincount(tile[keep & is_full], minlength=count)
    width = np.bincount(tile[keep], minlength=count)
    padded = -(-width // COLUMN_CHUNK) * COLUMN_CHUNK
    source = np.flatnonzero(keep)
    # Each new column's place among those kept; padding repeats the last one of its tile.
    tile = np.repeat(np.arange(count), padded)
    rank = np.arange(len(tile)) - np.repeat(np.cumsum(padded) - padded, padded)
    place = (np.cumsum(width) - width)[tile] + np.minimum(rank, width[tile] - 1)
    source = source[place]
    bits = bits[source] & (rank < width[tile])[:, None]
    return {
        "head": tiles.head[chosen],
        "height": np.full(count, new_height, dtype=np.int32),
        "rows": rows.astype(np.int32).reshape(-1),
        "full": full.astype(np.int32),
        "width": width.astype(np.int32),
        "padded": padded,
        "cols": cols[source],
        "word_bytes": (padded - full) * (new_height // 8),
        "words": np.packbits(bits[rank >= full[tile]], axis=1, bitorder="little").reshape(-1),
    }


def without_heads(tiles: TileSet, dropped: np.ndarray) -> TileSet:
    """The tiles of all distinct heads but those that `dropped`, bool [U], names."""
    pieces = [_part(tiles, np.flatnonzero(~dropped[tiles.head]))]
    return _join(pieces, tiles.num_heads, tiles.num_rows, tiles.num_cols)


def join_heads(parts: list[TileSet]) -> TileSet:
    """One set of the tiles of several, for different heads of the same mask."""
    pieces = [_part(tiles, np.arange(tiles.num_tiles)) for tiles in parts]
    return _join(pieces, parts[0].num_heads, parts[0].num_rows, parts[0].num_cols)


def _part(tiles: TileSet, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """The chosen tiles as `_join` takes them."""
    return {
        "head": tiles.head[chosen],
        "height": tiles.height[chosen],
        "rows": tiles.rows[_ranges(tiles.row_start, chosen)],
        "full": tiles.full[chosen],
        "width": tiles.width[chosen],
        "padded": tiles.padded_width[chosen],
        "cols": tiles.cols[_ranges(tiles.col_start, chosen)],
        "word_bytes": np.diff(tiles.word_start)[chosen],
        "words": tiles.words[_ranges(tiles.word_start, chosen)],
    }


def _ranges(starts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Indices of what the chosen tiles have in a ragged array, one tile after another."""
    length = (starts[1:] - starts[:-1])[chosen]
    first = np.cumsum(length) - length
    index: np.ndarray = np.repeat(starts[chosen] - first, length) + np.arange(length.sum())
    return index


def _join(
    pieces: list[dict[str, np.ndarray]], num_heads: int, num_rows: int, num_cols: int
) -> TileSet:
    """One TileSet of all pieces, without empty tiles, tallest first and then by work."""

    def column(name: str, dtype: type) -> np.ndarray:
        parts = [piece[name] for piece in pieces]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)

    height, width = column("height", np.int32), column("width", np.int32)
    padded, word_bytes = column("padded", np.int64), column("word_bytes", np.int64)
    order = np.lexsort((-width, -height))
    order = order[width[order] > 0]

    def reorder(flat: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        new_starts = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)
        return flat[_ranges(starts, order)], new_starts

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
    )
