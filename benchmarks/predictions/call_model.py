"""From a plan's tiles to the launches of a call, and what they should take together.

The launches are those that `sparsebert.backends.triton_pack` makes. Of versions before it did, the
tiles were kept (`tiles_before`), since the compiler of today makes others.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.harness.origin import RESULTS
from benchmarks.predictions.gpu_machines import Machine
from benchmarks.predictions.launch_model import (
    AllCounts,
    Call,
    Design,
    Launch,
    Times,
    delta_seconds,
    launch_times,
    merge_seconds,
)
from sparsebert.backends.triton_stages import cover_rows
from sparsebert.kernels.configs import TILE_KERNELS
from sparsebert.kernels.layout import CONTINUED, PACKED_HEIGHTS
from sparsebert.tiles.format import TileSet

BEFORE = RESULTS / "gpu_tiles_before.json"
"""Tiles of the paper's patterns as commit a22767d compiled them, each kept as `Launch` has it."""


@dataclasses.dataclass(frozen=True)
class Side:
    """The work of one direction, of one head.

    Attributes:
        launches: in order.
        merged: rows that the merge kernel writes.
        partial: partial results that it reads.
    """

    launches: tuple[Launch, ...]
    merged: int
    partial: int


@dataclasses.dataclass(frozen=True)
class Pass:
    """Seconds of one kernel in a call.

    Attributes:
        seconds: of all its launches, with what they cost.
        launches: how many.
        limit: what the longest of them waits for.
    """

    seconds: float
    launches: int
    limit: str


def side_of(tiles: TileSet, *, chained: bool) -> Side:
    """The launches over the tiles of one head."""
    covering = cover_rows(tiles)
    used = np.flatnonzero(covering.rows >= 0)
    tile, row, slots = covering.tile[used], covering.rows[used], covering.slots[used]
    stage, goes_on, scratch = covering.stage, slots == CONTINUED, slots >= 0
    if not chained:
        stage, goes_on = np.zeros_like(stage), np.zeros_like(goes_on)
        scratch = np.bincount(row, minlength=tiles.num_rows)[row] > 1
    launches = []
    for of_stage, height in itertools.product((0, 1), PACKED_HEIGHTS):
        chosen = np.flatnonzero((stage == of_stage) & (tiles.height == height))
        if not len(chosen):
            continue
        width = tiles.width[chosen].astype(np.int64)
        order = np.argsort(-width, kind="stable")
        inside = np.isin(tile, chosen)
        launches.append(
            Launch(
                height=height,
                width=width[order],
                full=tiles.full[chosen].astype(np.int64)[order],
                rows=len(np.unique(row[inside])),
                columns=_different_columns(tiles, chosen),
                continued=int((goes_on & inside).sum()),
                scratch=int((scratch & inside).sum()),
            )
        )
    in_scratch = np.unique(row[scratch])
    return Side(tuple(launches), len(in_scratch), int(scratch.sum()))


def _different_columns(tiles: TileSet, chosen: np.ndarray) -> int:
    lists = [tiles.columns(tile)[: tiles.width[tile]] for tile in chosen]
    return len(np.unique(np.concatenate(lists))) if lists else 0


def kernel_times(
    sides: tuple[Side, Side],
    rows: tuple[int, int],
    counts: AllCounts,
    design: Design,
    machine: Machine,
    call: Call,
) -> dict[str, Pass]:
    """Each kernel of a call; "merge" and "merge backward" are the launches that merge.

    Args:
        sides: tiles of query rows, and of key rows.
        rows: N and M.
    """
    found = {}
    for kernel, side in zip(TILE_KERNELS, (sides[0], sides[0], sides[1]), strict=True):
        times = [
            launch_times(
                kernel, launch, counts[kernel, launch.height], design, machine, call
            )
            for launch in side.launches
        ]  # fmt: skip
        found[kernel] = _together(times, machine)
    queries, keys = sides
    found["merge"] = _merges([(queries, 1)], machine, call)
    found["merge backward"] = _merges([(queries, 1), (keys, 2)], machine, call)
    if not design.fused_delta:
        found["delta"] = Pass(delta_seconds(rows[0], machine, call), 1, "hbm")
    return found


def forward_seconds(passes: Mapping[str, Pass]) -> float:
    """The forward pass."""
    return passes["forward"].seconds + passes["merge"].seconds


def backward_seconds(passes: Mapping[str, Pass]) -> float:
    """The backward pass alone."""
    names = ("delta", "dq", "dkdv", "merge backward")
    return sum(passes[name].seconds for name in names if name in passes)


def call_of(machine: Machine, copies: int, q_len: int, kv_len: int, head_dim: int = 64) -> Call:
    """A call in 16 bits; q, k, v and o may take half of the L2 to stay there."""
    moved = 2 * copies * (q_len + kv_len) * head_dim * 2
    return Call(copies, head_dim, 2, near=moved < machine.l2_bytes / 2)


def _together(times: list[Times], machine: Machine) -> Pass:
    limit = max(times, key=lambda each: each.total).limit if times else ""
    total = sum(each.total + machine.launch for each in times)
    return Pass(total, len(times), limit)


def _merges(sides: list[tuple[Side, int]], machine: Machine, call: Call) -> Pass:
    total = sum(
        merge_seconds(side.merged, side.partial, outputs, machine, call) for side, outputs in sides
    )
    launches = sum(outputs for side, outputs in sides if side.merged)
    return Pass(total, launches, "hbm" if launches else "")


def stored(side: Side) -> dict[str, Any]:
    """A side as JSON, widths in runs: [width, full, how many]."""
    launches = []
    for launch in side.launches:
        pairs = zip(launch.width.tolist(), launch.full.tolist(), strict=True)
        runs = [[*pair, len(list(same))] for pair, same in itertools.groupby(pairs)]
        launches.append({**vars(launch), "width": runs, "full": None})
    return {**vars(side), "launches": launches}


def loaded(entry: Mapping[str, Any]) -> Side:
    """The side of `stored`."""
    launches = []
    for launch in entry["launches"]:
        width, full, times = np.array(launch["width"], dtype=np.int64).reshape(-1, 3).T
        arrays = {"width": np.repeat(width, times), "full": np.repeat(full, times)}
        launches.append(Launch(**{**launch, **arrays}))
    return Side(tuple(launches), entry["merged"], entry["partial"])


def tiles_before() -> Iterator[tuple[str, int, tuple[Side, Side]]]:
    """Mask, N and both sides of each plan that was kept."""
    for entry in json.loads(BEFORE.read_text(encoding="utf-8")):
        queries, keys = (loaded(entry[side]) for side in ("queries", "keys"))
        yield entry["mask"], entry["n"], (queries, keys)
