"""The rows of a GPU's run: what each is about, and the line that is shown of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.harness.rows import Row

IDENTITY = (
    "check", "plan", "mask", "n", "dim", "dtype", "features", "heads", "batch", "parts", "test",
    "contender", "direction", "dropout_p", "kernel", "height", "head_dim", "has_key_mask",
    "has_dropout", "block_m", "block_n", "num_warps", "num_stages", "maxnreg",
)  # fmt: skip
"""Columns that say what was checked or measured, not what was found."""
BY_TIME = "by time"
"""In the column "plan": the compiler's plan for the card, as a user gets it."""
ANYWAY = "GPU_CHECK_ANYWAY"
"""The environment variable that, as "1", has right plans timed whose kernels are red elsewhere.
Such rows say so in a column "despite", and are not for publishing.
"""
_ONE_A_PHASE = ("phase", "compile cache")
_WORDS = {True: "passed", False: "FAILED", None: "not run"}


def identity(row: Row) -> tuple[Any, ...]:
    """What tells what a row is about from what others are about."""
    names = (*IDENTITY, "phase") if row["check"] in _ONE_A_PHASE else IDENTITY
    return tuple(row.get(name) for name in names)


def latest(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    """The last row about each thing, by its `identity`."""
    return {identity(row): row for row in rows}


def as_line(row: Row) -> str:
    """A row for the screen."""
    check, word = row["check"], _WORDS[row.get("passed", True)]
    why = row.get("why", "")
    if check == "phase":
        took = f"{row['took_s']:.1f} of {row['of_s']:.0f} s" if "took_s" in row else ""
        return f"== {row['phase']:10}{'complete' if row['passed'] else why}  {took}"
    if check == "machine":
        card = ", ".join(f"{name} {value}" for name, value in row.items() if name != "check")
        return f"machine: {card}"
    if check == "timing":
        result = f"{row['ms_50']:9.3f} ms" if "ms_50" in row else f"   {why}"
        if "graph_ms" in row:
            result += f", {row['graph_ms']:.3f} in a graph"
        name = f"{row['batch']} x {row['n']} {row['mask']}"
        return f"{name:34} {row['contender']:14}{row.get('direction', ''):19}{result}"
    if check == "correct":
        name = f"{row['plan']:8} {row['mask']:20} N {row['n']:<5} D {row['dim']:<4}"
        name += f"{row['dtype']:9}{row['features']:27}"
        ratio = row.get("error_over_bound")
        found = "" if ratio is None else f"error {ratio:.2f} of its bound"
        return f"{name}{word:8} {why or found}"
    about = [str(row[name]) for name in IDENTITY[1:] if name in row]
    return f"{check:11}{' '.join(about):40} {word:8} {why}"
