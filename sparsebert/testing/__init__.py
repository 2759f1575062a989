"""What a right result is, and how far rounding may move it: for tests, benchmarks and `verify`.

* `expected_attention`: the exact results of one call, and for each element the largest error
  that its arithmetic can make (`sparsebert.testing.error_bounds` has the derivation).
* `route_bound`: the same for a whole model, where no bound can be derived, from other routes
  through the same model.
"""

from sparsebert.testing.arithmetic import Arithmetic
from sparsebert.testing.error_bounds import expected_attention
from sparsebert.testing.models import root_mean_square, route_bound
from sparsebert.testing.outcome import Expected, Outcome

__all__ = [
    "Arithmetic",
    "Expected",
    "Outcome",
    "expected_attention",
    "root_mean_square",
    "route_bound",
]
