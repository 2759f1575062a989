"""What became slower between two results of the attention benchmark.

    python -m benchmarks compare OLD NEW    # CSV files, or folders of them

Cases are matched by all that defines them, and by threads, MKL and instruction set. A change
counts if the ranges from the 20 % to the 80 % quantile do not overlap and the medians are at least
3 % apart (--least); the rest is noise.
The rivals' drift shows how far the machine itself changed. Exit status: 0 no regression, 1 some
regression, 2 unusable input.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.attention.result_files import Row, key_of, read, setting_of
from benchmarks.attention.rivals import OURS


@dataclasses.dataclass(frozen=True)
class Change:
    """A contender of a case in both results."""

    old: Row
    new: Row

    @property
    def ratio(self) -> float:
        """The new median over the old: above 1 it became slower."""
        return float(self.new["ms_50"]) / float(self.old["ms_50"])

    def is_slower(self, least: float) -> bool:
        """Slower beyond the noise of both."""
        apart = float(self.new["ms_20"]) > float(self.old["ms_80"])
        return apart and self.ratio >= 1.0 + least

    def is_faster(self, least: float) -> bool:
        """Faster beyond the noise of both."""
        apart = float(self.new["ms_80"]) < float(self.old["ms_20"])
        return apart and self.ratio <= 1.0 / (1.0 + least)


def changes(old: Sequence[Row], new: Sequence[Row]) -> list[Change]:
    """What both have times for."""
    before = {_matched_by(row): row for row in old if row["ms_50"]}
    return [
        Change(before[_matched_by(row)], row)
        for row in new
        if row["ms_50"] and _matched_by(row) in before
    ]


def lost(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Cases that we had times for and that the new results have without: they now fail."""
    timed = {_matched_by(row) for row in old if row["contender"] == OURS and row["ms_50"]}
    return [row for row in new if not row["ms_50"] and _matched_by(row) in timed]


def _matched_by(row: Row) -> tuple[str, ...]:
    return (*key_of(row), *setting_of(row), row["contender"])


def describe(row: Row) -> str:
    """A case in a line."""
    extras = [f"{name} {row[name]}" for name in ("dropout", "padding") if float(row[name])]
    parts = [row["mask"], f"N = {row['length']}", row["shape"], row["dtype"], row["direction"]]
    return f"{row['group']}: {', '.join([*parts, *extras])}"


def main(arguments: list[str] | None = None) -> int:
    """Compare; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--least", type=float, default=0.03, help="smallest change that counts")
    chosen = parser.parse_args(arguments)
    try:
        old, new = read(chosen.old), read(chosen.new)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    both = changes(old, new)
    ours = [change for change in both if change.new["contender"] == OURS]
    if not ours:
        parser.error("the two results have no case in common; were they made on the same device?")
    for name in ("processor", "python", "torch", "triton", "method"):
        before, after = (" and ".join(sorted({row[name] for row in part})) for part in (old, new))
        if before != after:
            print(f"mind: {name} was {before}, is {after}")
    slower = [change for change in ours if change.is_slower(chosen.least)]
    faster = [change for change in ours if change.is_faster(chosen.least)]
    for title, found in (("slower", slower), ("faster", faster)):
        for change in sorted(found, key=lambda change: -abs(change.ratio - 1.0)):
            print(
                f"{title}  x{change.ratio:.2f}  {change.old['ms_50']} -> "
                f"{change.new['ms_50']} ms  {describe(change.new)}"
            )
    failing = lost(old, new)
    for row in failing:
        print(f"fails   {describe(row)}: {row['note']}")
    rivals = [change.ratio for change in both if change.new["contender"] != OURS]
    drift = f"; the rivals take x{statistics.geometric_mean(rivals):.2f}" if rivals else ""
    print(
        f"{len(ours)} cases in both: {len(slower)} slower, {len(faster)} faster, "
        f"{len(failing)} fail; on average x{statistics.geometric_mean(c.ratio for c in ours):.2f}"
        f"{drift}"
    )
    return 1 if slower or failing else 0


if __name__ == "__main__":
    sys.exit(main())
