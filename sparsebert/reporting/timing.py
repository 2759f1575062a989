"""Timing calls side by side, and what may be said of the times.

A median says nothing where the times of one call differ widely: on a busy machine the same call
takes 5 ms now and 200 ms later. So times are `Spread`s, which print as a fact only where their
outer quantiles are close, and as the range between them elsewhere.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

Calls = Mapping[str, Callable[[], object]]

WIDE = 1.25
"""The 80 % quantile over the 20 % one, from which on a figure is uncertain."""
FEWEST = 3
"""Rounds without which it is, whatever they gave."""


def side_by_side(
    calls: Calls,
    *,
    seconds: float,
    least: int = 5,
    most: float = math.inf,
    limit: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time several calls in turn, so that a drifting machine hits all alike.

    Rounds go on until `seconds` have passed and at least `least` are done. There are no more than
    `most`, and none but the first begins when `limit` seconds have passed. Each round begins with
    another of the calls (A B C, B C A, ...). In its turn each is called twice and the second call
    is timed: what ran before it leaves its traces in caches and in the memory allocator, which
    cost up to 1.6 times the time after plain torch operations with their large matrices. Returns
    the times of each in milliseconds, round by round. `progress` is called after each round.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    order = collections.deque(calls.items())
    rounds = 0
    spent = 0.0
    while rounds < most and (rounds < least or spent < seconds) and (not rounds or spent < limit):
        for name, call in order:
            call()
            before = clock()
            call()
            times[name].append((clock() - before) * 1e3)
        order.rotate(-1)
        rounds += 1
        progress()
        spent = time.perf_counter() - start
    return times


def own_clock() -> tuple[Callable[[], float], str]:
    """The clock for CPU calls of this thread, and what it shows, in words.

    With one thread it is this thread's CPU time, which grows no longer while the thread waits for
    a core; with more there is only the time on the wall.
    """
    import torch

    if torch.get_num_threads() == 1:
        return time.thread_time, "CPU time"
    return time.perf_counter, "time"


@dataclasses.dataclass(frozen=True)
class Spread:
    """A figure that was measured several times: its 20, 50 and 80 % quantiles.

    >>> Spread.of([1.00, 1.01, 1.02, 1.03]).show("{:.2f}x")
    '1.01x'
    >>> Spread.of([0.2, 1.0, 6.5, 6.6]).show("{:.1f}x")
    'uncertain: 0.7x to 6.5x'
    """

    low: float
    middle: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more values."""
        return cls(*quantiles(values), len(values))

    @classmethod
    def ratio(cls, above: Sequence[float], below: Sequence[float]) -> Spread:
        """The spread of the ratios round by round, which a slow drift of the machine leaves be."""
        return cls.of([a / b for a, b in zip(above, below, strict=True)])

    @property
    def uncertain(self) -> bool:
        """Too few rounds, or outer quantiles more than a factor of `WIDE` apart."""
        return self.rounds < FEWEST or self.high > WIDE * self.low

    def show(self, form: str) -> str:
        """The median in this format, or the range where that would say too much."""
        if self.rounds < FEWEST:
            few = f"{self.rounds} round{'s' * (self.rounds > 1)}"
            return f"uncertain: {form.format(self.middle)} ({few})"
        if self.uncertain:
            return f"uncertain: {form.format(self.low)} to {form.format(self.high)}"
        return form.format(self.middle)

    def brief(self, form: str) -> str:
        """The median, with a question mark where it is uncertain."""
        return form.format(self.middle) + "?" * self.uncertain


def uncertain_words(spreads: Iterable[Spread]) -> str:
    """A sentence on how many of the figures are uncertain and why; "" if none is."""
    every = list(spreads)
    count = sum(spread.uncertain for spread in every)
    if not count:
        return ""
    return (
        f"{count} of {len(every)} ratios are uncertain: their 80 % quantile is more than {WIDE:g} "
        f"times the 20 % one (the range is given), or there were fewer than {FEWEST} rounds. Run "
        "it again when the machine is idle."
    )


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 20 %, 50 % and 80 % quantiles."""
    if len(values) == 1:
        return (values[0],) * 3
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]
