"""What the compiled kernels take, step by step, from `kernel_steps.csv` and like rows.

Each step of the work has the counts of its rows there, D = 64 in bf16 on sm_90 without a key mask;
what a step has no row for is as before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from benchmarks.harness.origin import RESULTS
from benchmarks.harness.rows import Row, RowFile
from benchmarks.predictions.launch_model import AllCounts, Counts, Design
from sparsebert.tiles.format import HEIGHTS

STEPS = RESULTS / "kernel_steps.csv"
CURRENT = RESULTS / "fit_gpu_counts.csv"
"""The kernels as they are, for all targets: `python -m benchmarks.cost.fit_gpu --count`."""

TRITON = "3.6.0"
"""Of the counts: that of the GPU machine."""

_CURRENT = "as they are"
_CAPPED = "64 columns a step, registers capped"

_LISTS = (5, 5, 5)
"""Trips to memory: work list, rows, queries, columns, keys."""
_RECORDS = (4, 4, 4)
"""A record with the rows, queries, columns, keys."""
_TOGETHER = (3, 4, 3)
"""Columns are asked for with the tile's own rows; but ptxas lets dq wait for these first."""

VERSIONS: tuple[tuple[Design, str], ...] = (
    (Design("before", _LISTS, chained=False, fused_delta=False), "before"),
    (Design(_CAPPED, _LISTS, chained=False, fused_delta=False), _CAPPED),
    (Design("one height, long lists split", _LISTS, chained=False, fused_delta=False), ""),
    (Design("columns carried, records", _RECORDS, chained=False, fused_delta=False), _CURRENT),
    (Design("rows chained", _RECORDS, chained=True, fused_delta=False), ""),
    (Design("delta in dq", _RECORDS, chained=True, fused_delta=True), ""),
    (Design("columns first", _TOGETHER, chained=True, fused_delta=True), ""),
)
"""The kernels before and after each step, which build on each other, and which step of
`kernel_steps.csv` has their counts: `_CURRENT` for those of `CURRENT`, "" for no others than
before.
"""

NOW = VERSIONS[-1][0]
"""The kernels as they are."""

_AMD_PROGRAMS = 16
"""Wavefronts of a compute unit by registers, as long as nobody counts them: four a SIMD."""


def counts_by_step() -> dict[str, AllCounts]:
    """Counts of each step."""
    rows = RowFile(STEPS, ("step", "kernel", "rows", "programs")).read()
    chosen = [row for row in rows if row["triton"] == TRITON and row["key_mask"] == "False"]
    known: dict[tuple[str, int], Counts] = {}
    found: dict[str, AllCounts] = {}
    for design, counted in VERSIONS:
        if counted == _CURRENT:
            known |= current_counts("sm90", 64)
        known |= counts_of(row for row in chosen if row["step"] == counted)
        found[design.name] = dict(known)
    return found


def current_counts(arch: str, head_dim: int) -> dict[tuple[str, int], Counts]:
    """The counts of the kernels as they are, in bf16 without a key mask."""
    rows = RowFile(CURRENT, ("kernel", "arch", "head_dim", "per_1000")).read()
    own = (row for row in rows if (row["arch"], row["head_dim"]) == (arch, str(head_dim)))
    return counts_of(own, arch)


def counts_of(rows: Iterable[Row], arch: str = "sm90") -> dict[tuple[str, int], Counts]:
    """Counts by kernel and tile height, of rows such as the survey's.

    A height without a row of its own (128) runs as programs of the next one below.
    """
    found: dict[tuple[str, int], Counts] = {}
    for row in rows:
        if row["error"]:
            continue
        for height in str(row["rows"]).split():
            found[row["kernel"], int(height)] = _counts(row, arch)
    for kernel in {kernel for kernel, _ in found}:
        for low, high in itertools.pairwise(HEIGHTS):
            if (kernel, low) in found:
                found.setdefault((kernel, high), found[kernel, low])
    return found


def _counts(row: Row, arch: str) -> Counts:
    warps = int(row["num_warps"])
    full, _, bits = str(row["per_1000"]).partition(" / ")
    return Counts(
        block_m=int(row["block_m"]),
        block_n=int(row["block_n"]),
        num_warps=warps,
        in_flight=_steps_in_flight(str(row["in_flight"])),
        programs=int(row["programs"] or 0) or max(1, _AMD_PROGRAMS // warps),
        full=float(full),
        bits=float(bits or full),
        from_shared=arch in ("sm90", "sm100") and int(row["block_m"]) >= 64,
    )


def _steps_in_flight(of_loops: str) -> int:
    """The least of the loops, each with a group of copies for K and one for V in flight for a
    step; "-" stands for a loop without asynchronous copies.
    """
    groups = min(0 if number == "-" else int(number) for number in of_loops.split(" / "))
    return max(min(groups, 1), groups // 2)
