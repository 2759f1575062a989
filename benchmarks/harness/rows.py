"""Rows of results in a file, on disk as soon as they are there.

A run that is cut short loses nothing: what it wrote is read again, but for half a row at the end.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsebert.storage import write_atomically

Row = dict[str, Any]


class RowFile:
    """CSV with these columns, or (without columns) JSON lines, whose rows may have any.

    Args:
        path: of the file; its folder is made when rows are written.
        columns: of the CSV; a row without one of them is empty there.
        made_by: the command that writes such files, for errors.
    """

    def __init__(
        self, path: Path, columns: Sequence[str] | None = None, *, made_by: str = ""
    ) -> None:
        self.path, self.columns, self.made_by = path, columns, made_by

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

    def write(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Put these in the place of all rows, in one step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically("benchmarks", self.path, self._text(rows, header=True).encode())

    def _text(self, rows: Iterable[Mapping[str, object]], *, header: bool) -> str:
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
