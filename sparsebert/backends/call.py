"""What all parts of one executor call share."""

from __future__ import annotations

import dataclasses

import torch
from torch.autograd import forward_ad

from sparsebert import dropout

SCRATCH = 1 << 23
"""Elements of scores, or of gathered keys, that one step may hold; bounds the memory."""


def can_look_at(x: torch.Tensor) -> bool:
    """Whether Python may decide by the values of x: on the CPU, and not while a call is traced."""
    return x.device.type == "cpu" and has_own_values(x)


def has_own_values(x: torch.Tensor) -> bool:
    """Whether x is a plain tensor, and not one that is traced, or transformed by torch.func."""
    if type(x) is not torch.Tensor or torch.compiler.is_compiling():
        return False
    return torch._C._get_tracing_state() is None and not is_transformed()


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is at work.

    Our ops have no rules for these; composed operations have.
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def may_hold_any(x: torch.Tensor) -> bool:
    """False only where a bool tensor is seen to hold no True."""
    return not can_look_at(x) or bool(x.any())


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
