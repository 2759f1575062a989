"""What a mask can save in a whole model, without running the model.

Attention is a part of the work; the rest (projections, feed-forward, norms) stays. So a faster
attention makes the model faster by Amdahl's law: the share of the time that attention takes says
what can be gained at all, the plan's predicted speed-up what is gained of it.

Attention is priced by the compiler's cost model (`sparsebert.compiler.cost.model`). The rest of a
layer is its floating-point operations over a rate: measured on the spot on a CPU (`calibrate`), a
fitted constant without that, and on a GPU the documented peak times a stated utilisation.
Embeddings, pooler and task heads are left out.

    >>> import sparsebert as sb
    >>> from sparsebert.estimate import ModelShape, estimate
    >>> bert = ModelShape(hidden_size=768, layers=12, heads=12, intermediate_size=3072)
    >>> found = estimate(bert, sb.patterns.longformer(1024), target="sm90", batch=8)
    >>> 1.0 <= found.speedup() <= found.best_speedup()
    True
"""

from sparsebert.estimate.by_length import table
from sparsebert.estimate.prediction import Estimate, estimate
from sparsebert.estimate.rates import Rates, calibrate, stored_rates
from sparsebert.estimate.shape import ModelShape

__all__ = ["Estimate", "ModelShape", "Rates", "calibrate", "estimate", "stored_rates", "table"]
