"""How temperature, penalty weight and sparsity change over a training."""

from __future__ import annotations

import dataclasses
import math

_NAME = "SparsityController"


def annealed(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at progress 1, by equal ratios (both above 0).

    >>> annealed(4.0, 1.0, 0.5)
    2.0
    """
    progress = min(max(progress, 0.0), 1.0)
    ratio: float = (end / start) ** progress
    return start * ratio


def ramp(target: float, progress: float, start: float = 0.0) -> float:
    """Sparsity from `start` to `target`: fast first, slow at the end (Zhu and Gupta, 2017).

    target + (start - target) * (1 - progress) ** 3.

    >>> ramp(0.8, 0.0), ramp(0.8, 1.0)
    (0.0, 0.8)
    """
    progress = min(max(progress, 0.0), 1.0)
    left: float = (1.0 - progress) ** 3
    return target + (start - target) * left


@dataclasses.dataclass
class SparsityController:
    """Finds the weight of the penalty at which the mask has the asked sparsity.

    Proportional-integral control on logarithmic scales, because densities and useful weights
    differ by orders of magnitude. Distance is that of the density from the one to be reached
    now, in log odds; after each step the weight's logarithm moves by `rate` times the distance,
    and `boost` times the distance is added for the moment, which keeps it from swinging.

    Attributes:
        sparsity: the goal, in (0, 1).
        weight: of the mean penalty, to begin with: rather too small than too large, since a mask
            that is too sparse too early has lost what it needs.
        rate, boost: gains, of the integral and of the proportional part.
        least, most: bounds of the weight, so that it does not run away where the goal cannot be
            reached, or is reached without any penalty.

    Example:
        >>> controller = SparsityController(sparsity=0.9)
        >>> before = controller.weight
        >>> controller.update(density=0.5) > before  # too dense: more weight
        True
    """

    sparsity: float
    weight: float = 0.1
    rate: float = 0.1
    boost: float = 2.0
    least: float = 1e-6
    most: float = 1e6

    def __post_init__(self) -> None:
        if not 0.0 < self.sparsity < 1.0:
            raise ValueError(f"{_NAME}: sparsity must be in (0, 1), got {self.sparsity}")
        for name in ("weight", "rate", "least", "most"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ValueError(f"{_NAME}: {name} must be above 0 and finite, got {value}")

    def wanted(self, progress: float) -> float:
        """The sparsity that should be reached by now."""
        return ramp(self.sparsity, progress, start=min(0.5, self.sparsity))

    def update(self, density: float, progress: float = 1.0) -> float:
        """The weight for the next step.

        Args:
            density: expected density of the mask now, in (0, 1].
            progress: share of the way to the goal, by `ramp`, that should be reached by now.
        """
        wanted = 1.0 - self.wanted(progress)
        density = min(max(density, 1e-6), 1.0 - 1e-6)
        distance = math.log(density / (1.0 - density) * (1.0 - wanted) / wanted)
        distance = min(max(distance, -2.0), 2.0)
        self.weight = min(max(self.weight * math.exp(self.rate * distance), self.least), self.most)
        return min(self.weight * math.exp(self.boost * distance), self.most)
