"""Learning masks: the Differentiable Attention Mask (DAM) of the SparseBERT paper, and past it.

`mask` has the module with the parameters, `structure` how positions share them, `drawing` what a
forward pass uses of them and the noise stream, `sampling` the two ways to draw, `gates` the
attention under a soft mask, `penalties` what pushes the mask to be sparse (or cheap), `binarize`
the way to an `AttentionMask`, `warm_start` and `pooled_scores` where a search begins, `schedules`
how temperature and penalty change over the training, `search` all decisions of one training,
`importance` the paper's analysis.
Models and training loops are in `sparsebert.integrations`.
"""

from sparsebert.dam.mask import DifferentiableAttentionMask

__all__ = ["DifferentiableAttentionMask"]
