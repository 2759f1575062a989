"""A table as text for a person, as CSV for a program, and as Markdown for a report."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    """All values of the rows, unrounded, one column for each key."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
