"""A record for phases: it keeps their rows."""

from __future__ import annotations

from typing import Any


class Rows:
    """What a phase adds to, as `gpu_check.Record`."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row; each says what it is about, whether it passed and why."""
        assert row["check"] and row["why"] and row["passed"] in (True, False, None)
        self.rows.append(row)

    def only(self) -> dict[str, Any]:
        """The one row."""
        (row,) = self.rows
        return row
