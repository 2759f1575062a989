"""What the torch backend runs: a plan's tiles, regrouped into batches of equal shape.

Tiles of similar width are padded to one shape and become a *bucket*, so that a few batched
matrix products do the work of many tiles.

Positions. The backend sees q, k and v as [B, S, A, D], a memory order that HuggingFace models
already have. If all heads share one mask, S counts positions and A heads, and one gathered index
moves all heads at once. If heads differ, S counts (position, head) pairs, position-major, and
A = 1. `shared` says which.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from sparsebert.compiler.schedule import Schedule
from sparsebert.tiles.batching import batch_tiles
from sparsebert.tiles.format import TileSet


class Bucket(NamedTuple):
    """Tiles of one padded shape.

    Attributes:
        rows: int64 [T, R], row of each slot; an empty slot repeats a row of its tile.
        cols: int64 [T, C], gathered columns; padding repeats a column of the tile.
        bits: uint8 [T, R, C / 8], little-endian packed: what the tile covers. All ones if None.
        first_slot: where the bucket's T * R results begin among all slots.
    """

    rows: torch.Tensor
    cols: torch.Tensor
    bits: torch.Tensor | None
    first_slot: int


class TilesProgram(NamedTuple):
    """Tiles of some heads; see the module's text for the meaning of positions.

    Attributes:
        shared: all heads use the same tiles.
        stride: the heads that S counts: 1 with `shared`, else those of the program.
        buckets: the tiles.
        slot_of_row: int64 [S], the slot with each row's (first) partial result; the number of
            slots where a row has none.
        more_rows, more_slots: for each further tile that covers rows, those rows and its slots.
    """

    shared: bool
    stride: int
    buckets: tuple[Bucket, ...]
    slot_of_row: torch.Tensor
    more_rows: tuple[torch.Tensor, ...]
    more_slots: tuple[torch.Tensor, ...]

    @property
    def num_slots(self) -> int:
        """How many partial results all buckets make."""
        return sum(bucket.rows.numel() for bucket in self.buckets)

    def position(self, index: torch.Tensor) -> torch.Tensor:
        """The sequence position of indices into S."""
        return index if self.shared else index // self.stride

    def head_place(self, index: torch.Tensor) -> torch.Tensor:
        """Which of the program's heads indices into S belong to; only if not `shared`."""
        return index % self.stride


def lower(schedule: Schedule, distinct: np.ndarray) -> TilesProgram:
    """Regroup the tiles of some distinct heads, bool [U], on the CPU."""
    tiles = schedule.queries(distinct)
    shared = schedule.is_shared
    heads = [0] if shared else schedule.heads_of(distinct).tolist()
    stride = 1 if shared else len(heads)

    # A tile of a distinct head serves every head that uses it.
    work = [
        (tile, place)
        for place, head in enumerate(heads)
        for tile in np.flatnonzero(tiles.head == schedule.head_map[head]).tolist()
    ]
    used = np.array([int((tiles.row_slots(tile) >= 0).sum()) for tile, _ in work], dtype=np.int64)
    width = np.array([int(tiles.padded_width[tile]) for tile, _ in work], dtype=np.int64)
    buckets, slot_rows, first_slot = [], [], 0
    batching = batch_tiles(used, width)
    shapes = zip(batching.rows.tolist(), batching.width.tolist(), strict=True)
    for members, (height, columns) in zip(batching.members(), shapes, strict=True):
        batch = [work[i] for i in members]
        bucket, rows = _make_bucket(tiles, batch, height, columns, stride, first_slot)
        buckets.append(bucket)
        slot_rows.append(rows)
        first_slot += rows.size
    slot_of_row, more_rows, more_slots = _slots_by_row(
        np.concatenate(slot_rows) if slot_rows else np.zeros(0, dtype=np.int64),
        schedule.mask.q_len * stride,
    )
    return TilesProgram(
        shared=shared,
        stride=stride,
        buckets=tuple(buckets),
        slot_of_row=torch.from_numpy(slot_of_row),
        more_rows=tuple(torch.from_numpy(rows) for rows in more_rows),
        more_slots=tuple(torch.from_numpy(slots) for slots in more_slots),
    )


def _make_bucket(
    tiles: TileSet,
    batch: list[tuple[int, int]],
    slots: int,
    width: int,
    stride: int,
    first_slot: int,
) -> tuple[Bucket, np.ndarray]:
    """One bucket, and the row of each of its slots, -1 where a slot is empty."""
    rows = np.zeros((len(batch), slots), dtype=np.int64)
    cols = np.zeros((len(batch), width), dtype=np.int64)
    allowed = np.zeros((len(batch), slots, width), dtype=bool)
    slot_rows = np.full((len(batch), slots), -1, dtype=np.int64)
    for index, (tile, place) in enumerate(batch):
        tile_rows, tile_cols = tiles.row_slots(tile), tiles.columns(tile)
        # A row with nothing in this tile has no result here, and is not even loaded: in a cropped
        # plan it may attend to nothing at all, and hold NaN.
        covered = tiles.allowed(tile)
        used = (tile_rows >= 0) & covered.any(axis=1)
        real, covered = tile_rows[used], covered[used]
        rows[index] = np.resize(real, slots) * stride + place
        slot_rows[index, : len(real)] = real * stride + place
        cols[index, : len(tile_cols)] = tile_cols
        cols[index, len(tile_cols) :] = tile_cols[-1]
        cols[index] = cols[index] * stride + place
        allowed[index, : len(real), : len(tile_cols)] = covered
    bits = None
    if not allowed.all():
        bits = torch.from_numpy(np.packbits(allowed, axis=-1, bitorder="little"))
    bucket = Bucket(torch.from_numpy(rows), torch.from_numpy(cols), bits, first_slot)
    return bucket, slot_rows.reshape(-1)


def _slots_by_row(
    row_of_slot: np.ndarray, num_rows: int
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Invert slot -> row: each row's first slot, and level by level its further ones."""
    slots = np.flatnonzero(row_of_slot >= 0)
    rows = row_of_slot[slots]
    order = np.argsort(rows, kind="stable")
    rows, slots = rows[order], slots[order]
    starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]]) if len(rows) else rows
    level = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    slot_of_row = np.full(num_rows, len(row_of_slot), dtype=np.int64)
    slot_of_row[rows[level == 0]] = slots[level == 0]
    levels = range(1, int(level.max(initial=0)) + 1)
    return (
        slot_of_row,
        [rows[level == n] for n in levels],
        [slots[level == n] for n in levels],
    )
