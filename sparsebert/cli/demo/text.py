"""Real English text that every CPython brings along: its language reference and its docstrings.

Sentences are cut and ordered deterministically, so that two runs with the same Python see the
same text.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_MODULES = (
    "argparse", "ast", "base64", "calendar", "collections/__init__",
    "concurrent/futures/_base", "configparser", "contextlib", "copy", "csv", "dataclasses",
    "datetime", "decimal", "difflib", "doctest", "email/message", "enum", "fractions",
    "functools", "gettext", "heapq", "http/client", "inspect", "ipaddress", "json/__init__",
    "locale", "logging/__init__", "mailbox", "optparse", "os", "pathlib", "pickle", "random",
    "shutil", "smtplib", "socket", "statistics", "string", "subprocess", "tarfile",
    "tempfile", "textwrap", "threading", "traceback", "turtle", "typing", "unittest/case",
    "unittest/mock", "urllib/parse", "urllib/request", "uuid", "zipfile",
)  # fmt: skip
_LIST_MARK = re.compile(r"^(?:[-*•]|\d+[.)]|\[\d+\])\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“])")


def sentences() -> list[str]:
    """All different sentences of 6 to 60 words, in a fixed order."""
    found: dict[str, None] = {}
    for text in (*_topics(), *_docstrings()):
        for paragraph in _paragraphs(text):
            for sentence in _SENTENCE_END.split(paragraph):
                if _is_prose(sentence):
                    found.setdefault(sentence)
    return list(found)


def passages(words: int) -> list[str]:
    """Consecutive sentences of the language reference, joined into pieces of that many words."""
    every = " ".join(
        sentence
        for text in _topics()
        for paragraph in _paragraphs(text)
        for sentence in _SENTENCE_END.split(paragraph)
        if _is_prose(sentence)
    ).split()
    starts = range(0, len(every) - words + 1, words)
    return [" ".join(every[start : start + words]) for start in starts]


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in _MODULES:
        source = library / f"{name}.py"
        if not source.exists():  # modules come and go between versions of Python
            continue
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield inspect.cleandoc(ast.get_docstring(node) or "")


def _paragraphs(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.splitlines()]
        yield " ".join([_LIST_MARK.sub("", lines[0]), *lines[1:]]) if lines else ""


def _is_prose(sentence: str) -> bool:
    """Words with a capital at the start and a full stop at the end, not code or a table."""
    if not (sentence[:1].isupper() and sentence.endswith(".")):
        return False
    if any(mark in sentence for mark in ("::=", ">>>", "...", "**", "->", " = ", "==", "__", "|")):
        return False
    plain = sum(character.isalpha() or character == " " for character in sentence)
    return 6 <= len(sentence.split()) <= 60 and plain >= 0.9 * len(sentence)
