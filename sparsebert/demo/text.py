"""Real English text that every CPython brings along: its language reference and its docstrings.

Sentences are cut and ordered deterministically, so that two runs with the same Python see the
same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sparsebert.learn.python_text import docstrings, topics

_LIST_MARK = re.compile(r"^(?:[-*•]|\d+[.)]|\[\d+\])\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“])")


def sentences() -> list[str]:
    """All different sentences of 6 to 60 words, in a fixed order."""
    found: dict[str, None] = {}
    for text in (*topics(), *docstrings()):
        for paragraph in _paragraphs(text):
            for sentence in _SENTENCE_END.split(paragraph):
                if _is_prose(sentence):
                    found.setdefault(sentence)
    return list(found)


def passages(words: int) -> list[str]:
    """Consecutive sentences of the language reference, joined into pieces of that many words."""
    every = " ".join(
        sentence
        for text in topics()
        for paragraph in _paragraphs(text)
        for sentence in _SENTENCE_END.split(paragraph)
        if _is_prose(sentence)
    ).split()
    starts = range(0, len(every) - words + 1, words)
    return [" ".join(every[start : start + words]) for start in starts]


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
