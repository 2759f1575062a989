"""Where text comes from: a file, a column of a CSV or of a dataset folder, Python itself."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sparsebert.learn.python_text import docstrings, topics

StrPath = str | os.PathLike[str]


def python_text() -> str:
    """Python's own English, about 1 MB: its language reference and docstrings."""
    return "\n\n".join([*topics(), *docstrings()])


def text_of_file(path: StrPath) -> str:
    """A UTF-8 text file as it is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no UTF-8 text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text_of_file: {os.fspath(path)} is not UTF-8 text ({error.reason} at byte "
            f"{error.start}); convert it, for example with iconv -t utf-8"
        ) from error


def text_of_csv(path: StrPath, column: str | None = None) -> str:
    """The text column of a CSV file with a heading line, a row a line.

    Args:
        path: the file, UTF-8, comma-separated.
        column: its text column; None means "text", or the only one there is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no heading, or no such column.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        name = _column("text_of_csv", path, reader.fieldnames or [], column)
        return _joined(row[name] for row in reader)


def text_of_dataset(folder: StrPath, column: str | None = None) -> str:
    """The text column of a HuggingFace dataset that `save_to_disk` wrote, a row a line.

    Args:
        folder: a dataset, or a DatasetDict, of which the split "train" is taken.
        column: its text column; None means "text", or the only one that holds strings.

    Raises:
        ModuleNotFoundError: the datasets package is not installed.
        ValueError: no dataset there, no split "train", or no such column.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "text_of_dataset: dataset folders need the datasets package: pip install datasets"
        ) from error
    try:
        found = datasets.load_from_disk(os.fspath(folder))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"text_of_dataset: {os.fspath(folder)} is no dataset folder; write one with "
            "datasets' save_to_disk"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if "train" not in found:
            raise ValueError(
                f"text_of_dataset: {os.fspath(folder)} has no split 'train', but "
                f"{', '.join(found)}; give the folder of one split"
            )
        found = found["train"]
    strings = [
        name
        for name, kind in found.features.items()
        if getattr(kind, "dtype", "") in ("string", "large_string")
    ]
    return _joined(found[_column("text_of_dataset", folder, strings, column)])


def _column(where: str, path: StrPath, names: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    name = "text" if wanted is None else wanted
    if name not in names:
        raise ValueError(
            f"{where}: {os.fspath(path)} has no text column {name!r}; name one of its columns: "
            f"{', '.join(names) or '(there are none)'}"
        )
    return name


def _joined(rows: Iterable[str | None]) -> str:
    return "\n".join(row for row in rows if row)
