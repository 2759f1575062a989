"""What the kernels run: the packed tiles of both directions, as tensors on one device.

The arrays of a side are described where they are packed, in `sparsebert.backends.triton_pack`;
the fields of a work item and the order of bits in a word stand in `layout`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Group(NamedTuple):
    """The work items of one launch: tiles of one height.

    Attributes:
        height: rows of a tile.
        first: where their records begin, in units of `layout.RECORD_UNIT` numbers.
        items: how many there are.
    """

    height: int
    first: int
    items: int


class Side(NamedTuple):
    """The work of one direction: tiles of query rows, or of key rows.

    Attributes:
        records: int32, the records of all work items (a tile run for one head).
        cols: int32, gathered columns of each tile, padded.
        words: int32, bit words of each tile's rows.
        merges: int32 [R, 4], the rows that no tile covers, or several at once.
        num_slots: partial results, of all listed heads together.
        chained: some tiles go on from what others wrote out.
        groups: the launches, in order: those of the tiles that go on come last.
    """

    records: torch.Tensor
    cols: torch.Tensor
    words: torch.Tensor
    merges: torch.Tensor
    num_slots: int
    chained: bool
    groups: tuple[Group, ...]


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
