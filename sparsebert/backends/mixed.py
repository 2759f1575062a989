"""One call whose heads run on both routes: dense by torch, tiles by the Triton kernels.

The same signatures and conventions as `attention`. The kernels see all heads, those that run
dense as if their masks were empty: zeros, which the dense heads' results replace.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sparsebert.backends import torch_attention as attention
from sparsebert.backends.call import without_padding
from sparsebert.backends.torch_program import FlatProgram, TorchProgram, from_tensors


class MixedProgram(NamedTuple):
    """The dense heads' program, and the kernels' program of the other heads."""

    dense: TorchProgram
    tiled: Any


def from_parts(program: FlatProgram) -> MixedProgram:
    """The program that `mixed_program` flattened."""
    from sparsebert.kernels import attention as kernels

    dense, tiled = program.parts
    return MixedProgram(from_tensors(*dense), kernels.from_arrays(tiled.sizes[1:], tiled.tensors))


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    program: MixedProgram,
    scale: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """o [B, H, N, D] in q's dtype and LSE fp32 [B, H, N]."""
    from sparsebert.kernels import attention as kernels

    call = key_mask, seed
    whole = kernels.forward(q, k, v, *call, program.tiled, scale, dropout_p)
    part = attention.forward(q, k, v, *call, program.dense, scale, dropout_p)
    o, lse = (
        x.index_copy_(1, program.dense.dense_heads, y) for x, y in zip(whole, part, strict=True)
    )
    return o, lse


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
    program: MixedProgram,
    scale: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v in their dtypes; o and lse are what `forward` returned."""
    from sparsebert.kernels import attention as kernels

    known = grad_o, grad_lse, q, k, v, o, lse, key_mask, seed
    whole = kernels.head_gradients(*known, program.tiled, scale, dropout_p)
    part = attention.head_gradients(*known, program.dense, scale, dropout_p)
    dq, dk, dv = (
        x.index_copy_(1, program.dense.dense_heads, y.to(x.dtype))
        for x, y in zip(whole, part, strict=True)
    )
    dk, dv = (
        without_padding(kernels.sum_groups(x, k.shape[1]), key_mask).to(k.dtype) for x in (dk, dv)
    )
    return dq, dk, dv
