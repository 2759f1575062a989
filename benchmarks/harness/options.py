"""Types of command-line options that many benchmarks have, with readable errors."""

from __future__ import annotations

import argparse
import math

from sparsebert.cli.options import positive

__all__ = ["duration", "positive"]


def duration(text: str) -> float:
    """Seconds or minutes: a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number
