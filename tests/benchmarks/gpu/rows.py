"""A record for phases: it keeps their rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Rows:
    """What a phase adds to, as `gpu_record.Record`.

    Args:
        earlier: rows that an earlier run has left.
        device: "cuda", or "cpu" where the kernels are interpreted.
    """

    jobs = 1

    def __init__(self, earlier: Iterable[dict[str, Any]] = (), device: str = "cuda") -> None:
        self.rows = list(earlier)
        self.device = device
        self.added: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row; each says what it is about, whether it passed and why."""
        assert row["check"] and row["why"] and row["passed"] in (True, False, None)
        self.rows.append(row)
        self.added.append(row)

    def only(self) -> dict[str, Any]:
        """The one row that was added."""
        (row,) = self.added
        return row
