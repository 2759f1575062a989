"""Timing side by side, and what is said of times that scatter: all simulated."""

from __future__ import annotations

import itertools

import torch

from sparsebert.reporting import timing
from sparsebert.reporting.timing import Spread


def test_a_wide_spread_is_no_fact() -> None:
    steady = Spread.ratio([10.0, 10.1, 10.2, 10.3, 10.4], [5.0, 5.05, 5.1, 5.15, 5.2])
    assert not steady.uncertain
    assert steady.show("{:.2f}x") == "2.00x"
    wild = Spread.ratio([10.0, 200.0, 10.0, 10.0, 9.0], [5.0, 5.0, 50.0, 1.5, 45.0])
    assert wild.uncertain
    assert wild.show("{:.1f}x") == "uncertain: 0.2x to 13.3x"
    assert Spread.of([1.0, 1.0]).show("{:.1f}x") == "uncertain: 1.0x (2 rounds)"
    assert [spread.brief("{:.2f}") for spread in (steady, wild)] == ["2.00", "2.00?"]
    assert timing.uncertain_words([steady]) == ""
    words = timing.uncertain_words([steady, wild])
    assert "1 of 2 ratios are uncertain: their 80 % quantile is more than 1.25 times" in words


def test_a_slow_drift_leaves_ratios_certain() -> None:
    slower = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert Spread.of(slower).uncertain
    assert not Spread.ratio(slower, [time / 2 for time in slower]).uncertain


def test_side_by_side_ends_in_time_and_not_before() -> None:
    ticks = itertools.count()

    def slow() -> None:
        next(ticks)

    calls = {"a": slow, "b": slow}
    rounds: list[int] = []
    found = timing.side_by_side(
        calls, seconds=60.0, most=4, clock=lambda: float(next(ticks)),
        progress=lambda: rounds.append(1),
    )  # fmt: skip
    assert {name: len(times) for name, times in found.items()} == {"a": 4, "b": 4}
    assert len(rounds) == 4
    assert set(found["a"]) == {2e3}  # one call between two looks at the clock
    assert len(timing.side_by_side(calls, seconds=0.0, least=1, most=9)["a"]) == 1
    assert len(timing.side_by_side(calls, seconds=0.0, least=3)["b"]) == 3
    assert len(timing.side_by_side(calls, seconds=60.0, least=3, limit=0.0)["b"]) == 1
    assert len(timing.side_by_side(calls, seconds=0.0, least=3, limit=60.0)["b"]) == 3


def test_one_thread_is_timed_by_its_own_work() -> None:
    import time

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert timing.own_clock() == (time.thread_time, "CPU time")
        torch.set_num_threads(2)
        assert timing.own_clock() == (time.perf_counter, "time")
    finally:
        torch.set_num_threads(before)
