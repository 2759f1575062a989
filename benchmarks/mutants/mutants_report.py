"""What a run of faults says: survivors that are explained, the table, the list of the others."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mutants.faults import Fault
from benchmarks.mutants.trials import Trial


@dataclass(frozen=True)
class Explained:
    """A fault that no test needs to notice, and why. Lines by their text: numbers move."""

    file: str
    line: str
    fault: str
    why: str

    def covers(self, fault: Fault) -> bool:
        return (self.file, self.line, self.fault) == (fault.file, fault.before, fault.after)


def read_explained(path: Path) -> list[Explained]:
    """The entries of a TOML file of [[survivor]] tables."""
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("survivor", [])
    return [Explained(**entry) for entry in entries]


def stale(explained: list[Explained], faults: dict[str, list[Fault]]) -> list[Explained]:
    """Entries that no longer name a fault that could be tried: their line changed or is gone."""
    return [
        entry
        for entry in explained
        if not any(entry.covers(fault) for fault in faults.get(entry.file, []))
    ]


def table(trials: list[Trial], possible: dict[str, int]) -> str:
    """One row an area: how many faults there are, were tried, and were noticed."""
    lines = [
        "| area | possible | tried | caught | timed out | explained | survived | share caught |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for area in [*possible, "all"]:
        outcomes = [trial.outcome for trial in trials if area in ("all", trial.area)]
        count = {name: outcomes.count(name) for name in ("caught", "timed out", "explained")}
        survived = outcomes.count("survived")
        noticed = count["caught"] + count["timed out"]
        share = f"{100 * noticed / (noticed + survived):.0f} %" if noticed + survived else "-"
        total = sum(possible.values()) if area == "all" else possible[area]
        cells = [area, total, len(outcomes), *count.values(), survived, share]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def survivors(trials: list[Trial]) -> str:
    """Every fault that no test noticed, as file:line, the line, and the line with the fault."""
    return "\n".join(str(trial.fault) for trial in trials if trial.outcome == "survived")
