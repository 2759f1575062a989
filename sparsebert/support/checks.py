"""Argument checks whose messages name the function, the argument, what it takes and what came."""

import operator
from collections.abc import Iterable

import numpy as np


def integer(
    where: str, argument: str, value: int, least: int | None = None, most: int | None = None
) -> int:
    """`value` as a Python int from `least` to `most`; bool is no integer here.

    Raises:
        TypeError: not an integer (floats are refused even if whole).
        ValueError: out of range.
    """
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{where}: {argument} must be an integer, got bool")
    try:
        number = operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{where}: {argument} must be an integer, got {kind}") from None
    if (least is not None and number < least) or (most is not None and number > most):
        if most is None:
            wanted = f"at least {least}"
        elif least is None:
            wanted = f"at most {most}"
        else:
            wanted = f"from {least} to {most}"
        raise ValueError(f"{where}: {argument}={number} but must be {wanted}")
    return number


def positions(where: str, argument: str, values: Iterable[int], length: int) -> list[int]:
    """Places in a sequence of `length`, where negative ones count from the end, from 0 on.

    Raises:
        TypeError, ValueError: see `integer`.
    """
    return [integer(where, argument, value, -length, length - 1) % length for value in values]
