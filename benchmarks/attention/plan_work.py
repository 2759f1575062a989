"""What a plan computes in a call of the native kernels: scores in tiles, and single ones.

A column of a tile is computed for 16 rows, whether all of them attend to it or not; a column that
the key mask hides is left out at run time. Heads that run dense compute all scores.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from sparsebert.backends import routing
from sparsebert.plan import AttentionPlan
from sparsebert.tiles.format import TileSet

NATIVE = "native"
ROWS = 16


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of one call, over all of its batch and heads.

    Attributes:
        tile_scores: 16 for each column of a tile.
        entry_scores: single entries.
        dense_scores: all scores of the heads that run dense.
        routes: who runs how many heads, "12 native".
    """

    tile_scores: int
    entry_scores: int
    dense_scores: int
    routes: str

    @property
    def scores(self) -> int:
        """All of them."""
        return self.tile_scores + self.entry_scores + self.dense_scores


def work_of(
    plan: AttentionPlan, heads: int, batch: int, dtype: torch.dtype, key_mask: torch.Tensor | None
) -> Work | None:
    """The work of a call on the CPU by "auto"; None if others than the native kernels run tiles.

    Args:
        plan: of one layer's mask on the CPU.
        heads: of the call; a mask of one head serves all of them.
        dtype: of q, k and v.
        key_mask: bool [B, M], True = a real token, or None.
    """
    tiles_by, dense_by = routing.choose("auto", "cpu", dtype, plan.report.head_dim, False)
    schedule = plan.schedule
    used = schedule.head_map if len(schedule.head_map) == heads else np.zeros(heads, np.int64)
    times = np.bincount(used, minlength=len(schedule.dense_heads))  # heads of each distinct one
    dense = int(times[schedule.dense_heads].sum())
    if tiles_by != NATIVE and dense < heads:
        return None
    by_tiles = ~schedule.dense_heads
    tiles = schedule.queries(by_tiles, singles=True)
    visible = np.ones((batch, plan.kv_len), bool) if key_mask is None else key_mask.cpu().numpy()
    columns, entries = (
        sum(int((each(tiles, sample) * times[: tiles.num_heads]).sum()) for sample in visible)
        for each in (_tile_columns, _entries)
    )
    everyone = {tiles_by: heads - dense}
    everyone[dense_by] = everyone.get(dense_by, 0) + dense
    return Work(
        ROWS * columns,
        entries,
        dense * batch * plan.q_len * plan.kv_len,
        ", ".join(f"{count} {name}" for name, count in everyone.items() if count),
    )


def _tile_columns(tiles: TileSet, visible: np.ndarray) -> np.ndarray:
    """Columns of tiles that the key mask leaves, by distinct head: int64 [U]."""
    tile = np.repeat(np.arange(tiles.num_tiles), tiles.padded_width)
    rank = np.arange(len(tiles.cols)) - tiles.col_start[tile]
    seen = (rank < tiles.width[tile]) & visible[tiles.cols]
    return np.bincount(tiles.head[tile[seen]], minlength=tiles.num_heads)


def _entries(tiles: TileSet, visible: np.ndarray) -> np.ndarray:
    """Single entries that the key mask leaves, by distinct head: int64 [U]."""
    seen = np.concatenate([[0], np.cumsum(visible[tiles.entry_cols])])
    ends = tiles.entry_start[:: tiles.num_rows]
    return np.diff(seen[ends])
