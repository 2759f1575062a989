"""The rows of a GPU's run, each on disk as soon as it is there; those of earlier runs count."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.gpu.gpu_rows import as_line, identity, latest
from benchmarks.harness.rows import Row, RowFile

SAME = ("processor", "torch", "triton", "sparsebert", "commit", "tree")
"""Columns in which an earlier run must agree for its rows to count."""
MOST_JOBS = 12


class Record:
    """What a run has found so far, for the phase that adds to it.

    Args:
        path: JSON lines.
        origin: the provenance that goes into every row; "run" tells runs apart.
        phase: the name of the phase that adds rows.
        device: "cuda"; "cpu" where Triton's interpreter runs the kernels.
        earlier: a file of an earlier run; its rows count, as those of `path` do, if they were made
            on such a machine, by the same versions and the same commit in a clean tree.

    Attributes:
        rows: those that count, then those that were added.
        is_complete: nothing that was added is wrong or was left undone.
        jobs: processes that a phase may start for independent work.
    """

    def __init__(
        self,
        path: Path,
        origin: Mapping[str, str],
        *,
        phase: str = "",
        device: str = "cuda",
        earlier: Path | None = None,
    ) -> None:
        self.file = RowFile(path, origin=origin)
        self.phase, self.device = phase, device
        self.jobs = max(1, min(MOST_JOBS, (os.cpu_count() or 1) - 1))
        self.is_complete = True
        before = rows_of(RowFile(earlier)) if earlier is not None and earlier != path else []
        # An earlier file may be where this run's rows are copied to, see `gpu_check.KEPT`.
        before = [row for row in before if row.get("run") != self.file.origin.get("run")]
        found = before + rows_of(self.file)
        self.rows = [row for row in found if counts(row, self.file.origin)]
        self.file.append([])  # a folder that cannot be written to is an error now, not later

    def is_right(self, row: Row) -> bool:
        """Whether what the row is about was found right, by its last row."""
        return latest(self.rows).get(identity(row), {}).get("passed") is True

    def add(self, row: Row, *, final: bool = False) -> None:
        """Keep, write and print a row; `final` if another run would not get further."""
        (row,) = self._keep([row])
        print(as_line(row), flush=True)
        undone = row.get("passed", True) is not True
        if not final and (undone or (row["check"] == "timing" and "why" in row)):
            self.is_complete = False

    def add_late(self, rows: Sequence[Row]) -> None:
        """Keep and write what there was no time for: hundreds of rows take a moment, at once."""
        if rows:
            print(f"{len(self._keep(rows))} more: {rows[0]['why']}", flush=True)
            self.is_complete = False

    def _keep(self, rows: Sequence[Row]) -> list[Row]:
        kept = [{**row, "phase": row.get("phase", self.phase)} for row in rows]
        self.rows += kept
        self.file.append(kept)
        return kept


def counts(row: Row, origin: Mapping[str, str]) -> bool:
    """Whether a row is of this run, or of one that it may go on from."""
    if row.get("run") == origin.get("run"):
        return True
    if origin.get("tree") != "clean":
        return False
    return all(row.get(name) == origin.get(name) for name in SAME)


def rows_of(file: RowFile) -> list[Row]:
    """The rows of a run in a file; none of one that is not there."""
    try:
        return [row for row in file.read() if isinstance(row, dict) and "check" in row]
    except FileNotFoundError:
        return []
