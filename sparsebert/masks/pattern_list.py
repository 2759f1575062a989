"""What the hand-made patterns are called and take: for the command line's list and its options.

>>> from sparsebert.masks.pattern_list import pattern_list, takes_length
>>> print(pattern_list().splitlines()[0])
dense(seq_len)
>>> takes_length("star"), takes_length("neighborhood_2d")
(True, False)
"""

from __future__ import annotations

import inspect

from sparsebert.masks.patterns import PATTERNS


def pattern_list() -> str:
    """Every pattern with its parameters and defaults, and below it what it does."""
    lines = []
    for name, function in PATTERNS.items():
        parameters = ", ".join(
            key if value.default is inspect.Parameter.empty else f"{key}={value.default}"
            for key, value in inspect.signature(function).parameters.items()
        )
        summary = (function.__doc__ or "").strip().splitlines()[0]
        lines += [f"{name}({parameters})", f"    {summary}"]
    return "\n".join(lines)


def takes_length(name: str) -> bool:
    """Whether a pattern is built for any number of tokens; False if its grid says how many.

    A name that is no pattern's counts as one: `build` refuses it with the list of those there are.
    """
    return name not in PATTERNS or "seq_len" in inspect.signature(PATTERNS[name]).parameters
