"""The part of README.md that comes from the rows of GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.attention.cases import PAPER
from benchmarks.gpu import gpu_tables
from benchmarks.gpu.gpu_results import TIMES, read
from benchmarks.harness.origin import ROOT
from benchmarks.harness.rows import Row

README = ROOT / "README.md"
BEGIN = "<!-- gpu: begin (python -m benchmarks.gpu.take_results) -->"
END = "<!-- gpu: end -->"
NOTHING = "Nothing has been timed on a GPU yet."


def block(times: Sequence[Row]) -> list[str]:
    """The lines between the marks, from the rows of `gpu_times.csv`."""
    if not times:
        return [NOTHING]
    lines = []
    for processor in dict.fromkeys(row["processor"] for row in times):
        mine = [row for row in times if row["processor"] == processor and row["mask"] in PAPER]
        if not mine:
            continue
        first = mine[0]
        tokens = int(first["batch"]) * int(first["n"])
        lines += [
            f"On an {processor} the time of others over ours, forward / forward + backward: above",
            f"1 we win, below 1 we lose ({first['heads']} heads of {first['dim']}, "
            f"{first['dtype']}, {tokens:,} tokens; torch {first['torch']},",
            f"Triton {first['triton']}, commit {first['commit']}, {first['date']}):",
            "",
            *gpu_tables.speedups(mine),
            "",
        ]
    return [
        *lines,
        "[The report](benchmarks/results/gpu.md) has the times themselves, what was predicted,",
        "and what limits the kernels.",
    ]


def around(path: Path) -> tuple[str, str]:
    """What stands before and after the marks.

    Raises ValueError if the file has not both of them, once.
    """
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path.name}: must hold each of these lines once: {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    return before, rest.split(END)[1]


def update(path: Path, results: Path) -> None:
    """Replace what stands between the marks by the rows in `results`; errors as `around`."""
    before, after = around(path)
    lines = [BEGIN, "", *block(read(TIMES, results)), "", END]
    path.write_text(before + "\n".join(lines) + after, encoding="utf-8")
