"""The dense backend: all N x M scores, masked, for heads where skipping does not pay.

Calls without dropout and LSE go to torch's SDPA, which torch differentiates itself: our own op
around it would take longer than short sequences do. On CPUs the op calls the flash kernels that
SDPA has there, else composed operations in steps of bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from sparsebert.backends import torch_engines as engines
from sparsebert.backends.base import Backend, Call, Forward, Gradients, Upstream
from sparsebert.backends.torch_common import (
    SCRATCH,
    Options,
    expand_heads,
    has_flash,
    options_of,
    widen,
)
from sparsebert.compiler.schedule import Schedule
from sparsebert.support.tensors import can_look_at, may_hold_any


class DenseProgram(NamedTuple):
    """The masks of some heads; 1 stands for all of them where they are the same.

    Attributes:
        mask: bool [H or 1, N, M]; None if everything is allowed.
        unused: bool [H or 1, M], keys that no query attends to; None if there are none.
        dead: bool [H or 1, N], queries that attend to nothing; None likewise.
    """

    mask: torch.Tensor | None
    unused: torch.Tensor | None
    dead: torch.Tensor | None


class Dense(Backend):
    """Masked dense attention."""

    name = "dense"
    Program = DenseProgram
    composes = True

    def lower(self, schedule: Schedule, heads: np.ndarray) -> DenseProgram:
        listed = [0] if schedule.is_shared else schedule.heads_of(heads).tolist()
        return program_of(torch.stack([schedule.mask.head(head).dense()[0, 0] for head in listed]))

    def runs_directly(self, call: Call, program: DenseProgram, *, alone: bool) -> bool:
        """Where every query has a key: SDPA gives NaN to others.

        Not in fp64, the precision of derivative checks: SDPA has no second derivatives. And on a
        CPU neither where a key mask cannot be looked at, for the op looks when it runs, and most
        hide nothing; nor beside other parts, for the op has SDPA's kernels there.
        """
        if program.dead is not None or call.q.dtype == torch.float64:
            return False
        if not _op_has_flash(call.q):
            return True
        return alone and (call.key_mask is None or can_look_at(call.key_mask))

    def direct(self, call: Call, program: DenseProgram) -> torch.Tensor:
        """By torch's SDPA."""
        k, v, key_mask = call.k, call.v, call.key_mask
        if program.unused is not None:
            k, v = (_without_unused(x, program, call.q.shape[1]) for x in (k, v))
        allowed = allowed_positions(program.mask, key_mask)
        if key_mask is None or allowed is None:
            return _sdpa(call.q, k, v, allowed, call.scale)
        dead = rows_without_any(allowed)[..., None]
        if not may_hold_any(dead):
            return _sdpa(call.q, k, v, allowed, call.scale)
        # They attend to everything, which is finite, and what comes of it is thrown away.
        o = _sdpa(call.q.masked_fill(dead, 0.0), k, v, allowed | dead, call.scale)
        return o.masked_fill(dead, 0.0)

    def forward(self, call: Call, program: DenseProgram) -> Forward:
        return self._forward(call, program, fused=has_flash(call))

    def compose(self, call: Call, program: DenseProgram) -> Forward:
        return self._forward(call, program, fused=False)

    def _forward(self, call: Call, program: DenseProgram, *, fused: bool) -> Forward:
        heads = call.q.shape[1]
        q, k, v = (_ready(expand_heads(x, heads), fused) for x in (call.q, call.k, call.v))
        k, v = (_without_unused(x, program, heads) for x in (k, v))
        o, lse = dense_forward(q, k, v, program.mask, options_of(call, fused=fused))
        if program.dead is not None:
            o = o.masked_fill(program.dead[..., None], 0.0)
            lse = lse.masked_fill(program.dead, -math.inf)
        return o.to(call.q.dtype), lse

    def backward(self, call: Call, program: DenseProgram, upstream: Upstream) -> Gradients:
        heads, fused = call.q.shape[1], has_flash(call, upstream)
        q, grad_o = call.q, upstream.grad_o
        if program.dead is not None:
            q, grad_o = (x.masked_fill(program.dead[..., None], 0.0) for x in (q, grad_o))
        grad_o, q, k, v, o = (
            _ready(expand_heads(x, heads), fused) for x in (grad_o, q, call.k, call.v, upstream.o)
        )
        k, v = (_without_unused(x, program, heads) for x in (k, v))
        dq, dk, dv = dense_backward(
            grad_o, upstream.grad_lse, q, k, v, o, upstream.lse, program.mask,
            options_of(call, fused=fused),
        )  # fmt: skip
        dk, dv = (_without_unused(x, program, heads) for x in (dk, dv))
        return dq, dk, dv


BACKEND = Dense()


