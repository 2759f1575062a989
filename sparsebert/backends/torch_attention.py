"""One call of the torch executor: [B, H, N, D] tensors in, each head on its route, results out.

Gives each route the memory order and precision that it wants, and keeps out of the arithmetic
what the contract says must not reach a result. Every result lies in memory as [B, N, H, D], the
order of HuggingFace models.
"""

from __future__ import annotations

import math

import torch

from sparsebert import dropout
from sparsebert.backends import dense
from sparsebert.backends import torch_tiles as tiles
from sparsebert.backends.call import (
    Call,
    Dropout,
    expand_heads,
    needed,
    without_padding,
)
from sparsebert.backends.torch_program import TorchProgram
from sparsebert.support.tensors import may_hold_any


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    program: TorchProgram,
    scale: float,
    dropout_p: float,
    *,
    differentiable: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """o [B, H, N, D] in q's dtype and LSE [B, H, N] in fp32 (fp64 for fp64 inputs).

    `seed` is needed if dropout_p > 0. With `differentiable` only composed operations are used,
    so that autograd can follow them to any order.
    """
    fused = q.device.type == "cpu" and dropout_p == 0.0 and not differentiable
    key_mask = needed(key_mask)
    call = _make_call(q, key_mask, seed, scale, dropout_p, fused)
    heads = q.shape[1]
    k, v = without_padding(k, key_mask), without_padding(v, key_mask)
    inputs = [q, expand_heads(k, heads), expand_heads(v, heads)]
    results = []
    if len(program.tile_heads):
        picked = _Heads(program.tile_heads, heads, program.shared)
        q_, k_, v_ = (_to_stack(_widen(picked.take(x)), program) for x in inputs)
        o, lse = tiles.forward(q_, k_, v_, program, picked.call(call))
        o = _from_stack(o, picked.count, program)
        lse = _from_stack(lse[..., None], picked.count, program)
        results.append((o.to(q.dtype), lse.squeeze(-1)))
    if len(program.dense_heads):
        picked = _Heads(program.dense_heads, heads, program.shared)
        q_, k_, v_ = (_dense_precision(picked.take(x), fused) for x in inputs)
        k_, v_ = _without_unused(k_, program), _without_unused(v_, program)
        o, lse = dense.forward(q_, k_, v_, program.dense_mask, picked.call(call))
        if program.dense_dead is not None:
            o = o.masked_fill(program.dense_dead[..., None], 0.0)
            lse = lse.masked_fill(program.dense_dead, -math.inf)
        results.append((o.to(q.dtype), lse))
    o, lse = (_join(parts, program) for parts in zip(*results, strict=True))
    return _memory_order(o), lse.contiguous()


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
    program: TorchProgram,
    scale: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v in their dtypes; o and lse are what `forward` returned."""
    dq, dk, dv = head_gradients(
        grad_o, grad_lse, q, k, v, o, lse, key_mask, seed, program, scale, dropout_p
    )
    dk, dv = (without_padding(_sum_groups(x, k.shape[1]), key_mask) for x in (dk, dv))
    dq, dk, dv = (_memory_order(x.to(q.dtype)) for x in (dq, dk, dv))
    return dq, dk, dv


def head_gradients(
    grad_o: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    program: TorchProgram,
    scale: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `backward`, dk and dv [B, H, M, D] of each query head, in the precision they came in.

    Of a program of some heads it gives the gradients of those, in order. What the key mask hides
    has gradients of no meaning here.
    """
    fused = q.device.type == "cpu" and dropout_p == 0.0 and grad_lse is None
    key_mask = needed(key_mask)
    call = _make_call(q, key_mask, seed, scale, dropout_p, fused)
    heads = q.shape[1]
    if key_mask is not None or program.dense_dead is not None:
        dead = (lse == -math.inf)[..., None]
        if may_hold_any(dead):
            q, grad_o = q.masked_fill(dead, 0.0), grad_o.masked_fill(dead, 0.0)
    k, v = without_padding(k, key_mask), without_padding(v, key_mask)
    inputs = [grad_o, q, expand_heads(k, heads), expand_heads(v, heads), o]
    extra = [lse] if grad_lse is None else [lse, grad_lse]
    results = []
    if len(program.tile_heads):
        picked = _Heads(program.tile_heads, heads, program.shared)
        g, q_, k_, v_, o_ = (_to_stack(_widen(picked.take(x)), program) for x in inputs)
        lse_, *g_lse = (_to_stack(picked.take(x)[..., None], program)[..., 0] for x in extra)
        gradients = tiles.backward(
            g, g_lse[0] if g_lse else None, q_, k_, v_, o_, lse_, program, picked.call(call)
        )
        results.append([_from_stack(x, picked.count, program) for x in gradients])
    if len(program.dense_heads):
        picked = _Heads(program.dense_heads, heads, program.shared)
        g, q_, k_, v_, o_ = (_dense_precision(picked.take(x), fused) for x in inputs)
        k_, v_ = _without_unused(k_, program), _without_unused(v_, program)
        lse_, *g_lse = (picked.take(x) for x in extra)
        dq, dk, dv = dense.backward(
            g, g_lse[0] if g_lse else None, q_, k_, v_, o_, lse_, program.dense_mask,
            picked.call(call),
        )  # fmt: skip
        results.append([dq, _without_unused(dk, program), _without_unused(dv, program)])
    dq, dk, dv = (_join(parts, program) for parts in zip(*results, strict=True))
    return dq, dk, dv


