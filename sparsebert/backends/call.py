"""What all parts of one executor call share."""

from __future__ import annotations

import dataclasses

import torch

from sparsebert import dropout
from sparsebert.support.tensors import may_hold_any

SCRATCH = 1 << 23
"""Elements of scores, or of gathered keys, that one step may hold; bounds the memory."""


def needed(key_mask: torch.Tensor | None) -> torch.Tensor | None:
    """None for a key mask that is seen to hide nothing."""
    return key_mask if key_mask is None or may_hold_any(~key_mask) else None


def expand_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Repeat the H_kv heads of k or v for the query heads that share them."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def without_padding(x: torch.Tensor, key_mask: torch.Tensor | None) -> torch.Tensor:
    """Zero the rows of [B, H, M, D] that the key mask hides: 0 * NaN would be NaN."""
    return x if key_mask is None else x.masked_fill(~key_mask[:, None, :, None], 0.0)


@dataclasses.dataclass(frozen=True)
class Dropout:
    """The dropout of one call: probability and the Philox key of each batch and head."""

    p: float
    keys: torch.Tensor  # int64 [B, H]

    def factor(
        self, keys: torch.Tensor, query: torch.Tensor, key: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """0 where an element is dropped, 1 / (1 - p) where it is kept; arguments broadcast."""
        kept = dropout.keep_bits(keys, query, key, dropout.drop_threshold(self.p))
        return kept.to(dtype).mul_(1.0 / (1.0 - self.p))


@dataclasses.dataclass(frozen=True)
class Call:
    """The options of one call.

    Attributes:
        scale: factor of the scores.
        key_mask: bool [B, M] or None.
        dropout: None without dropout.
        fused: use torch's flash kernels for the CPU instead of composed operations.
    """

    scale: float
    key_mask: torch.Tensor | None
    dropout: Dropout | None
    fused: bool
