"""The plan image: tiles and single entries as the CPU kernels read them, in one block of memory.

`kernels/cpu/plan.h` says what stands in it. The kernels run groups of up to 16 rows; each group
has one tile, and single entries of its rows beside it. Tiles are cut into such groups, rows that
no tile has make groups of their own, and each row's single entries go to its first group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from sparsebert.kernels.cpu.library import VERSION
from sparsebert.tiles.assemble import ragged_index
from sparsebert.tiles.format import TileSet

GROUP = 16
"""Rows of a group."""

_MAGIC = 0x31706D4962537053
_HEADER, _HEAD = 9, 15
"""Numbers, of 8 bytes each, in the two kinds of headers."""
_ALIGNED = 64

_TILE, _COLUMN, _ENTRY, _ROW = 500, 77, 8, 60
"""About how many cycles each takes, at D = 64 with AVX-512: by this the work is divided among
threads."""


class HeadGroups(NamedTuple):
    """The groups of one distinct head; G of them.

    Attributes:
        rows: int32 [G, 16], -1 where a slot is empty, at the end.
        tile_start: int32 [G + 1], where each group's columns begin in the next two.
        tile_cols: int32.
        tile_words: uint16, bit r: row r of the group attends to the column.
        entry_start: int32 [G * 16 + 1], where each slot's single entries begin.
        entry_cols: int32.
    """

    rows: np.ndarray
    tile_start: np.ndarray
    tile_cols: np.ndarray
    tile_words: np.ndarray
    entry_start: np.ndarray
    entry_cols: np.ndarray

    @property
    def loads(self) -> int:
        """How often a row of k and v is read."""
        return len(self.tile_cols) + len(self.entry_cols)

    @property
    def cost(self) -> np.ndarray:
        """About how many cycles the groups before each take, int64 [G + 1]."""
        columns = np.diff(self.tile_start.astype(np.int64))
        entries = np.diff(self.entry_start[::GROUP].astype(np.int64))
        rows = (self.rows >= 0).sum(axis=1)
        each = _COLUMN * columns + _TILE * (columns > 0) + _ENTRY * entries + _ROW * rows
        return _starts(each, np.int64)


class Merges(NamedTuple):
    """Rows that several groups have, whose partial results are merged.

    Attributes:
        slot: int32 [G], the first of 16 slots for a group's partial results; -1 if its rows are in
            no other group.
        slots: how many there are.
        rows: int32 [R], the rows that are merged.
        start: int32 [R + 1], where each one's slots begin in `from_slots`.
        from_slots: int32.
    """

    slot: np.ndarray
    slots: int
    rows: np.ndarray
    start: np.ndarray
    from_slots: np.ndarray


def pack_image(
    tiles: TileSet, head_map: Sequence[int] | None, listed: np.ndarray | None
) -> torch.Tensor:
    """The image of some heads, uint8 on the CPU.

    Args:
        tiles: with single entries; of all distinct heads.
        head_map: for each head that runs, its distinct head; None if all share the first.
        listed: int64, the heads of a call that these are, ascending; None for all of them.

    Raises ValueError for more than 2**31 columns of tiles, or single entries, of one head.
    """
    distinct = [0] if head_map is None else sorted(set(head_map))
    place = {head: i for i, head in enumerate(distinct)}
    image = _Image(_HEADER + _HEAD * len(distinct))
    map_at = 0 if head_map is None else image.add([place[head] for head in head_map], np.int32)
    listed_at = 0 if listed is None else image.add(listed, np.int32)
    heads = [_write_head(image, groups_of(tiles, head)) for head in distinct]
    running = 0 if head_map is None else len(head_map)
    sizes = tiles.num_rows, tiles.num_cols, len(distinct), running
    header = [_MAGIC, VERSION, image.size, *sizes, map_at, listed_at]
    return image.finish([*header, *(number for head in heads for number in head)])


def _write_head(image: _Image, groups: HeadGroups) -> list[int]:
    """Add the arrays of a head; its header."""
    merges = merges_of(groups.rows)
    if max(groups.loads, GROUP * len(groups.rows), merges.slots) >= 1 << 31:
        raise ValueError("a head's tiles and single entries need more than 2**31 indices")
    rows, tile_start, tile_cols, tile_words, entry_start, entry_cols = (
        image.add(array, array.dtype) for array in groups
    )
    return [
        len(groups.rows), rows, tile_start, tile_cols, tile_words, entry_start, entry_cols,
        image.add(merges.slot, np.int32), merges.slots, len(merges.rows),
        image.add(merges.rows, np.int32), image.add(merges.start, np.int32),
        image.add(merges.from_slots, np.int32), image.add(groups.cost, np.int64), groups.loads,
    ]  # fmt: skip


def groups_of(tiles: TileSet, head: int) -> HeadGroups:
    """The groups of one distinct head, in the order of their first rows."""
    rows, width, cols, words = _tile_groups(tiles, head)
    start = tiles.entry_start[head * tiles.num_rows :][: tiles.num_rows + 1]
    alone = np.setdiff1d(np.arange(tiles.num_rows, dtype=np.int32), rows)
    others = np.full(-(-len(alone) // GROUP) * GROUP, -1, dtype=np.int32)
    others[: len(alone)] = alone
    rows = np.concatenate([rows, others.reshape(-1, GROUP)])
    width = np.concatenate([width, np.zeros(len(rows) - len(width), dtype=np.int64)])
    order = np.argsort(rows[:, 0], kind="stable")
    index = ragged_index(_starts(width, np.int64), order)
    rows, width = rows[order], width[order]
    # Each row's entries stand in the first of its slots.
    flat = rows.reshape(-1)
    owner = np.zeros(len(flat), dtype=bool)
    owner[np.unique(flat, return_index=True)[1]] = True
    owner &= flat >= 0
    counts = np.where(owner, np.diff(start)[np.maximum(flat, 0)], 0)
    entry_cols = tiles.entry_cols[ragged_index(start, flat[owner])]
    return HeadGroups(
        rows,
        _starts(width, np.int32),
        cols[index],
        words[index],
        _starts(counts, np.int32),
        entry_cols,
    )


def _tile_groups(tiles: TileSet, head: int) -> tuple[np.ndarray, ...]:
    """A head's tiles cut into groups of 16 rows, without columns that none of these attends to.

    Rows int32 [G, 16], widths int64 [G], and columns and words of one group after another.
    """
    pieces = []
    for height in np.unique(tiles.height[tiles.head == head]):
        chosen = np.flatnonzero((tiles.head == head) & (tiles.height == height))
        rows = tiles.rows[ragged_index(tiles.row_start, chosen)].reshape(-1, height)
        padded, full, width = (
            x[chosen].astype(np.int64) for x in (tiles.padded_width, tiles.full, tiles.width)
        )
        tile = np.repeat(np.arange(len(chosen)), padded)
        rank = np.arange(len(tile)) - np.repeat(np.cumsum(padded) - padded, padded)
        words = np.zeros((len(tile), height // GROUP), dtype="<u2")
        partial = rank >= full[tile]
        stored = tiles.words[ragged_index(tiles.word_start, chosen)].view("<u2")
        words[partial] = stored.reshape(-1, height // GROUP)
        every = (rows >= 0).reshape(len(rows), -1, GROUP) << np.arange(GROUP)
        words[~partial] = every.sum(axis=2)[tile[~partial]]
        cols = tiles.cols[ragged_index(tiles.col_start, chosen)]
        for part in range(height // GROUP):
            used = (words[:, part] != 0) & (rank < width[tile])
            of_rows = rows[:, part * GROUP : (part + 1) * GROUP]
            widths = np.bincount(tile[used], minlength=len(chosen))
            some = widths > 0
            pieces.append((of_rows[some], widths[some], cols[used], words[used, part]))
    if not pieces:
        empty = np.zeros((0, GROUP), dtype=np.int32), np.zeros(0, dtype=np.int64)
        return *empty, np.zeros(0, dtype=np.int32), np.zeros(0, dtype="<u2")
    return tuple(np.concatenate(part) for part in zip(*pieces, strict=True))


def merges_of(rows: np.ndarray) -> Merges:
    """Which groups, rows int32 [G, 16], share rows with others."""
    flat = rows.reshape(-1)
    several = np.bincount(flat[flat >= 0]) > 1
    shares = (several[np.maximum(rows, 0)] & (rows >= 0)).any(axis=1)
    slot = np.full(len(rows), -1, dtype=np.int32)
    slot[shares] = GROUP * np.arange(shares.sum())
    slots = np.flatnonzero(rows[shares].reshape(-1) >= 0)
    of_slot = rows[shares].reshape(-1)[slots]
    order = np.argsort(of_slot, kind="stable")
    merged, count = np.unique(of_slot, return_counts=True)
    return Merges(
        slot,
        GROUP * int(shares.sum()),
        merged.astype(np.int32),
        _starts(count, np.int32),
        slots[order].astype(np.int32),
    )


def work_of(image: torch.Tensor) -> int:
    """About how many cycles the image's heads take forward; of one head if all share it."""
    data = image.numpy()
    numbers = data[: len(data) // 8 * 8].view(np.int64)
    distinct, running, map_at = numbers[[5, 6, 7]].tolist()
    heads = numbers[_HEADER : _HEADER + _HEAD * distinct].reshape(distinct, _HEAD)
    work = numbers[heads[:, 13] // 8 + heads[:, 0]]  # the last of each head's sums
    return int(work[np.frombuffer(data, "<i4", running, map_at)].sum() if running else work[0])


def unpack_masks(image: torch.Tensor) -> torch.Tensor:
    """The masks that an image runs: bool [heads, N, M], 1 head if all share one."""
    data = image.numpy()
    numbers = data[: len(data) // 8 * 8].view(np.int64)
    _, _, _, num_rows, num_cols, distinct, running, map_at, _ = numbers[:_HEADER].tolist()
    masks = np.zeros((distinct, num_rows, num_cols), dtype=bool)
    for u in range(distinct):
        head = numbers[_HEADER + _HEAD * u :][:_HEAD].tolist()

        def array(offset: int, count: int, dtype: str) -> np.ndarray:
            return np.frombuffer(data, dtype, count, offset)

        groups = head[0]
        rows = array(head[1], groups * GROUP, "<i4").reshape(-1, GROUP)
        tile_start = array(head[2], groups + 1, "<i4")
        words = array(head[4], tile_start[-1], "<u2")
        group = np.repeat(np.arange(groups), np.diff(tile_start))
        column, bit = np.nonzero(words[:, None] >> np.arange(GROUP, dtype=np.uint16) & 1)
        cols = array(head[3], tile_start[-1], "<i4")
        masks[u, rows[group[column], bit], cols[column]] = True
        entry_start = array(head[5], groups * GROUP + 1, "<i4")
        of_row = np.repeat(rows.reshape(-1), np.diff(entry_start))
        masks[u, of_row, array(head[6], entry_start[-1], "<i4")] = True
    if not running:
        return torch.from_numpy(masks)
    return torch.from_numpy(masks[np.frombuffer(data, "<i4", running, map_at)])


class _Image:
    """An image that grows: headers of a known number of numbers, then arrays."""

    def __init__(self, numbers: int) -> None:
        self._numbers = numbers
        self._arrays: list[tuple[int, np.ndarray]] = []
        self.size = -(-8 * numbers // _ALIGNED) * _ALIGNED

    def add(self, values: Sequence[int] | np.ndarray, dtype: np.typing.DTypeLike) -> int:
        """Append an array; its offset in bytes."""
        array = np.ascontiguousarray(values, dtype=dtype)
        offset = self.size
        self._arrays.append((offset, array))
        self.size += -(-array.nbytes // _ALIGNED) * _ALIGNED
        return offset

    def finish(self, header: Sequence[int]) -> torch.Tensor:
        """The image with these numbers at its head."""
        assert len(header) == self._numbers
        data = np.zeros(self.size, dtype=np.uint8)
        data[: 8 * len(header)] = np.array(header, dtype="<i8").view(np.uint8)
        for offset, array in self._arrays:
            data[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        return torch.from_numpy(data)


def _starts(counts: np.ndarray, dtype: type) -> np.ndarray:
    """Where ragged parts of these sizes begin, and the end."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(dtype)
