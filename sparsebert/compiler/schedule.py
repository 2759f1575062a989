"""A schedule: what the compiler decided for one layer's mask, before any backend sees it.

For every *distinct* head of the mask it holds a list of tiles, or the decision that the head runs
dense. It knows nothing of backends and devices; a plan holds it, and backends make their programs
of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from sparsebert.compiler.aim import Aim
from sparsebert.compiler.report import PlanReport
from sparsebert.compiler.shared_tiles import SharedTiles
from sparsebert.masks import AttentionMask
from sparsebert.tiles.assemble import without_heads
from sparsebert.tiles.format import TileSet


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A compiled mask of one layer; made by `compile_schedule`, `crop_schedule` and `load_plan`.

    Attributes:
        mask: the mask it was compiled from, one layer.
        head_map: int64 numpy [H], which of the U distinct heads each head uses.
        dense_heads: bool numpy [U], which distinct heads run dense instead of in tiles.
        tiles: the tiles of the other distinct heads: query rows, gathered key columns.
        report: the compiler's own account.
        shared_tiles: the owner of what is compiled once: `tiles`, the tiles of all heads and those
            of the transposed mask. Schedules cropped from this one share it.
    """

    mask: AttentionMask
    head_map: np.ndarray
    dense_heads: np.ndarray
    tiles: TileSet
    report: PlanReport
    shared_tiles: SharedTiles = dataclasses.field(repr=False)

    @classmethod
    def create(
        cls,
        mask: AttentionMask,
        head_map: np.ndarray,
        dense_heads: np.ndarray,
        tiles: TileSet,
        report: PlanReport,
        whole: SharedTiles | None = None,
    ) -> Schedule:
        """A schedule; `whole` are the tiles of the one that it is cropped from."""
        firsts = [head.heads[0] for head in report.per_head]
        aim = Aim.of(report, head_map)
        shared = SharedTiles(mask, firsts, tiles, ~dense_heads, aim, whole)
        return cls(mask, head_map, dense_heads, tiles, report, shared)

    @property
    def is_shared(self) -> bool:
        """All heads of the mask are the same."""
        return len(self.dense_heads) == 1

    def heads_of(self, distinct: np.ndarray) -> np.ndarray:
        """The heads that use some distinct heads, bool [U]: int64, ascending."""
        return np.flatnonzero(distinct[self.head_map])

    def queries(self, distinct: np.ndarray, *, singles: bool = False) -> TileSet:
        """Tiles of some distinct heads, bool [U]: query rows, gathered keys.

        Heads that the schedule runs dense get tiles, too, where they are asked for.

        Args:
            distinct: the heads.
            singles: tiles of 16 rows with single entries beside them, for a backend that runs
                these; else tiles that cover all entries. Where the schedule was made for a backend
                of the other kind, they are searched for.
        """
        shared = self.shared_tiles
        if shared.has_own(singles=singles) and not (distinct & self.dense_heads).any():
            return _only(self.tiles, distinct)
        return _only(shared.every_head(singles=singles), distinct)

    def keys(self, distinct: np.ndarray) -> TileSet:
        """Tiles of the transposed mask: key rows, gathered queries, for dK and dV.

        They never have single entries beside them.
        """
        return _only(self.shared_tiles.transposed, distinct)

    def dense(self) -> torch.Tensor:
        """The mask that is executed, rebuilt from its cover: bool [H, N, M] on the CPU."""
        distinct = self.tiles.dense()
        for u in np.flatnonzero(self.dense_heads):
            head = int(np.flatnonzero(self.head_map == u)[0])
            distinct[u] = self.mask.head(head).dense()[0, 0].numpy()
        return torch.from_numpy(distinct[self.head_map])

    def buffers(self) -> Iterator[np.ndarray]:
        """The arrays that the schedule keeps alive."""
        yield from (self.head_map, self.dense_heads)
        yield from self.shared_tiles.arrays()


def _only(tiles: TileSet, distinct: np.ndarray) -> TileSet:
    """The tiles of some distinct heads."""
    singles = np.diff(tiles.entry_start[:: tiles.num_rows])
    if distinct[tiles.head].all() and not singles[~distinct].any():
        return tiles
    return without_heads(tiles, ~distinct)
