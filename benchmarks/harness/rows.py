"""Rows of results in a file, on disk as soon as they are there, each with where it comes from.

A run that is cut short loses nothing: what it wrote is read again, but for half a row at the end.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsebert.storage import write_atomically

Row = dict[str, Any]


class RowFile:
    """CSV with these columns, or (without columns) JSON lines, whose rows may have any.

    Args:
        path: of the file; its folder is made when rows are written.
        columns: of the CSV, before those of the origin; a row without one is empty there.
        origin: what this run adds to each row that does not say so itself; see `origin.origin`.
        made_by: the command that writes such files, for errors.
    """

    def __init__(
        self,
        path: Path,
        columns: Iterable[str] | None = None,
        *,
        origin: Mapping[str, str] | None = None,
        made_by: str = "",
    ) -> None:
        self.path, self.origin, self.made_by = path, dict(origin or {}), made_by
        self.columns = None if columns is None else list(dict.fromkeys([*columns, *self.origin]))

    def read(self) -> list[Row]:
        """All rows; the values of a CSV are text.

        Raises FileNotFoundError, or ValueError if the file has not these columns.
        """
        text = self.path.read_text(encoding="utf-8")
        if self.columns is None:
            return [row for line in text.splitlines() if (row := _parsed(line)) is not None]
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = [name for name in self.columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{self.path}: no column {', '.join(missing[:3])}; it must be a file of "
                f"{self.made_by}"
            )
        return [row for row in reader if None not in row.values()]

    def of_this_run(self, *whatever: str) -> list[Row]:
        """The rows of this origin, of whatever day; none of a file that is not there or of another
        kind.

        Args:
            whatever: columns of the origin that may differ, too.
        """
        try:
            rows = self.read()
        except (FileNotFoundError, ValueError):
            return []
        same = [name for name in self.origin if name not in ("date", *whatever)]
        return [row for row in rows if all(row.get(n) == self.origin[n] for n in same)]

    def append(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Add rows, and the header of a CSV if they are the first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", newline="", encoding="utf-8") as file:
            size = file.tell()
            if size:
                file.seek(size - 1)
                if file.read() != "\n":  # half a row, which `read` leaves out
                    file.write("\n")
            file.write(self._text(rows, header=not size))
            file.flush()
            os.fsync(file.fileno())

    def write(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Put these in the place of all rows, in one step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically("benchmarks", self.path, self._text(rows, header=True).encode())

    def _text(self, rows: Iterable[Mapping[str, object]], *, header: bool) -> str:
        rows = [{**self.origin, **row} for row in rows]
        if self.columns is None:
            return "".join(json.dumps(row) + "\n" for row in rows)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def _parsed(line: str) -> Row | None:
    try:
        row: Row = json.loads(line)
    except json.JSONDecodeError:  # cut off in the middle of a line
        return None
    return row
