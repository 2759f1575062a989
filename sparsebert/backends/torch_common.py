"""What the backends made of torch operations share: options of a call, precision, dropout."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparsebert import dropout
from sparsebert.backends.base import Call, Upstream

SCRATCH = 1 << 23
"""Elements of scores, or of gathered keys, that one step may hold; bounds the memory."""


class Dropout(NamedTuple):
    """The dropout of one call: probability and the Philox key of each batch and head."""

    p: float
    keys: torch.Tensor  # int64 [B, H]

    def factor(
        self, keys: torch.Tensor, query: torch.Tensor, key: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """0 where an element is dropped, 1 / (1 - p) where it is kept; arguments broadcast."""
        kept = dropout.keep_bits(keys, query, key, dropout.drop_threshold(self.p))
        return kept.to(dtype).mul_(1.0 / (1.0 - self.p))


class Options(NamedTuple):
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


def options_of(call: Call, *, fused: bool) -> Options:
    """The options of a call; `fused` if torch's flash kernels may be used."""
    draw = Dropout(call.dropout_p, call.dropout_keys()) if call.dropout_p > 0.0 else None
    return Options(call.scale, call.key_mask, draw, fused)


def has_flash(call: Call, upstream: Upstream | None = None) -> bool:
    """Whether torch has flash kernels for such a call: on CPUs, without dropout and dLSE."""
    no_grad_lse = upstream is None or upstream.grad_lse is None
    return call.q.device.type == "cpu" and call.dropout_p == 0.0 and no_grad_lse


def expand_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Repeat the H_kv heads of k or v for the query heads that share them."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def widen(x: torch.Tensor) -> torch.Tensor:
    """fp32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
