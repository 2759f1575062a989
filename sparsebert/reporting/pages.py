"""A report: printed as it comes, kept for a Markdown page with tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sparsebert.reporting.tables import Column, Row, as_markdown, as_text, write_csv


class Page:
    """A folder that fills with ``report.md``, CSV files and pictures.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._page: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot write to {folder}: {error.strerror}") from error

    def title(self, words: str) -> None:
        """Begin a part."""
        print(f"\n{words}\n{'=' * len(words)}", flush=True)
        self._page.append(f"## {words}")

    def say(self, words: str) -> None:
        """Add a paragraph."""
        print(words, flush=True)
        self._page.append(words)

    def note(self, words: str) -> None:
        """Add a paragraph to the page alone."""
        self._page.append(words)

    def table(self, rows: Sequence[Row], columns: Sequence[Column]) -> None:
        """Add a table."""
        print(as_text(rows, columns), flush=True)
        self._page.append(as_markdown(rows, columns))

    def data(self, rows: Sequence[Row], name: str) -> None:
        """Write rows to a CSV file, all of their values."""
        write_csv(rows, self.folder / name)

    def picture(self, name: str, draw: Callable[[Path], None]) -> None:
        """Let `draw` write a PNG file, and show it on the page."""
        draw(self.folder / name)
        self._page.append(f"![{Path(name).stem.replace('_', ' ')}]({name})")

    def write(self, heading: str) -> Path:
        """Write the page under a heading; returns its path."""
        path = self.folder / "report.md"
        path.write_text("\n\n".join([heading, *self._page]) + "\n", encoding="utf-8")
        return path