def program_of(mask: torch.Tensor) -> DenseProgram:
    """The program of these masks, bool [H or 1, N, M]."""
    unused, dead = (
        None if bool(used.all()) else ~used for used in (mask.any(dim=1), mask.any(dim=2))
    )
    return DenseProgram(None if bool(mask.all()) else mask, unused, dead)


def _op_has_flash(q: torch.Tensor) -> bool:
    """Whether `forward` and `backward` run the kernels there that SDPA has."""
    return q.device.type == "cpu"


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    grouped = int(q.shape[1]) != int(k.shape[1])  # sizes are tensors under torch.jit.trace
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped
    )


def _ready(x: torch.Tensor, fused: bool) -> torch.Tensor:
    """The flash kernels take bf16 as it is, and accumulate in fp32; all else is widened."""
    x = x if fused and x.dtype == torch.bfloat16 else widen(x)
    return x if x.stride(-1) == 1 else x.contiguous()


def _without_unused(x: torch.Tensor, program: DenseProgram, heads: int) -> torch.Tensor:
    """x [B, H_kv, M, D] with zeros in the rows that no query may attend to."""
    unused = program.unused
    if unused is None:
        return x
    if unused.shape[0] not in (1, x.shape[1]):  # a key head may be unused for one query head only
        x = expand_heads(x, heads)
    return x.masked_fill(unused[..., None], 0.0)


def dense_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, options: Options
) -> Forward:
    """o [B, H, N, D] and LSE [B, H, N]; without `options.fused` differentiable to any order."""
    if options.fused:
        allowed = allowed_positions(mask, options.key_mask)
        o, lse = engines.fused_forward(q, k, v, allowed, options.scale)
        if options.key_mask is not None and allowed is not None:  # a row may have lost all keys
            hidden = rows_without_any(allowed)
            if may_hold_any(hidden):
                o = o.masked_fill(hidden[..., None], 0.0)
                lse = lse.masked_fill(hidden, -math.inf)
        return o, lse
    parts = [
        engines.composite_forward(q[:, :, rows], k, v, allowed, factor, options.scale)
        for rows, allowed, factor in _steps(q, k, mask, options)
    ]
    return torch.cat([o for o, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def dense_backward(
    grad_o: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    mask: torch.Tensor | None,
    options: Options,
) -> tuple[torch.Tensor, ...]:
    """Gradients of q, k and v; `o` and `lse` are the forward's results."""
    lse = lse.masked_fill(lse == -math.inf, 0.0)  # a dead row has exp(-inf - 0) = 0 everywhere
    if options.fused:
        allowed = allowed_positions(mask, options.key_mask)
        return engines.fused_backward(grad_o, q, k, v, o, lse, allowed, options.scale)
    delta = (grad_o * o).sum(-1) if grad_lse is None else (grad_o * o).sum(-1) - grad_lse
    parts_dq, dk, dv = [], torch.zeros_like(k), torch.zeros_like(v)
    for rows, allowed, factor in _steps(q, k, mask, options):
        dq_part, dk_part, dv_part = engines.composite_backward(
            grad_o[:, :, rows], q[:, :, rows], k, v, delta[:, :, rows], lse[:, :, rows],
            allowed, factor, options.scale,
        )  # fmt: skip
        parts_dq.append(dq_part)
        dk += dk_part
        dv += dv_part
    return torch.cat(parts_dq, 2), dk, dv


def allowed_positions(
    mask: torch.Tensor | None, key_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """Mask and key mask together: bool [B or 1, H or 1, N or 1, M]; None for everything."""
    if key_mask is None:
        return None if mask is None else mask[None]
    real = key_mask[:, None, None, :]
    return real if mask is None else mask[None] & real


def rows_without_any(allowed: torch.Tensor) -> torch.Tensor:
    """Queries that may attend to nothing: bool [B or 1, H or 1, N or 1].

    As bytes, because on the CPU `any` over the last dimension takes up to 70 times as long.
    """
    return allowed.view(torch.uint8).amax(dim=-1) == 0


def _steps(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, options: Options
) -> Iterator[tuple[slice, torch.Tensor | None, torch.Tensor | None]]:
    """Cut the queries into steps of bounded memory."""
    batch, heads, q_len, _ = q.shape
    kv_len = k.shape[2]
    size = max(1, SCRATCH // max(1, batch * heads * kv_len))  # the batch may be empty
    for start in range(0, q_len, size):
        rows = slice(start, min(start + size, q_len))
        allowed = allowed_positions(None if mask is None else mask[:, rows], options.key_mask)
        factor = None
        if options.dropout is not None:
            query = torch.arange(rows.start, rows.stop, device=q.device)[:, None]
            key = torch.arange(kv_len, device=q.device)
            keys = options.dropout.keys[:, :, None, None]
            factor = options.dropout.factor(keys, query, key, q.dtype)
        yield rows, allowed, factor
