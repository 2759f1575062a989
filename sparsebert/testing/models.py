"""How far a whole model may be from exact, judged by other routes through the same model.

No bound can be derived through layers that amplify what came before. But every right route (its
own eager attention, torch's SDPA) makes an error of the same kind, so their size is the measure.
Sizes are root mean squares: the largest of many errors, or the error of one number, is a draw of
luck, their mean square is not. A wrong row of attention stands out in either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from sparsebert.testing.arithmetic import concentration

_ENOUGH = 64


def root_mean_square(x: torch.Tensor) -> float:
    """The root mean square of all elements, in fp64; NaN counts as infinite, nothing as 0."""
    if not x.numel():
        return 0.0
    mean: float = x.double().nan_to_num(nan=math.inf).square().mean().item()
    return math.sqrt(mean)


def route_bound(exact: torch.Tensor, routes: Iterable[torch.Tensor], dtype: torch.dtype) -> float:
    """The largest root mean square error of a result in `dtype`.

    Args:
        exact: the result in fp64, of 64 elements at least.
        routes: the same result by other right routes in `dtype`.

    Twice the largest error among the routes, because another order of operations may round twice
    as often, and one rounding of the result. Of n elements the error is a draw of n: it may be
    1 + lambda / sqrt(n) times its scale, as the norm of a Gaussian vector may (`concentration`).
    With 64 a route's own is below half of its scale with a chance of 2e-9 (Chernoff's bound for a
    chi-square variable); with few it tells nothing, so they raise a ValueError.
    """
    if exact.numel() < _ENOUGH:
        raise ValueError(
            f"route_bound: exact has {exact.numel()} elements, and the error of fewer than "
            f"{_ENOUGH} is a draw of luck; compare what they are computed from"
        )
    largest = max(root_mean_square(route.double() - exact) for route in routes)
    spread = 1.0 + concentration(1) / math.sqrt(exact.numel())
    step = torch.finfo(dtype).eps * root_mean_square(exact)
    return 2.0 * spread * largest + step
