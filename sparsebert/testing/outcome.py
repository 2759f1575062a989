"""Results held against what they must be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How far one result is from the exact one.

    Attributes:
        name: "o", "lse", "dq", "dk" or "dv".
        error: the largest absolute error.
        budget: what is allowed at the element that comes closest to its bound, or exceeds it
            most.
        ratio: error over bound of that element; infinite where a NaN is, or a value that should
            be exact is not.
    """

    name: str
    error: float
    budget: float
    ratio: float

    @property
    def passed(self) -> bool:
        """Whether every element lies within its bound."""
        return self.ratio <= 1.0

    def __str__(self) -> str:
        return f"{self.name}: {self.ratio:.3g} x its bound of {self.budget:.3g}"


@dataclasses.dataclass(frozen=True)
class Expected:
    """The exact results of one call of attention, and the largest errors allowed.

    Attributes:
        exact: fp64 by name: "o" [B, H, N, D], "lse" [B, H, N] (-inf where a query may attend to
            nothing) and with a gradient given "dq", "dk", "dv".
        bound: the same names and shapes.
    """

    exact: dict[str, torch.Tensor]
    bound: dict[str, torch.Tensor]

    def outcomes(self, results: Mapping[str, torch.Tensor]) -> list[Outcome]:
        """Hold some or all results against the exact ones; raises ValueError on other shapes."""
        return [self._outcome(name, result) for name, result in results.items()]

    def _outcome(self, name: str, result: torch.Tensor) -> Outcome:
        exact, bound = self.exact[name], self.bound[name]
        if result.shape != exact.shape:
            raise ValueError(
                f"Expected.outcomes: {name} must be {list(exact.shape)}, got {list(result.shape)}"
            )
        if not result.numel():
            return Outcome(name, 0.0, 0.0, 0.0)
        found = result.detach().double()
        error = torch.where(found == exact, 0.0, (found - exact).abs())  # equal infinities agree
        error = error.nan_to_num(nan=math.inf, posinf=math.inf)
        ratio = torch.where(bound.isfinite(), error / bound, math.inf)  # else it bounds nothing
        ratio = ratio.masked_fill(error == 0.0, 0.0).flatten()
        worst = int(ratio.argmax())
        return Outcome(
            name, error.max().item(), bound.flatten()[worst].item(), ratio[worst].item()
        )
