"""What a contender is made from, and what it is when it is ready to run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.attention.cases import Case
from benchmarks.attention.correctness import Tensors
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class CaseSetup:
    """What a contender may use: a case, its mask, plan and key mask, and tensors to try it on.

    Attributes:
        example: q, k and v of the case, with gradients if it trains.
        key_mask: bool [B, N], True = a real token, or None.
    """

    case: Case
    mask: AttentionMask
    plan: AttentionPlan
    example: Tensors
    key_mask: torch.Tensor | None

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.example[0].device

    def allowed(self) -> torch.Tensor:
        """Mask and key mask in one: bool [B or 1, H or 1, N, N] on the device."""
        dense = self.mask.dense().to(self.device)
        return dense if self.key_mask is None else dense & self.key_mask[:, None, None, :]


@dataclasses.dataclass(frozen=True)
class Ready:
    """A contender that is ready to run.

    Attributes:
        attention: q, k, v -> o.
        executed: share of the N x N scores that it computes.
        around: a context for its calls, entered once for many of them.
        note: what a reader should know.
        stores_scores: it writes attention out in torch operations, see
            `sparsebert.testing.Arithmetic`.
    """

    attention: Attention
    executed: float
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    note: str = ""
    stores_scores: bool = False
