"""The committed rows of GPUs: which files, which columns, and how a new run takes its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.returned_rows import MADE_UP, PROVENANCE
from benchmarks.harness.rows import Row, RowFile

_CONFIG = (
    "kernel", "arch", "height", "head_dim", "dtype", "has_key_mask", "has_dropout", "block_m",
    "block_n", "num_warps", "num_stages", "maxnreg",
)  # fmt: skip
_ORIGIN = (*PROVENANCE, MADE_UP)


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file of results.

    Attributes:
        checks: which rows belong into it, by their column "check".
        columns: before the provenance.
    """

    name: str
    checks: tuple[str, ...]
    columns: tuple[str, ...]

    def file(self, folder: Path) -> RowFile:
        """The file in a folder."""
        return RowFile(
            folder / self.name,
            (*self.columns, *_ORIGIN),
            made_by="python -m benchmarks.gpu.take_results",
        )


TIMES = Table(
    "gpu_times.csv",
    ("timing",),
    (
        "contender", "mask", "batch", "n", "heads", "dim", "dtype", "direction", "ms_20", "ms_50",
        "ms_80", "graph_ms", "speedup", "launch_bound", "executed", "first_ms", "peak_mb", "note",
        "why",
    ),
)  # fmt: skip
CHECKS = Table(
    "gpu_checks.csv",
    (
        "machine", "correct", "same bits", "memcheck", "racecheck", "test", "tests",
        "compile cache", "precompile", "end to end",
    ),
    (
        "check", "phase", "plan", "mask", "n", "dim", "dtype", "features", "heads", "batch",
        "parts", "test", "passed", "error_over_bound", "why",
    ),
)  # fmt: skip
SWEEP = Table(
    "gpu_sweep.csv",
    ("sweep",),
    (*_CONFIG, "shipped", "mask", "n", "ms_20", "ms_50", "ms_80", "passed", "why"),
)
PROFILE = Table(
    "gpu_profile.csv",
    ("profile",),
    (
        "kernel", "mask", "n", "microseconds", "occupancy_pct", "occupancy_limit_pct",
        "tensor_pct", "issue_active_pct", "l2_hit_pct", "l2_bytes", "dram_read_bytes",
        "dram_written_bytes", "instructions", "registers", "shared_bytes", "stalls", "passed",
        "why",
    ),
)  # fmt: skip
TABLES = (TIMES, CHECKS, SWEEP, PROFILE)


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Put a run's rows in the place of all that the files have of its processor.

    Those of other processors stay. Returns the paths of the files that have rows.
    """
    processors = {row["processor"] for row in rows if "processor" in row}
    written = []
    for table in TABLES:
        mine = [_as_text(row, table) for row in rows if row["check"] in table.checks]
        others = [row for row in read(table, folder) if row["processor"] not in processors]
        file = table.file(folder)
        if mine or others:
            file.write([*others, *mine])
            written.append(file.path)
        else:
            file.path.unlink(missing_ok=True)
    return written


def read(table: Table, folder: Path) -> list[Row]:
    """The rows of a file, all values text; none if there is no file."""
    try:
        return table.file(folder).read()
    except FileNotFoundError:
        return []


def _as_text(row: Row, table: Table) -> Row:
    """The columns of the table as the CSV has them; "" is what is not there."""
    found = {}
    for name in (*table.columns, *_ORIGIN):
        value = row.get(name)
        if isinstance(value, dict):
            value = "; ".join(f"{key} {number:.2f}" for key, number in value.items())
        if name == "why":
            value = " ".join(str(value or "").split())
        found[name] = "" if value is None else str(value)
    return found
