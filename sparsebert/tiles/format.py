"""Tiles: the format between the mask compiler and whatever executes a plan.

A tile is a set of rows, in any order, that share one sorted list of gathered columns. Columns
that every row of the tile attends to come first and need no test; each of the rest carries a word
of `height` bits, bit r of it for row r of the tile (1 = attend). A row may be in several tiles,
each covering other entries of the mask. Beside tiles there may be single entries, which belong to
no tile; tiles and single entries together cover every entry of the mask exactly once.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sparsebert.tiles.entries import Entries, rows_of

COLUMN_CHUNK = 16
"""A tile's column list is padded to a multiple of this; padding columns have the word 0."""

HEIGHTS = (16, 32, 64, 128)
"""Row slots that a tile may have."""


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
        entry_start: int64 [U * num_rows + 1], where the single entries of each row of each head
            begin in `entry_cols`; those of row r of head u at u * num_rows + r.
        entry_cols: int32, the columns of single entries, ascending within a row.

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
    entry_start: np.ndarray
    entry_cols: np.ndarray

    @property
    def entries(self) -> Entries:
        """The single entries, of all rows of all heads."""
        return Entries(self.entry_start, self.entry_cols)

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
        """The union of what tiles and single entries cover: bool [U, num_rows, num_cols]."""
        mask = np.zeros((self.num_heads, self.num_rows, self.num_cols), dtype=bool)
        for tile in range(self.num_tiles):
            slots, columns = self.row_slots(tile), self.columns(tile)[: self.width[tile]]
            used = slots >= 0
            covered = self.allowed(tile)[used, : self.width[tile]]
            mask[self.head[tile], slots[used][:, None], columns[None, :]] |= covered
        mask.reshape(-1, self.num_cols)[rows_of(self.entries), self.entry_cols] = True
        return mask


def pad_columns(width: np.ndarray) -> np.ndarray:
    """Columns rounded up to whole chunks: int64 [T]."""
    padded: np.ndarray = -(-width // COLUMN_CHUNK) * COLUMN_CHUNK
    return padded
