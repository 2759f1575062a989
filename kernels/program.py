"""An executable plan: the packed tiles of both directions, as tensors on one device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from .layout import PACKED_HEIGHTS
from .pack import PackedTiles, pack_tiles

if TYPE_CHECKING:
    from sparsebert.plan import AttentionPlan


class Side(NamedTuple):
    """The work of one direction, see `PackedTiles`.

    Attributes:
        items, rows, slots, cols, words, merges: the arrays of `PackedTiles`.
        num_slots: partial results, of all listed heads together.
        groups: (height, first work item, work items) for each tile height that occurs.
    """

    items: torch.Tensor
    rows: torch.Tensor
    slots: torch.Tensor
    cols: torch.Tensor
    words: torch.Tensor
    merges: torch.Tensor
    num_slots: int
    groups: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class KernelProgram:
    """A plan as the kernels run it; make it with `build_program`.

    Attributes:
        q_len, kv_len: N and M.
        mask_heads: the mask's head count, 1 or H.
        per_head: heads have work items of their own; else one list serves every head.
        queries: tiles of query rows, for the forward pass and dQ.
        keys: tiles of key rows (the transposed mask), for dK and dV.
        sizes: all numbers of the program, for `from_arrays`.
    """

    q_len: int
    kv_len: int
    mask_heads: int
    per_head: bool
    queries: Side
    keys: Side
    sizes: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.queries.items.device

    @functools.cached_property
    def tensors(self) -> list[torch.Tensor]:
        """The program as a flat list of tensors, the first of them on the CPU."""
        return [torch.tensor(self.sizes, dtype=torch.int64), *self.arrays]

    @functools.cached_property
    def arrays(self) -> list[torch.Tensor]:
        """The tensors on the device; they and `sizes` are the whole program."""
        return [*_arrays(self.queries), *_arrays(self.keys)]

    def is_on(self, device: torch.device | str) -> bool:
        """Whether `device` ("cuda" means its current one) is where the tensors lie."""
        return torch.empty(0, device=device).device == self.device

    def to(self, device: torch.device | str) -> KernelProgram:
        """The same program on another device; itself if it is there already."""
        if self.is_on(device):
            return self
        return from_arrays(self.sizes, [array.to(device) for array in self.arrays])


def build_program(plan: AttentionPlan, *, only_tiled: bool = False) -> KernelProgram:
    """Pack a plan for the kernels, on the CPU.

    Every head runs in tiles; with `only_tiled` just those that the plan runs in tiles, and the
    others get zeros and an LSE of -inf, as if their masks were empty.
    """
    from sparsebert.compiler.compile import compile_tiles
    from sparsebert.tiles.assemble import without_heads

    queries, keys = plan.tiles, plan.transposed
    if plan.dense_heads.any():
        if only_tiled:
            keys = without_heads(keys, plan.dense_heads)
        else:
            queries = compile_tiles(plan)
    sides = (pack_tiles(side, plan.head_map) for side in (queries, keys))
    return pack_program(*sides, plan.q_len, plan.kv_len, plan.num_heads)


def pack_program(
    queries: PackedTiles, keys: PackedTiles, q_len: int, kv_len: int, mask_heads: int
) -> KernelProgram:
    """A program from the packed tiles of both directions."""
    sizes = [q_len, kv_len, mask_heads, int(queries.per_head)]
    arrays = []
    for side in (queries, keys):
        sizes += [side.num_slots, *side.counts]
        arrays += [side.items, side.rows, side.slots, side.cols, side.words, side.merges]
    return from_arrays(sizes, [torch.from_numpy(array) for array in arrays])


def from_tensors(tensors: list[torch.Tensor]) -> KernelProgram:
    """The program that `KernelProgram.tensors` wrote."""
    return from_arrays(tensors[0].tolist(), tensors[1:])


def from_arrays(sizes: Sequence[int], arrays: list[torch.Tensor]) -> KernelProgram:
    """The program with these `KernelProgram.sizes` and `KernelProgram.arrays`."""
    half = 1 + len(PACKED_HEIGHTS)
    return KernelProgram(
        q_len=sizes[0],
        kv_len=sizes[1],
        mask_heads=sizes[2],
        per_head=bool(sizes[3]),
        queries=_side(arrays[:6], sizes[4 : 4 + half]),
        keys=_side(arrays[6:], sizes[4 + half : 4 + 2 * half]),
        sizes=tuple(sizes),
    )


def _side(arrays: list[torch.Tensor], sizes: Sequence[int]) -> Side:
    return Side(*arrays, num_slots=sizes[0], groups=_groups(tuple(sizes[1:])))


@functools.lru_cache(maxsize=1024)  # each new length has counts of its own
def _groups(counts: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    groups, first = [], 0
    for height, count in zip(PACKED_HEIGHTS, counts, strict=True):
        if count:
            groups.append((height, first, count))
        first += count
    return tuple(groups)


def _arrays(side: Side) -> list[torch.Tensor]:
    return [side.items, side.rows, side.slots, side.cols, side.words, side.merges]
