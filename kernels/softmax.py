"""The softmax's arithmetic: exponentials of differences, and in which unit the logarithms are."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def finite(maximum):
    """A maximum that can be subtracted: 0 where it is -inf, for -inf - -inf is NaN.

    Every loop with a running maximum takes it through here; scores that are -inf then become
    exp(-inf - 0) = 0. The backward loops have the LSE, which is +inf for a row with nothing to
    attend (see `dq.py`), so that all its probabilities are exp(s - inf) = 0.
    """
    return tl.where(maximum == -float("inf"), 0.0, maximum)


@triton.jit
def exponential(x, maximum, IS_FP32: tl.constexpr):
    """exp of x - maximum, both in the unit of `log_unit`; `maximum` broadcasts, see `finite`."""
    if IS_FP32:
        return tl.exp2((x - maximum) * 1.4426950408889634)  # log2(e)
    return tl.exp2(x - maximum)


@triton.jit
def log_unit(IS_FP32: tl.constexpr):
    """The unit of logarithms inside the kernels: base 2, so that a score costs a single FMA.

    Natural for fp32 inputs: one more product after the difference, but less rounding before it,
    which there would show.
    """
    return 1.0 if IS_FP32 else 1.4426950408889634  # log2(e)
