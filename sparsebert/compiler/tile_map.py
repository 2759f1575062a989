"""Looking into a plan: which tile covers, or computes in vain, each position of a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sparsebert.tiles.images import NOT_COMPUTED, SINGLE, WASTE

if TYPE_CHECKING:
    from sparsebert.compiler.schedule import Schedule


def tile_map(schedule: Schedule, head: int = 0) -> npt.NDArray[np.int32]:
    """Which tile covers each position of one head of a plan's schedule: int32 [N, M].

    A position holds the number of the tile (0, 1, ... among the head's tiles, those with the most
    rows first) that covers it, `SINGLE` where an entry stands alone, `NOT_COMPUTED` where nothing
    has it, and `WASTE` where a tile computes a score that it does not need. The entries of a head
    that runs dense are all of tile 0, the rest of it is waste. Padding columns and empty row slots
    are not positions, so they do not show.

    Raises IndexError if the plan has no such head.

    >>> import sparsebert as sb
    >>> plan = sb.compile_plan(sb.patterns.block_local(64, 32), objective="area", target="sm90")
    >>> tile_map(plan.schedule)[[0, 0, 32, 63], [31, 32, 31, 63]].tolist()
    [0, -1, -1, 1]
    """
    heads = len(schedule.head_map)
    if not 0 <= head < heads:
        raise IndexError(f"tile_map: head {head} but the plan has {heads} head(s)")
    distinct = int(schedule.head_map[head])
    if schedule.dense_heads[distinct]:
        allowed = schedule.mask.head(head).dense()[0, 0].numpy()
        return np.where(allowed, np.int32(0), np.int32(WASTE))
    found = np.full((schedule.mask.q_len, schedule.mask.kv_len), NOT_COMPUTED, dtype=np.int32)
    tiles = schedule.tiles
    for number, tile in enumerate(np.flatnonzero(tiles.head == distinct).tolist()):
        slots, width = tiles.row_slots(tile), int(tiles.width[tile])
        rows = slots[slots >= 0]
        place = np.ix_(rows, tiles.columns(tile)[:width])
        covered = tiles.allowed(tile)[: len(rows), :width]
        before = found[place]
        found[place] = np.where(covered, number, np.where(before >= 0, before, WASTE))
    start, stop = distinct * tiles.num_rows, (distinct + 1) * tiles.num_rows
    rows = np.repeat(np.arange(tiles.num_rows), np.diff(tiles.entry_start[start : stop + 1]))
    found[rows, tiles.entry_cols[tiles.entry_start[start] : tiles.entry_start[stop]]] = SINGLE
    return found
