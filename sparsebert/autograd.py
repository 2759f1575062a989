"""Differentiable attention by the backends, in two forms.

For whatever traces, captures or watches operations there are two `torch.library` ops, forward and
backward. Their arguments are tensors, numbers and a text: a plan travels as its program, taken
apart (see `backends.program`). So torch.compile sees one opaque node with known shapes, and the
backward op is differentiable in turn.

Plain eager calls go without them, by a `torch.autograd.Function`: the ops' way through torch takes
longer than attention over a short sequence does. Its backward pass is the op where that has to be
differentiated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._C._functorch import is_legacy_batchedtensor

from sparsebert.backends import execution, registry
from sparsebert.backends.base import Call, ForwardAsked, Upstream
from sparsebert.backends.program import Program, unflatten_parts
from sparsebert.support.tensors import are_plain


def attention(call: Call, program: Program) -> ForwardAsked:
    """o [B, H, N, D] and LSE [B, H, N]; of a call that does not want it there may be None."""
    q, k, v = call[:3]
    if not are_plain(q, k, v, call.key_mask):
        o, lse = torch.ops.sparsebert.attention(q, k, v, *program.flat, *call[3:7])
        return o, lse
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        results = _Attention.apply(q, k, v, program, call[3:7], call.wants_lse)
        o, lse = results if call.wants_lse else (results, None)
        return o, lse
    return execution.forward(call, program.parts)


class _Attention(torch.autograd.Function):
    """Attention of plain tensors; `options` are key mask, seed, scale and dropout_p."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        program: Program,
        options: tuple[Any, ...],
        wants_lse: bool,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        o, lse = execution.forward(Call(q, k, v, *options), program.parts)
        assert lse is not None
        key_mask, seed, *numbers = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, o, lse, key_mask, seed)
        ctx.program, ctx.numbers = program, numbers
        ctx.dtypes = *(q.dtype,) * 4, lse.dtype, torch.bool, torch.int64
        return (o, lse) if wants_lse else o

    @staticmethod
    def backward(
        ctx: Any, grad_o: torch.Tensor | None, grad_lse: torch.Tensor | None = None
    ) -> tuple[Any, ...]:
        for x in (grad_o, grad_lse):
            if x is not None and is_legacy_batchedtensor(x):
                raise NotImplementedError(
                    "sparse_attention: gradients in batches (is_grads_batched, vectorize=True) "
                    "are not supported; use torch.func, for example vmap over vjp, or a loop"
                )
        q, k, v, o, lse, key_mask, seed = saved = ctx.saved_tensors
        if not (
            q.dtype == k.dtype == v.dtype == o.dtype == ctx.dtypes[0]
            and lse.dtype == ctx.dtypes[4]
            and (key_mask is None or key_mask.dtype == torch.bool)
        ):
            q, k, v, o, lse, key_mask, seed = _restored(saved, ctx.dtypes)
        if grad_o is None:
            grad_o = torch.zeros_like(o)
        options = key_mask, seed, *ctx.numbers
        if not torch.is_grad_enabled() and are_plain(grad_o, grad_lse):
            call, upstream = Call(q, k, v, *options), Upstream(o, lse, grad_o, grad_lse)
            gradients = execution.backward(call, ctx.program.parts, upstream)
            return *gradients, None, None, None
        gradients = torch.ops.sparsebert.attention_backward(
            grad_o, grad_lse, q, k, v, o, lse, *ctx.program.flat, *options
        )
        return *gradients, None, None, None


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    program: list[torch.Tensor],
    numbers: list[int],
    backends: str,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """o [B, H, N, D] and LSE [B, H, N]; `program` to `backends` are a `Program`'s `flat`."""
    call = Call(q, k, v, key_mask, seed, scale, dropout_p)
    o, lse = execution.forward(call, unflatten_parts(program, numbers, backends))
    assert lse is not None
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
    numbers: list[int],
    backends: str,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk, dv."""
    call = Call(q, k, v, key_mask, seed, scale, dropout_p)
    parts = unflatten_parts(program, numbers, backends)
    return execution.backward(call, parts, Upstream(o, lse, grad_o, grad_lse))


def _like_heads_last(x: torch.Tensor) -> torch.Tensor:
    """An empty tensor with the shape of x, laid out in memory as [B, N, H, D]."""
    batch, heads, length, dim = x.shape
    return x.new_empty(batch, length, heads, dim).transpose(1, 2)


def _attention_fake(q, k, v, *rest):  # type: ignore[no-untyped-def]
    accumulate = torch.promote_types(q.dtype, torch.float32)
    return _like_heads_last(q), q.new_empty(q.shape[:-1], dtype=accumulate)


def _attention_backward_fake(grad_o, grad_lse, q, k, v, *rest):  # type: ignore[no-untyped-def]
    return _like_heads_last(q), _like_heads_last(k), _like_heads_last(v)


def _restored(saved: Sequence[torch.Tensor | None], dtypes: Sequence[torch.dtype]) -> list[Any]:
    """Saved tensors in the dtypes that they had: hooks may keep them in others."""
    return [
        x if x is None or x.dtype == dtype else x.to(dtype)
        for x, dtype in zip(saved, dtypes, strict=True)
    ]


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, program, numbers, backends, key_mask, seed, scale, dropout_p = inputs
    saved = q, k, v, *output, key_mask, seed, *program
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*saved)
    ctx.dtypes = [None if x is None else x.dtype for x in saved]
    ctx.program = numbers, backends
    ctx.options = scale, dropout_p


def _differentiate_forward(
    ctx: Any, grad_o: torch.Tensor | None, grad_lse: torch.Tensor | None
) -> tuple[Any, ...]:
    q, k, v, o, lse, key_mask, seed, *program = _restored(ctx.saved_tensors, ctx.dtypes)
    if grad_o is None:
        grad_o = torch.zeros_like(o)
    dq, dk, dv = torch.ops.sparsebert.attention_backward(
        grad_o, grad_lse, q, k, v, o, lse, program, *ctx.program, key_mask, seed, *ctx.options
    )  # fmt: skip
    return dq, dk, dv, [None] * len(program), *(None,) * 6


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    grad_o, grad_lse, q, k, v, _, _, program, numbers, backends, *options = inputs
    key_mask, seed, scale, dropout_p = options
    saved = grad_o, grad_lse, q, k, v, key_mask, seed, *program
    ctx.save_for_backward(*saved)
    ctx.dtypes = [None if x is None else x.dtype for x in saved]
    ctx.program = numbers, backends
    ctx.options = scale, dropout_p


def _differentiate_backward(ctx: Any, *upstream: torch.Tensor) -> tuple[Any, ...]:
    """The second derivative: differentiate a forward pass of composed operations twice.

    o and lse are functions of q, k and v here, so their own gradients are None.
    """
    grad_o, grad_lse, q, k, v, key_mask, seed, *program = _restored(ctx.saved_tensors, ctx.dtypes)
    parts = unflatten_parts(program, *ctx.program)
    for part in parts:
        if not part.backend.composes:
            raise NotImplementedError(
                f"sparse_attention: backend {part.backend.name!r} has no second derivatives; use "
                f"backend={' or '.join(map(repr, registry.composing(q.device.type)))}"
            )
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        grad_o, q, k, v = (_independent(x) for x in (grad_o, q, k, v))
        o, lse = execution.compose(Call(q, k, v, key_mask, seed, *ctx.options), parts)
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
        [None] * len(program), *(None,) * 6,
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
