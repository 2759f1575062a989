"""Means over seeds, and differences within seeds, with their confidence intervals."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping

from scipy import stats

_SURE = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with the half-width of its 95 % interval (Student's t); NaN of one value alone."""

    mean: float
    half: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        """Of independent values, one for each seed."""
        values = list(values)
        count = len(values)
        if count < 2:
            return cls(values[0] if values else math.nan, math.nan, count)
        error = statistics.stdev(values) / count**0.5
        return cls(
            statistics.fmean(values), stats.t.ppf((1 + _SURE) / 2, count - 1) * error, count
        )

    @property
    def low(self) -> float:
        """The lower end; of one seed the value alone."""
        return self.mean if math.isnan(self.half) else self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end; of one seed the value alone."""
        return self.mean if math.isnan(self.half) else self.mean + self.half

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval lies on one side of 0, else 0 (also of one seed)."""
        if not abs(self.mean) > self.half:
            return 0
        return 1 if self.mean > 0 else -1

    def show(self, digits: int = 4, *, signed: bool = False) -> str:
        """The mean and the half-width; of one seed the mean alone."""
        if not self.count:
            return ""
        mean = f"{self.mean:{'+' if signed else ''}.{digits}f}"
        return mean if math.isnan(self.half) else f"{mean} ± {self.half:.{digits}f}"


def difference(mine: Mapping[int, float], other: Mapping[int, float]) -> Interval:
    """Of mine from other, seed by seed; seeds that one of them lacks are left out."""
    return Interval.of(mine[seed] - other[seed] for seed in sorted(mine.keys() & other.keys()))
