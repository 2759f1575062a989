"""Rows of the attention benchmark as CSV files: one file a group, one row a case and contender.

A file is written case by case, so that an interrupted run loses nothing, and a later run goes on
where it stopped, as long as machine, versions, commit and method are the same. Runs that differ
in their setting alone (threads, MKL, instruction set) write into the same files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.attention.cases import KEY, Case
from benchmarks.attention.rivals import DENSE
from benchmarks.harness.rows import RowFile

Row = dict[str, str]

MEASURED = (
    "contender",
    "parameters",  # the pattern's own
    "density",
    "executed",  # share of the scores that the contender computes
    "compile_ms",  # of the plan, once a mask
    "first_ms",  # the first call
    "ms_20",
    "ms_50",
    "ms_80",
    "speedup",  # the contender's time over ours, median of the rounds
    "graph_ms",  # one of many calls in a CUDA graph
    "graph_speedup",
    "launch_bound",  # "yes" where the calls by themselves take much longer than in the graph
    "peak_mb",
    "predicted_speedup",  # over dense attention, by the cost model
    "floor_ms",  # q, k, v and o moved once
    "area_ms",  # the products of the executed scores
    "of_bound",  # the longer of the two over ms_50
    "roof_gb_s",
    "roof_tflop_s",
    "routes",  # of our heads: who runs how many
    "tile_scores",  # of a call: 16 for each column of a tile
    "entry_scores",  # of a call: those that stand alone
    "gflop_s",  # of the products of all scores that are computed
    "peak_gflop_s",  # of a core, times the threads
    "of_peak",  # one over the other
    "exp_share",  # of the time, at the rate of the kernels' own 2^x
    "moved_mb",  # what floor_ms moves
    "read_gb_s",  # rows of k and v that tiles and single entries read, forward
    "of_l2",  # of the rate at which cores read from their second cache
    "note",  # why there are no times, or what a reader should know
)
PROVENANCE = (
    "device",
    "processor",
    "threads",
    "mkl",  # see `benchmarks.harness.mkl`
    "isa",  # of the native kernels; "" where they cannot be used
    "python",
    "torch",
    "triton",
    "sparsebert",
    "commit",
    "tree",
    "method",
    "date",
)
COLUMNS = (*KEY, *MEASURED, *PROVENANCE)
SETTINGS = ("threads", "mkl", "isa")
"""What a machine's runs differ in: a file holds the rows of several settings beside each other."""
FAILED = "FAILED:"  # begins the note of a case that has no rows; it is tried again
BEST_DENSE = "best dense"  # the fastest of the routes without a mask


def key_of(row: Row) -> tuple[str, ...]:
    """The case of a row, as `Case.key` gives it."""
    return tuple(row[name] for name in KEY)


def setting_of(row: Row) -> tuple[str, ...]:
    """The setting of a row's run, see `SETTINGS`."""
    return tuple(row[name] for name in SETTINGS)


def read(path: Path) -> list[Row]:
    """The rows of a CSV file, or of all CSV files in a folder.

    Raises FileNotFoundError, or ValueError if a file has not the columns of these results.
    """
    if path.is_dir():
        return [row for file in sorted(path.glob("*.csv")) for row in read(file)]
    return row_file(path).read()


def row_file(path: Path, origin: Row | None = None) -> RowFile:
    """A CSV file of these results; `origin` is that of the run that writes it."""
    return RowFile(path, COLUMNS, origin=origin, made_by="python -m benchmarks run")


def with_best_dense(rows: Sequence[Row]) -> list[Row]:
    """The rows, and for each case the fastest route without a mask as one more contender."""
    best: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row["contender"] not in DENSE or not row["speedup"]:
            continue
        key = (*key_of(row), *setting_of(row))
        if key not in best or float(row["speedup"]) < float(best[key]["speedup"]):
            best[key] = row
    return [*rows, *({**row, "contender": BEST_DENSE} for row in best.values())]


class Store:
    """A folder of results, a file for each group.

    Args:
        folder: made when the first rows are added.
        origin: the provenance columns of this run.
        fresh: forget what was measured before, of the groups that rows are added to.
    """

    def __init__(self, folder: Path, origin: Row, *, fresh: bool = False) -> None:
        self.folder, self.origin, self._fresh = folder, origin, fresh
        self._opened: set[str] = set()

    def done(self, cases: Sequence[Case]) -> set[tuple[str, ...]]:
        """The keys of the cases that this very run, begun earlier, has measured already."""
        if self._fresh:
            return set()
        return {key_of(row) for row in self.rows(cases) if not _failed(row)}

    def rows(self, cases: Sequence[Case]) -> list[Row]:
        """This run's rows of some cases."""
        keys = {case.key for case in cases}
        groups = dict.fromkeys(case.group for case in cases)
        return [
            row
            for group in groups
            for row in self._file(group).of_this_run()
            if key_of(row) in keys
        ]

    def add(self, case: Case, rows: Iterable[dict[str, object]]) -> None:
        """Write the rows of one case; the first of a group drop those of other runs.

        Those of runs that differ in their setting alone stay.
        """
        file = self._file(case.group)
        fields = dict(zip(KEY, case.key, strict=True))
        lines = [{**fields, **row} for row in rows]
        if case.group in self._opened:
            file.append(lines)
            return
        self._opened.add(case.group)
        mine = setting_of(self.origin)
        kept = []
        for row in file.of_this_run(*SETTINGS, "method"):  # one thread is timed by another clock
            again = self._fresh or row["method"] != self.origin["method"]
            if not _failed(row) and not (again and setting_of(row) == mine):
                kept.append(row)
        file.write([*kept, *lines])

    def _file(self, group: str) -> RowFile:
        return row_file(self.folder / f"{group}.csv", self.origin)


def _failed(row: Row) -> bool:
    return row["note"].startswith(FAILED)
