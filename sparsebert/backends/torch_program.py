"""What the torch executor runs: a plan's tiles, regrouped into batches of equal shape.

Tiles of similar width are padded to one shape and become a *bucket*, so that a few batched
matrix products do the work of many tiles. A program is a handful of tensors and sizes, so that
it can be an argument of a custom op (`flatten`, `from_tensors`), and a compiled graph or an
autograd node keeps alive just what it needs.

Positions. The executor sees q, k and v as [B, S, A, D], a memory order that HuggingFace models
already have. If all heads share one mask, S counts positions and A heads, and one gathered index
moves all heads at once. If heads differ, S counts (position, head) pairs, position-major, and
A = 1. `shared` says which.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import torch

from sparsebert.masks import AttentionMask
from sparsebert.tiles.batching import batch_tiles
from sparsebert.tiles.format import TileSet

TORCH, TRITON, MIXED = 0, 1, 2
"""What a program is for: the torch executor, the kernels in `sparsebert.kernels`, or both."""


@dataclasses.dataclass(frozen=True)
class Bucket:
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


@dataclasses.dataclass(frozen=True)
class TorchProgram:
    """An executable plan; see the module's text for the meaning of positions.

    Attributes:
        q_len, kv_len: N and M.
        shared: all heads use the same tiles.
        buckets: the tiles.
        tile_heads, dense_heads: int64, the heads that run in tiles, and those that run dense;
            with `shared`, or one mask head, the one entry 0 stands for all heads.
        slot_of_row: int64 [S], the slot with each row's (first) partial result; the number of
            slots where a row has none.
        more_rows, more_slots: for each further tile that covers rows, those rows and its slots.
        dense_mask: bool [dense heads, N, M]; None if these heads attend to everything.
        dense_unused: bool [dense heads, M], keys that no query attends to; None if there are none.
        dense_dead: bool [dense heads, N], queries that attend to nothing; None likewise.
    """

    q_len: int
    kv_len: int
    shared: bool
    buckets: tuple[Bucket, ...]
    tile_heads: torch.Tensor
    dense_heads: torch.Tensor
    slot_of_row: torch.Tensor
    more_rows: tuple[torch.Tensor, ...]
    more_slots: tuple[torch.Tensor, ...]
    dense_mask: torch.Tensor | None
    dense_unused: torch.Tensor | None
    dense_dead: torch.Tensor | None

    @property
    def num_slots(self) -> int:
        """How many partial results all buckets make."""
        return sum(bucket.rows.numel() for bucket in self.buckets)

    def position(self, index: torch.Tensor) -> torch.Tensor:
        """The sequence position of indices into S."""
        return index if self.shared else index // len(self.tile_heads)

    def head_place(self, index: torch.Tensor) -> torch.Tensor:
        """Which of `tile_heads` indices into S belong to; only if not `shared`."""
        return index % len(self.tile_heads)

    def without_tiles(self) -> TorchProgram:
        """The program of the dense heads alone."""
        nothing = self.slot_of_row[:0]
        return dataclasses.replace(
            self, buckets=(), tile_heads=nothing, slot_of_row=nothing, more_rows=(), more_slots=()
        )

    def flatten(self) -> FlatProgram:
        """The program as tensors and sizes; `from_tensors` is the inverse."""
        optional = [self.dense_mask, self.dense_unused, self.dense_dead]
        tensors = [self.tile_heads, self.dense_heads, self.slot_of_row]
        tensors += [*self.more_rows, *self.more_slots]
        tensors += [tensor for tensor in optional if tensor is not None]
        for bucket in self.buckets:
            tensors += [bucket.rows, bucket.cols]
            tensors += [bucket.bits] if bucket.bits is not None else []
        sizes = [self.q_len, self.kv_len, int(self.shared), len(self.buckets), len(self.more_rows)]
        sizes += [int(tensor is not None) for tensor in optional]
        sizes += [int(bucket.bits is not None) for bucket in self.buckets]
        return FlatProgram(tensors, [TORCH, *sizes])


class FlatProgram(NamedTuple):
    """A program in the form that a custom op takes; `sizes` begins with what it is for."""

    tensors: list[torch.Tensor]
    sizes: list[int]

    @property
    def is_torch(self) -> bool:
        """It is for the torch executor alone."""
        return self.sizes[0] == TORCH

    @property
    def is_mixed(self) -> bool:
        """It is of two parts, see `mixed_program`."""
        return self.sizes[0] == MIXED

    @property
    def is_plain(self) -> bool:
        """All heads run dense, and every query attends to something: torch's SDPA will do."""
        if not self.is_torch or self.tensors[0].numel() > 0:
            return False
        has_dead = self.sizes[8]
        return not has_dead

    @property
    def dense_mask(self) -> torch.Tensor | None:
        """The mask of a plain program: bool [H or 1, N, M]; None if everything is allowed."""
        return self.tensors[3] if self.sizes[6] else None

    @property
    def dense_unused(self) -> torch.Tensor | None:
        """Keys of a plain program that no query attends to: bool [H or 1, M], or None."""
        return self.tensors[3 + self.sizes[6]] if self.sizes[7] else None

    @property
    def parts(self) -> tuple[FlatProgram, FlatProgram]:
        """The two programs that `mixed_program` put together: dense heads, heads in tiles."""
        tensors, sizes = self.sizes[1:3]
        return (
            FlatProgram(self.tensors[:tensors], self.sizes[3 : 3 + sizes]),
            FlatProgram(self.tensors[tensors:], self.sizes[3 + sizes :]),
        )

    @property
    def dense_heads(self) -> torch.Tensor:
        """The heads that run dense, of a program for the torch executor; int64."""
        return self.tensors[1]

    def to(self, device: torch.device | str) -> FlatProgram:
        """The same program with its tensors on `device`."""
        return FlatProgram([_storable(tensor).to(device) for tensor in self.tensors], self.sizes)


