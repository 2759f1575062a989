"""How precise the steps of a computation are: unit roundoffs, and what they make of a sum."""

from __future__ import annotations

import dataclasses
import math

import torch

FAILURE = 1e-9
"""The chance that correctly rounded arithmetic breaks a bound anywhere in one comparison."""

_EXP = {
    torch.float16: 2.0**-13,
    torch.bfloat16: 2.0**-13,
    torch.float32: 20 * 2.0**-23,
    torch.float64: 2.0**-52,
}
"""Relative error of exp by the dtype of q, k and v, the least precise in use: torch's CPU kernels
take `fexp_u20` for 16 bits (pytorch #151441; 1.1e-4 measured, AVX2 and AVX-512) and `exp_u20` for
fp32 (20 units in the last place); CUDA's `ex2.approx` errs by 2 units, Sleef's fp64 by 1."""

_THREE_TF32 = 3.0 * 2.0**-22
"""A product as three of tf32: each half is rounded at 2^-22, the product of the low ones left."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to nearest."""
    return torch.finfo(dtype).eps / 2.0


def concentration(elements: int) -> float:
    """lambda: how many times its scale an error of zero mean can be, in any of `elements` results.

    Hoeffding: a sum of independent errors of zero mean with |e_i| <= a_i exceeds
    lambda * sqrt(sum a_i^2) with probability 2 exp(-lambda^2 / 2) at most.
    """
    return math.sqrt(2.0 * math.log(2.0 * max(1, elements) / FAILURE))


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """The precision of one implementation.

    Attributes:
        storage: dtype of inputs and outputs, to which matrix products round their operands.
        accumulate: dtype of sums, scores and probabilities.
        product: unit roundoff of one product in a matrix product.
        stores_scores: scores, probabilities and their gradients lie in `storage` between the
            operations, as where attention is written out in torch operations.
        passes_on: a row's result may be rounded to `storage` between two tiles that cover it, as
            the Triton kernels do with chained rows.
    """

    storage: torch.dtype
    accumulate: torch.dtype
    product: float
    stores_scores: bool = False
    passes_on: bool = False

    @classmethod
    def of(
        cls, x: torch.Tensor, *, stores_scores: bool = False, passes_on: bool = False
    ) -> Arithmetic:
        """What attention over tensors like x uses: sums in fp32 or better."""
        accumulate = torch.promote_types(x.dtype, torch.float32)
        product = unit_roundoff(accumulate)
        if x.dtype == torch.float32 and x.is_cuda:
            # Not allow_tf32, which raises an error after the newer setting was made. The hardware
            # may cut to tf32 instead of rounding.
            tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
            product = 2.0**-10 if tf32 else _THREE_TF32
        return cls(x.dtype, accumulate, product, stores_scores, passes_on)

    @property
    def stored(self) -> float:
        """Unit roundoff of results, and of the operands of matrix products."""
        return unit_roundoff(self.storage)

    @property
    def summed(self) -> float:
        """Unit roundoff of sums and elementwise steps."""
        return unit_roundoff(self.accumulate)

    @property
    def rounds_operands(self) -> bool:
        """Whether probabilities are rounded again before they are multiplied."""
        return self.storage != self.accumulate

    @property
    def quantum(self) -> float:
        """The error of what underflows in `storage`: half of its smallest number.

        In bf16 all that is below the smallest normal number, which processors take for zero when
        they convert to it or multiply it (`vcvtneps2bf16`, `vdpbf16ps`).
        """
        info = torch.finfo(self.storage)
        if self.storage == torch.bfloat16:
            return info.smallest_normal
        return info.smallest_normal * info.eps / 2.0

    @property
    def smallest(self) -> float:
        """Below this, sums and elementwise steps lose bits, or everything."""
        return torch.finfo(self.accumulate).smallest_normal

    @property
    def exp(self) -> float:
        """Relative error of a probability's exponential."""
        return _EXP[self.storage]

    @property
    def rescale(self) -> float:
        """Relative error of the exponential by which a partial sum is rescaled."""
        return 2.0 * torch.finfo(self.accumulate).eps

    def sums(self, terms: int, certainty: float, *, products: bool = False) -> float:
        """Error of a sum of `terms`, in any order, relative to the sum of their absolute values.

        The smaller of the certain bound, terms * u, and the probable one, lambda sqrt(terms) * u
        (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci.
        Comput. 41(5), 2019, theorem 2.4, to first order).
        """
        roundoff = max(self.summed, self.product) if products else self.summed
        return min(float(terms), certainty * math.sqrt(terms)) * roundoff
