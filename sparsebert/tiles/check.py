"""Proving that a set of tiles is well formed, and that it is a given mask, entry by entry."""

from __future__ import annotations

import numpy as np

from sparsebert.masks.bits import Bits, unpack
from sparsebert.tiles.format import COLUMN_CHUNK, HEIGHTS, TileSet


def check_format(tiles: TileSet) -> None:
    """Raise ValueError unless every array has the sizes, ranges and order `TileSet` promises."""
    count, height = tiles.num_tiles, tiles.height.astype(np.int64)
    _require(len(tiles.height) == count == len(tiles.full) == len(tiles.width), "tile counts")
    _require(np.isin(height, HEIGHTS).all(), "tile heights")
    _require(_inside(tiles.head, 0, tiles.num_heads), "heads of tiles")
    for starts, flat in (
        (tiles.row_start, tiles.rows), (tiles.col_start, tiles.cols),
        (tiles.word_start, tiles.words),
    ):  # fmt: skip
        fits = len(starts) == count + 1 and starts[0] == 0 and starts[-1] == len(flat)
        _require(fits and (np.diff(starts) >= 0).all(), "where tiles begin")
    padded, full, width = tiles.padded_width, tiles.full.astype(np.int64), tiles.width
    _require((np.diff(tiles.row_start) == height).all(), "row slots")
    _require((padded % COLUMN_CHUNK == 0).all() and (padded - width < COLUMN_CHUNK).all(), "pads")
    _require((full >= 0).all() and (full <= width).all() and (width <= padded).all(), "widths")
    _require((width > 0).all(), "tiles without columns")
    _require(
        (np.diff(tiles.word_start) == (padded - full) * height // 8).all(), "sizes of bit words"
    )
    _require(_inside(tiles.rows, -1, tiles.num_rows), "row numbers")
    _require(_inside(tiles.cols, 0, tiles.num_cols), "column numbers")
    _require((np.diff(height) <= 0).all(), "order of tiles")
    _require((np.diff(width)[np.diff(height) == 0] <= 0).all(), "order of tiles")
    _check_order(tiles)
    _check_entries(tiles)


def _check_order(tiles: TileSet) -> None:
    """Real rows come first and are distinct; columns ascend, and each is some row's; pads are not.

    A column that no row of its tile attends to would be gathered with whatever it holds, NaN too.
    """
    for tile in range(tiles.num_tiles):
        slots, columns, allowed = tiles.row_slots(tile), tiles.columns(tile), tiles.allowed(tile)
        full, width = int(tiles.full[tile]), int(tiles.width[tile])
        real = int((slots >= 0).sum())
        _require(real > 0 and (slots[:real] >= 0).all(), "empty row slots")
        _require(len(np.unique(slots[:real])) == real, "rows of a tile")
        ascending = (np.diff(columns[:full]) > 0).all() and (
            np.diff(columns[full:width]) > 0
        ).all()
        _require(ascending and len(np.unique(columns[:width])) == width, "columns of a tile")
        _require(not allowed[real:].any() and not allowed[:, width:].any(), "bits of padding")
        _require(allowed[:, :width].any(axis=0).all(), "columns that no row attends to")
        _require((columns[width:] == columns[width - 1]).all(), "columns of padding")


def _check_entries(tiles: TileSet) -> None:
    """Every row of every head has its list, and the columns of each ascend."""
    start, cols = tiles.entries
    fits = len(start) == tiles.num_heads * tiles.num_rows + 1 and start[0] == 0
    _require(fits and start[-1] == len(cols) and (np.diff(start) >= 0).all(), "entry starts")
    _require(_inside(cols, 0, tiles.num_cols), "columns of single entries")
    begins = np.zeros(len(cols) + 1, dtype=bool)
    begins[start] = True
    ascending = begins[1:-1] | (np.diff(cols) > 0)
    _require(ascending.all(), "order of single entries")


def check_cover(tiles: TileSet, masks: Bits, dense_heads: np.ndarray) -> None:
    """Raise ValueError unless each entry of the heads not dense is covered exactly once.

    `masks` are the bits of the distinct heads, uint8 [U, N, ceil(M / 8)]. The union of tiles and
    single entries must be the mask, and they must be as many as its entries: so none of these is
    covered twice.
    """
    wanted = unpack(masks, tiles.num_cols) & ~dense_heads[:, None, None]
    _require(bool((tiles.dense() == wanted).all()), "cover: it is not the mask")
    slots = (
        np.add.reduceat(tiles.rows >= 0, tiles.row_start[:-1], dtype=np.int64)
        if tiles.num_tiles
        else 0
    )
    entries = int((slots * tiles.full.astype(np.int64)).sum())
    entries += int(np.bitwise_count(tiles.words).sum(dtype=np.int64)) + len(tiles.entry_cols)
    _require(entries == int(wanted.sum()), "cover: entries are covered twice")


def _inside(values: np.ndarray, low: int, high: int) -> bool:
    return bool(((values >= low) & (values < high)).all())


def _require(holds: bool | np.bool_, what: str) -> None:
    if not holds:
        raise ValueError(f"wrong {what}")
