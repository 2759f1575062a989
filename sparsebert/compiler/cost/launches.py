"""What a cover costs where a launch runs all tiles of one height, a program each: on a GPU.

A row in exactly two tiles is chained: the first writes its result out, the second, in a later
launch, goes on from there. Results of a row in three tiles or more, and of too few chained rows to
be worth a launch, go by way of scratch, which one more launch adds up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sparsebert.tiles.outlines import TileOutlines

if TYPE_CHECKING:
    from sparsebert.compiler.cost.model import PassCost

WORTH_A_LAUNCH = 16
"""Of so many rows one must be chained: a launch for fewer takes longer than to merge them."""

SPLIT = 512
"""Columns of a tile that the search takes to be split, before it has."""


class LaunchCounts(NamedTuple):
    """What one launch runs.

    Attributes:
        stage: 1 if its tiles go on from what an earlier launch wrote out, else 0.
        height: row slots of a tile.
        tiles: how many.
        width: columns of all tiles.
        columns: the same in whole steps.
        longest: columns of the widest tile, in whole steps.
        rows: real rows of all tiles.
        chained: those that go on.
    """

    stage: int
    height: int
    tiles: int
    width: int
    columns: int
    longest: int
    rows: int
    chained: int


def launches_us(
    launches: Sequence[LaunchCounts],
    merges: int,
    q_len: int,
    kv_len: int,
    cost: PassCost,
    *,
    balanced: bool,
) -> float:
    """Time of a cover whose launches and results in scratch are these (`count_launches`).

    With `balanced` no launch is taken to wait for tiles that are longer than `SPLIT`.
    """
    total = cost.call + sum(
        cost.launch + _launch_us(launch, kv_len, cost, balanced=balanced) for launch in launches
    )
    if merges:
        total += cost.launch + cost.merge * merges
    return max(total, cost.floor(q_len, kv_len))


def _launch_us(launch: LaunchCounts, kv_len: int, cost: PassCost, *, balanced: bool) -> float:
    height, columns = launch.height, launch.columns
    busy = launch.tiles * (cost.tile + cost.row * height)
    busy += launch.width * cost.column + columns * cost.entry[height] * height
    moved = cost.floor_row * (launch.rows + min(launch.width, kv_len))
    moved += cost.chain * launch.chained
    longest, mean = launch.longest, columns / launch.tiles
    if balanced:
        longest = min(longest, max(SPLIT, int(mean)))
    beyond = cost.wait + cost.wait_column * (longest - mean)
    return max(max(busy, moved) + beyond, cost.wait + cost.wait_column * longest)


def count_launches(
    cover: Sequence[TileOutlines], q_len: int, step: int
) -> tuple[list[LaunchCounts], int]:
    """The launches that run a cover, in steps of so many columns, and how many results go to
    scratch.
    """
    times = np.zeros(q_len, dtype=np.int64)
    for tiles in cover:
        times += np.bincount(tiles.rows[tiles.rows >= 0], minlength=q_len)
    twice = times == 2
    if np.count_nonzero(twice) * WORTH_A_LAUNCH < q_len:
        twice[:] = False
    found: dict[tuple[int, int], LaunchCounts] = {}
    for stage, tiles, chained in _by_stage(cover, twice):
        columns = -(-tiles.width // step) * step
        counts = LaunchCounts(
            stage=stage,
            height=tiles.height,
            tiles=len(columns),
            width=int(tiles.width.sum()),
            columns=int(columns.sum()),
            longest=int(columns.max(initial=0)),
            rows=int(np.count_nonzero(tiles.rows >= 0)),
            chained=chained,
        )
        key = stage, tiles.height
        found[key] = _together(found[key], counts) if key in found else counts
    return list(found.values()), int(times[(times > 1) & ~twice].sum())


def _together(one: LaunchCounts, other: LaunchCounts) -> LaunchCounts:
    return LaunchCounts(
        stage=one.stage,
        height=one.height,
        tiles=one.tiles + other.tiles,
        width=one.width + other.width,
        columns=one.columns + other.columns,
        longest=max(one.longest, other.longest),
        rows=one.rows + other.rows,
        chained=one.chained + other.chained,
    )


def _by_stage(
    cover: Sequence[TileOutlines], twice: np.ndarray
) -> Iterator[tuple[int, TileOutlines, int]]:
    """Stage, tiles and how many of their rows go on; `twice`: the rows that are chained.

    A row goes on where the cover has it again. The packing colours tiles, which is the same for
    covers of two parts; of three it sends some of these rows to scratch.
    """
    if not twice.any():
        yield from ((0, tiles, 0) for tiles in cover if len(tiles.rows))
        return
    seen = np.zeros(len(twice), dtype=bool)
    for tiles in cover:
        used = tiles.rows >= 0
        rows = tiles.rows[used]
        goes_on = used.copy()
        goes_on[used] = twice[rows] & (seen[rows] | _again(rows))
        seen[rows] = True
        later = goes_on.any(axis=1)
        for stage, chosen in enumerate((~later, later)):
            if chosen.any():
                some = TileOutlines(tiles.rows[chosen], tiles.width[chosen])
                yield stage, some, int(np.count_nonzero(goes_on[chosen]))


def _again(rows: np.ndarray) -> np.ndarray:
    """Where a row occurs that occurs before, too."""
    again = np.ones(len(rows), dtype=bool)
    again[np.unique(rows, return_index=True)[1]] = False
    return again
