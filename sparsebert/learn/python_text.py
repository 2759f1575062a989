"""English text that every CPython brings along: its language reference and docstrings.

The same Python gives the same text.
"""

from __future__ import annotations

import ast
import inspect
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


def topics() -> list[str]:
    """The language reference by topic, as plain text of about 0.5 MB."""
    from pydoc_data.topics import topics as by_name

    return [by_name[name] for name in sorted(by_name)]


def docstrings() -> Iterator[str]:
    """The docstrings of fifty modules of the standard library, about 0.6 MB."""
    for found in _by_module():
        yield from found


def docstrings_by_module() -> list[str]:
    """The same, all docstrings of a module in one text, which may be empty."""
    return ["\n\n".join(each for each in found if each) for found in _by_module()]


def _by_module() -> Iterator[list[str]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in _MODULES:
        source = library / f"{name}.py"
        if not source.exists():  # modules come and go between versions of Python
            continue
        yield [
            inspect.cleandoc(ast.get_docstring(node) or "")
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        ]
