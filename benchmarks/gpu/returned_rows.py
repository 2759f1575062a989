"""The rows that a GPU's run brought back: read, and refused unless they can be published.

A number is published with its whole provenance, of one clean commit, on a GPU that was there, and
only if the gate before it found nothing wrong. Rows that were made up to try the tools say so in a
column of their own (`MADE_UP`), and are refused wherever a repository would keep them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.end_to_end.end_to_end_report import row_file
from benchmarks.gpu.gpu_rows import as_line, latest
from benchmarks.harness.origin import COLUMNS
from benchmarks.harness.rows import Row, RowFile

PROVENANCE = ("processor", "threads", "torch", "triton", "sparsebert", "commit", "tree", "date")
"""Columns that every row must have."""
ONE_RUN = ("processor", "torch", "triton", "sparsebert", "commit", "tree")
"""Columns in which all rows must agree."""
MADE_UP = "made_up"
_GATE = "gate"
_MOST_SHOWN = 5


class Refused(ValueError):
    """The rows cannot be published; the message has a line for each reason."""


def read(folder: Path) -> list[Row]:
    """The last row about each thing, of all JSON lines in a folder, in the order of the runs.

    Raises FileNotFoundError if there are no such files, NotADirectoryError for one of them.
    """
    if folder.is_file():
        raise NotADirectoryError(
            f"{folder} is a file; give the folder that came back, such as {folder.parent}"
        )
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no *.jsonl there; give the folder that came back")
    found = [row for path in paths for row in RowFile(path).read()]
    rows = [row for row in found if isinstance(row, dict) and "check" in row]
    rows.sort(key=lambda row: str(row.get("run", "")))  # stable
    return list(latest(rows).values())


def publishable(rows: Sequence[Row], *, for_repository: bool) -> list[Row]:
    """The rows themselves.

    Args:
        rows: of one run, or of several that went on from each other.
        for_repository: they will be written where a repository keeps them.

    Raises Refused.
    """
    reasons = [
        *_no_gpu(rows),
        *_without_provenance(rows),
        *_of_several_runs(rows),
        *_wrong(rows),
        *(_made_up(rows) if for_repository else []),
    ]
    if reasons:
        raise Refused("\n".join(reasons))
    return list(rows)


def whole_models(folder: Path, rows: Sequence[Row]) -> list[Row]:
    """The rows of whole models that came back beside those of a run; none if there is no file.

    Args:
        folder: what came back.
        rows: of the run.

    Raises Refused if they are of another run than those.
    """
    try:
        found = row_file(folder, "cuda").read()
    except FileNotFoundError:
        return []
    run = next(row for row in rows if row["check"] == "machine")
    same = [name for name in ONE_RUN if name in COLUMNS]
    others = [row for row in found if any(row[name] != run[name] for name in same)]
    if others:
        differs = [n for n in same if others[0][n] != run[n]]
        what = ", ".join(f"{n} is {others[0][n]}, not {run[n]}" for n in differs)
        raise Refused(f"{len(others)} rows of whole models are of another run: {what}")
    return found


def _no_gpu(rows: Sequence[Row]) -> list[str]:
    machines = [row for row in rows if row["check"] == "machine" and row.get("passed") is True]
    if any(row.get("capability") for row in machines):
        return []
    return ["no row of a machine with a GPU: was it --smoke, or cut off before it began?"]


def _without_provenance(rows: Sequence[Row]) -> list[str]:
    rows = [row for row in rows if row["check"] != "phase"]  # that one ended is no result
    reasons = []
    for name in PROVENANCE:
        lacking = [row for row in rows if row.get(name) in (None, "", "unknown")]
        if lacking:
            reasons.append(f"{len(lacking)} rows do not say their {name}: {_shown(lacking)}")
    dirty = [row for row in rows if row.get("tree") not in ("clean", None, "", "unknown")]
    if dirty:
        reasons.append(f"{len(dirty)} rows are of a tree that is not clean: {_shown(dirty)}")
    return reasons


def _of_several_runs(rows: Sequence[Row]) -> list[str]:
    reasons = []
    for name in ONE_RUN:
        found = sorted({str(row[name]) for row in rows if row.get(name)})
        if len(found) > 1:
            reasons.append(f"rows of several runs: {name} is {', '.join(found)}; take one")
    return reasons


def _wrong(rows: Sequence[Row]) -> list[str]:
    gate = [row for row in rows if row.get("phase") == _GATE and row["check"] != "phase"]
    right = [row for row in gate if row.get("passed") is True]
    wrong = [row for row in gate if row.get("passed") is False]
    if wrong:
        return [f"the gate is red, {len(wrong)} rows are wrong: {_shown(wrong)}"]
    despite = [row for row in rows if row.get("despite")]
    if despite:
        return [f"{len(despite)} timings were made though others were red: {_shown(despite)}"]
    return [] if right else ["the gate found nothing right: it was not run, or cut off"]


def _made_up(rows: Sequence[Row]) -> list[str]:
    found = [row for row in rows if row.get(MADE_UP)]
    if not found:
        return []
    return [f"{len(found)} rows are made up; they may go to a scratch folder alone"]


def _shown(rows: Sequence[Row]) -> str:
    lines = [" ".join(as_line(row).split()) for row in rows[:_MOST_SHOWN]]
    return "; ".join([*lines, *(["..."] if len(rows) > _MOST_SHOWN else [])])
