"""Counts and durations of command lines: what they take, and what they say of the rest."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.harness.options import duration, positive


def test_what_counts() -> None:
    assert (positive("3"), duration("0.5"), duration("540")) == (3, 0.5, 540.0)


@pytest.mark.parametrize("text", ["0", "-3", "nan", "inf", "soon", ""])
def test_a_duration_is_a_number_above_0(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"a number above 0, got '{text}'"):
        duration(text)


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many"])
def test_a_count_is_a_whole_number(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number of at least 1"):
        positive(text)
