"""The two `torch.library` ops behind every backend: attention forward, and backward.

Their arguments are tensors and numbers only: a plan travels as the tensors and sizes of its
program. So torch.compile sees one opaque node with known shapes, autograd and activation
checkpointing work as for any op, and the backward op is differentiable in turn.
"""

from __future__ import annotations

from typing import Any

import torch

from sparsebert.backends import mixed
from sparsebert.backends import torch_attention as attention
from sparsebert.backends.torch_program import MIXED, TORCH, TRITON, FlatProgram, from_tensors


def attention_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    program: FlatProgram,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """o [B, H, N, D] and LSE [B, H, N] by the op."""
    o, lse = torch.ops.sparsebert.attention(
        q, k, v, program.tensors, program.sizes, key_mask, seed, scale, dropout_p
    )
    return o, lse


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    program: list[torch.Tensor],
    sizes: list[int],
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """o [B, H, N, D] and LSE [B, H, N]; `program` and `sizes` are those of a `TorchProgram`."""
    engine, whole = _executor(program, sizes)
    o, lse = engine.forward(q, k, v, key_mask, seed, whole, scale, dropout_p)
    return o, lse


def _attention_backward(
    grad_o: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    program: list[torch.Tensor],
    sizes: list[int],
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk, dv."""
    engine, whole = _executor(program, sizes)
    dq, dk, dv = engine.backward(
        grad_o, grad_lse, q, k, v, o, lse, key_mask, seed, whole, scale, dropout_p
    )
    return dq, dk, dv


def _executor(program: list[torch.Tensor], sizes: list[int]) -> tuple[Any, Any]:
    """The module that runs a program, and the program as that module knows it."""
    if sizes[0] == MIXED:
        return mixed, mixed.from_parts(FlatProgram(program, sizes))
    if sizes[0] == TRITON:
        from sparsebert.kernels import attention as kernels

        return kernels, kernels.from_arrays(sizes[1:], program)
    return attention, from_tensors(program, sizes)


def _like_heads_last(x: torch.Tensor) -> torch.Tensor:
    """An empty tensor with the shape of x, laid out in memory as [B, N, H, D]."""
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, length, heads, dim).transpose(1, 2)


def _attention_fake(q, k, v, *rest):  # type: ignore[no-untyped-def]
    accumulate = torch.promote_types(q.dtype, torch.float32)
    return _like_heads_last(q), q.new_empty(q.shape[:-1], dtype=accumulate)


def _attention_backward_fake(grad_o, grad_lse, q, k, v, *rest):  # type: ignore[no-untyped-def]
    return _like_heads_last(q), _like_heads_last(k), _like_heads_last(v)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, program, sizes, key_mask, seed, scale, dropout_p = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, *output, key_mask, seed, *program)
    ctx.sizes, ctx.scale, ctx.dropout_p = sizes, scale, dropout_p


def _differentiate_forward(
    ctx: Any, grad_o: torch.Tensor | None, grad_lse: torch.Tensor | None
) -> tuple[Any, ...]:
    q, k, v, o, lse, key_mask, seed, *program = ctx.saved_tensors
    if grad_o is None:
        grad_o = torch.zeros_like(o)
    dq, dk, dv = torch.ops.sparsebert.attention_backward(
        grad_o, grad_lse, q, k, v, o, lse, program, ctx.sizes, key_mask, seed, ctx.scale,
        ctx.dropout_p,
    )  # fmt: skip
    return dq, dk, dv, [None] * len(program), None, None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    grad_o, grad_lse, q, k, v, _, _, program, sizes, key_mask, seed, scale, dropout_p = inputs
    ctx.save_for_backward(grad_o, grad_lse, q, k, v, key_mask, seed, *program)
    ctx.sizes, ctx.scale, ctx.dropout_p = sizes, scale, dropout_p


def _differentiate_backward(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
    """The second derivative: differentiate a forward pass of composed operations twice.

    o and lse are functions of q, k and v here, so their own gradients are None.
    """
    grad_o, grad_lse, q, k, v, key_mask, seed, *program = ctx.saved_tensors
    if ctx.sizes[0] != TORCH:
        raise NotImplementedError(
            "sparse_attention: the Triton kernels have no second derivatives; use backend='torch'"
        )
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        grad_o, q, k, v = (_independent(x) for x in (grad_o, q, k, v))
        o, lse = attention.forward(
            q, k, v, key_mask, seed, from_tensors(program, ctx.sizes), ctx.scale, ctx.dropout_p,
            differentiable=True,
        )  # fmt: skip
        if grad_lse is None:
            inputs, results, grad_results = [grad_o, q, k, v], [o], [grad_o]
        else:
            grad_lse = _independent(grad_lse)
            inputs = [grad_o, q, k, v, grad_lse]
            results, grad_results = [o, lse], [grad_o, grad_lse]
        first = torch.autograd.grad(results, (q, k, v), grad_results, create_graph=True)
        second = torch.autograd.grad(
            first, inputs, upstream, create_graph=again, materialize_grads=True
        )
    of_grad_o, of_q, of_k, of_v, *of_grad_lse = second
    return (
        of_grad_o, of_grad_lse[0] if of_grad_lse else None, of_q, of_k, of_v, None, None,
        [None] * len(program), None, None, None, None, None,
    )  # fmt: skip


def _independent(x: torch.Tensor) -> torch.Tensor:
    """x as a variable of its own: derivatives with respect to it do not follow its history."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def _register(name: str, implementation: Any, fake: Any, differentiate: Any, save: Any) -> None:
    """Make the op `sparsebert::name`.

    By hand and not by `torch.library.custom_op`, whose wrappers take longer than attention over
    a short sequence does.
    """
    qualified = f"sparsebert::{name}"
    torch.library.define(
        qualified,
        torch.library.infer_schema(implementation, mutates_args=()),
        tags=torch.Tag.pt2_compliant_tag,
    )
    torch.library.impl(qualified, "CompositeExplicitAutograd", implementation)
    torch.library.register_fake(qualified, fake)
    torch.library.register_autograd(qualified, differentiate, setup_context=save)


_register("attention", _attention, _attention_fake, _differentiate_forward, _save_forward)
_register(
    "attention_backward",
    _attention_backward,
    _attention_backward_fake,
    _differentiate_backward,
    _save_backward,
)
