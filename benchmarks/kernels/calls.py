"""Calls of the kernels' backend with programs of one's own, as the op makes them."""

from __future__ import annotations

import numpy as np
import torch

from sparsebert.backends import execution, triton
from sparsebert.backends.base import Call, Forward, Gradients, Upstream
from sparsebert.backends.program import Part
from sparsebert.kernels.program import KernelProgram
from sparsebert.plan import AttentionPlan

__all__ = ["KernelProgram", "backward", "build_program", "forward", "hiding_some"]


def build_program(plan: AttentionPlan) -> KernelProgram:
    """All heads of a plan in tiles, on the CPU."""
    return triton.BACKEND.lower(plan.schedule, np.ones_like(plan.dense_heads))


def hiding_some(batch: int, length: int, device: str = "cpu") -> torch.Tensor:
    """A key mask, bool [batch, length]; one that hides nothing would not reach the kernels."""
    return (torch.arange(length, device=device) > 3).expand(batch, -1)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    program: KernelProgram,
    scale: float,
    dropout_p: float,
) -> Forward:
    """o and LSE; `seed` is needed if dropout_p > 0."""
    parts = (Part(triton.BACKEND, None, program),)
    return execution.forward(Call(q, k, v, key_mask, seed, scale, dropout_p), parts)


def backward(
    grad_o: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    program: KernelProgram,
    scale: float,
    dropout_p: float,
) -> Gradients:
    """dq, dk and dv; o and lse are what `forward` returned."""
    parts = (Part(triton.BACKEND, None, program),)
    call = Call(q, k, v, key_mask, seed, scale, dropout_p)
    return execution.backward(call, parts, Upstream(o, lse, grad_o, grad_lse))