def _make_call(
    q: torch.Tensor,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    scale: float,
    dropout_p: float,
    fused: bool,
) -> Call:
    draw = None
    if dropout_p > 0.0:
        assert seed is not None
        draw = Dropout(dropout_p, dropout.head_keys(seed, q.shape[0], q.shape[1]))
    return Call(scale, key_mask, draw, fused)


class _Heads:
    """The heads of one route, out of all heads of a call."""

    def __init__(self, index: torch.Tensor, heads: int, shared: bool) -> None:
        self._index = None if shared or len(index) == heads else index
        self.count = heads if self._index is None else len(index)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """The route's heads of [B, H, ...]."""
        return x if self._index is None else x.index_select(1, self._index)

    def call(self, call: Call) -> Call:
        """The call with the dropout keys of these heads."""
        if call.dropout is None:
            return call
        keys = self.take(call.dropout.keys)
        return Call(call.scale, call.key_mask, Dropout(call.dropout.p, keys), call.fused)


def _join(parts: tuple[torch.Tensor, ...], program: TorchProgram) -> torch.Tensor:
    """Put the heads of both routes back in order."""
    if len(parts) == 1:
        return parts[0]
    order = torch.cat([program.tile_heads, program.dense_heads]).argsort()
    return torch.cat(parts, 1).index_select(1, order)


def _widen(x: torch.Tensor) -> torch.Tensor:
    """fp32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dense_precision(x: torch.Tensor, fused: bool) -> torch.Tensor:
    """The fused kernels take bf16 as it is, and accumulate in fp32; all else is widened."""
    x = x if fused and x.dtype == torch.bfloat16 else _widen(x)
    return x if x.stride(-1) == 1 else x.contiguous()


def _to_stack(x: torch.Tensor, program: TorchProgram) -> torch.Tensor:
    """[B, H, N, D] as [B, S, A, D], see `program`; free where memory is in HuggingFace's order."""
    x = x.transpose(1, 2)
    return x if program.shared else x.flatten(1, 2)[:, :, None]


def _from_stack(x: torch.Tensor, heads: int, program: TorchProgram) -> torch.Tensor:
    """[B, S, A, D] back to [B, H, N, D]."""
    x = x if program.shared else x.squeeze(2).unflatten(1, (-1, heads))
    return x.transpose(1, 2)


def _memory_order(x: torch.Tensor) -> torch.Tensor:
    """The same values, laid out as [B, N, H, D]."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _without_unused(x: torch.Tensor, program: TorchProgram) -> torch.Tensor:
    """Zero the rows of the dense heads' [B, H, M, D] that no query may attend to."""
    unused = program.dense_unused
    return x if unused is None else x.masked_fill(unused[..., None], 0.0)


def _sum_groups(x: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Add up the gradients of the query heads that share a k or v head."""
    return x if x.shape[1] == kv_heads else x.unflatten(1, (kv_heads, -1)).sum(2)
