"""Exit codes, and the error that ends a command with one clear line."""

from __future__ import annotations

import argparse
import re

OK = 0
CHECK_FAILED = 1
USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class UsageError(Exception):
    """Something is wrong with what the user gave; the message says what and what to do."""

    @classmethod
    def of(cls, error: Exception, arguments: argparse.Namespace) -> UsageError:
        """A library's error in the words of the command line.

        Without the name of the function that raised it, which the user did not call (a pattern's
        name is one that they gave), and after the name of the option that it is about.
        """
        where, colon, what = str(error).partition(": ")
        given = getattr(arguments, "name", None), getattr(arguments, "pattern", None)
        if not colon or not re.fullmatch(r"\w+|[A-Z]\w+\.\w+", where) or where in given:
            what = str(error)
        argument = re.match(r"(\w+)(?==| must | \()", what)
        if argument and hasattr(arguments, argument[1]):
            what = f"--{argument[1].replace('_', '-')}: {what}"
        return cls(what)
