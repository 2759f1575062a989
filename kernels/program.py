"""What the kernels run: the packed tiles of both directions, as tensors on one device.

The arrays of a side are described where they are packed, in `sparsebert.backends.triton_pack`;
the fields of a work item and the order of bits in a word stand in `layout`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from .layout import PACKED_HEIGHTS


class Side(NamedTuple):
    """The work of one direction: tiles of query rows, or of key rows.

    Attributes:
        items: int64 [W, 8], one work item (a tile run for one head) a row.
        rows: int32, the row of each slot of a tile, -1 where it has none.
        slots: int32, where a row that several tiles cover leaves its partial result, else -1.
        cols: int32, gathered columns of each tile, padded.
        words: int32, bit words of each tile's rows.
        merges: int32 [R, 4], the rows that are not covered exactly once.
        num_slots: partial results, of all listed heads together.
        counts: work items of each of `PACKED_HEIGHTS`; the items are sorted so.
    """

    items: torch.Tensor
    rows: torch.Tensor
    slots: torch.Tensor
    cols: torch.Tensor
    words: torch.Tensor
    merges: torch.Tensor
    num_slots: int
    counts: tuple[int, ...]

    @property
    def groups(self) -> tuple[tuple[int, int, int], ...]:
        """(height, first work item, work items) for each tile height that occurs."""
        return _groups(self.counts)


class KernelProgram(NamedTuple):
    """A plan as the kernels run it.

    Attributes:
        per_head: heads have work items of their own; else one list serves every head.
        queries: tiles of query rows, for the forward pass and dQ.
        keys: tiles of key rows (the transposed mask), for dK and dV.
    """

    per_head: bool
    queries: Side
    keys: Side

    def to(self, device: torch.device | str) -> KernelProgram:
        """The same program with its tensors on `device`."""
        return self._replace(queries=_to(self.queries, device), keys=_to(self.keys, device))


def _to(side: Side, device: torch.device | str) -> Side:
    return Side(*(x.to(device) if isinstance(x, torch.Tensor) else x for x in side))


@functools.lru_cache(maxsize=1024)  # each new length has counts of its own
def _groups(counts: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    groups, first = [], 0
    for height, count in zip(PACKED_HEIGHTS, counts, strict=True):
        if count:
            groups.append((height, first, count))
        first += count
    return tuple(groups)
