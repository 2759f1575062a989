"""A table as text for a person, as CSV for a program, and as Markdown for a report."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsebert.reporting.timing import Spread

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: the key of its values, its heading, and how a value is written for a person."""

    key: str
    heading: str
    show: Callable[[Any], str] = str


def as_text(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Aligned columns: text to the left, numbers to the right."""
    cells = [[column.show(row[column.key]) for column in columns] for row in rows]
    headings = [column.heading for column in columns]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    left = [isinstance(rows[0][column.key], str) for column in columns]

    def line(values: Sequence[str]) -> str:
        padded = (
            value.ljust(width) if to_left else value.rjust(width)
            for value, width, to_left in zip(values, widths, left, strict=True)
        )
        return "  " + "  ".join(padded).rstrip()

    return "\n".join(map(line, [headings, ["-" * width for width in widths], *cells]))


def as_markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A Markdown table with the same cells as `as_text`."""
    left = [isinstance(rows[0][column.key], str) for column in columns]
    lines = [
        [column.heading for column in columns],
        [":--" if to_left else "--:" for to_left in left],
        *([column.show(row[column.key]) for column in columns] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All values of the rows, unrounded, one column for each key.

    A `Spread` takes four: the median under the key, its quantiles under KEY_p20 and KEY_p80, and
    KEY_rounds.
    """
    flat = [_flat(row) for row in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        names = dict.fromkeys(name for row in flat for name in row)
        writer = csv.DictWriter(file, fieldnames=list(names), restval="")
        writer.writeheader()
        writer.writerows(flat)


def _flat(row: Row) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Spread):
            values[key] = value.middle
            values |= {f"{key}_p20": value.low, f"{key}_p80": value.high}
            values[f"{key}_rounds"] = value.rounds
        else:
            values[key] = value
    return values
