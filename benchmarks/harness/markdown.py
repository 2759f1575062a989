"""Tables of the reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body)]