def mixed_program(dense: TorchProgram, tiled: FlatProgram) -> FlatProgram:
    """One program of the dense heads for the torch executor, and the others for the kernels."""
    first = dense.flatten()
    counts = [len(first.tensors), len(first.sizes)]
    return FlatProgram(
        [*first.tensors, *tiled.tensors], [MIXED, *counts, *first.sizes, *tiled.sizes]
    )


def _storable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor; an empty one of numpy's memory anew, which torch.export could not save."""
    if tensor.numel():
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def from_tensors(tensors: list[torch.Tensor], sizes: list[int]) -> TorchProgram:
    """The program that `TorchProgram.flatten` made these of."""
    remaining = iter(tensors)
    _, q_len, kv_len, shared, bucket_count, more_count = sizes[:6]
    tile_heads, dense_heads, slot_of_row = (next(remaining) for _ in range(3))
    more_rows = tuple(next(remaining) for _ in range(more_count))
    more_slots = tuple(next(remaining) for _ in range(more_count))
    dense_mask, dense_unused, dense_dead = (
        next(remaining) if present else None for present in sizes[6:9]
    )
    buckets, first_slot = [], 0
    for has_bits in sizes[9 : 9 + bucket_count]:
        rows, cols = next(remaining), next(remaining)
        buckets.append(Bucket(rows, cols, next(remaining) if has_bits else None, first_slot))
        first_slot += rows.numel()
    return TorchProgram(
        q_len, kv_len, bool(shared), tuple(buckets), tile_heads, dense_heads,
        slot_of_row, more_rows, more_slots, dense_mask, dense_unused, dense_dead,
    )  # fmt: skip


def build_program(
    mask: AttentionMask, head_map: np.ndarray, dense_heads: np.ndarray, tiles: TileSet
) -> TorchProgram:
    """Regroup a plan's tiles for the torch executor, on the CPU."""
    is_dense = dense_heads[head_map]
    in_tiles, in_dense = np.flatnonzero(~is_dense), np.flatnonzero(is_dense)
    shared = len(np.unique(head_map)) == 1
    if shared:
        in_tiles, in_dense = in_tiles[:1], in_dense[:1]
    stride = 1 if shared else len(in_tiles)

    # A tile of a distinct head serves every head that uses it.
    work = [
        (tile, place)
        for place, head in enumerate(in_tiles.tolist())
        for tile in np.flatnonzero(tiles.head == head_map[head]).tolist()
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
        mask.q_len * stride,
    )

    dense_mask = dense_unused = dense_dead = None
    if len(in_dense):
        dense = torch.stack([mask.head(int(head)).dense()[0, 0] for head in in_dense])
        dense_mask = None if bool(dense.all()) else dense
        dense_unused, dense_dead = (
            None if bool(used.all()) else ~used for used in (dense.any(dim=1), dense.any(dim=2))
        )
    return TorchProgram(
        q_len=mask.q_len,
        kv_len=mask.kv_len,
        shared=shared,
        buckets=tuple(buckets),
        tile_heads=torch.from_numpy(in_tiles),
        dense_heads=torch.from_numpy(in_dense),
        slot_of_row=torch.from_numpy(slot_of_row),
        more_rows=tuple(torch.from_numpy(rows) for rows in more_rows),
        more_slots=tuple(torch.from_numpy(slots) for slots in more_slots),
        dense_mask=dense_mask,
        dense_unused=dense_unused,
        dense_dead=dense_dead,
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
