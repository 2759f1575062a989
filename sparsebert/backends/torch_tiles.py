"""The backend of torch operations: attention over a plan's tiles, on any torch device.

Each bucket of the program is a batched attention of gathered queries against gathered keys and
values. Its results go to *slots*, one per (tile, row); a row that several tiles cover is merged
exactly from its slots through their LSEs. Within the program tensors are [B, S, A, D], see
`torch_program`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch

from sparsebert.backends import torch_engines as engines
from sparsebert.backends import torch_program
from sparsebert.backends.base import Backend, Call, Forward, Gradients, Upstream
from sparsebert.backends.torch_common import (
    SCRATCH,
    Options,
    expand_heads,
    has_flash,
    options_of,
    widen,
)
from sparsebert.backends.torch_program import Bucket, TilesProgram
from sparsebert.compiler.schedule import Schedule


class TorchTiles(Backend):
    """The plan's tiles in torch operations."""

    name = "torch"
    Program = TilesProgram
    composes = True

    def lower(self, schedule: Schedule, heads: np.ndarray) -> TilesProgram:
        return torch_program.lower(schedule, heads)

    def forward(self, call: Call, program: TilesProgram) -> Forward:
        return self._forward(call, program, fused=has_flash(call))

    def compose(self, call: Call, program: TilesProgram) -> Forward:
        return self._forward(call, program, fused=False)

    def _forward(self, call: Call, program: TilesProgram, *, fused: bool) -> Forward:
        heads = call.q.shape[1]
        q, k, v = (
            _to_stack(widen(expand_heads(x, heads)), program) for x in (call.q, call.k, call.v)
        )
        o, lse = tiles_forward(q, k, v, program, options_of(call, fused=fused))
        o, lse = _from_stack(o, heads, program), _from_stack(lse[..., None], heads, program)
        return o.to(call.q.dtype), lse.squeeze(-1)

    def backward(self, call: Call, program: TilesProgram, upstream: Upstream) -> Gradients:
        heads = call.q.shape[1]
        o, lse, grad_o, grad_lse = upstream
        grad_o, q, k, v, o = (
            _to_stack(widen(expand_heads(x, heads)), program)
            for x in (grad_o, call.q, call.k, call.v, o)
        )
        lse = _to_stack(lse[..., None], program)[..., 0]
        if grad_lse is not None:
            grad_lse = _to_stack(grad_lse[..., None], program)[..., 0]
        options = options_of(call, fused=has_flash(call, upstream))
        gradients = tiles_backward(grad_o, grad_lse, q, k, v, o, lse, program, options)
        dq, dk, dv = (_from_stack(x, heads, program) for x in gradients)
        return dq, dk, dv


BACKEND = TorchTiles()


def _to_stack(x: torch.Tensor, program: TilesProgram) -> torch.Tensor:
    """[B, H, N, D] as [B, S, A, D], see `torch_program`; free in HuggingFace's memory order."""
    x = x.transpose(1, 2)
    return x if program.shared else x.flatten(1, 2)[:, :, None]


def _from_stack(x: torch.Tensor, heads: int, program: TilesProgram) -> torch.Tensor:
    """[B, S, A, D] back to [B, H, N, D]."""
    x = x if program.shared else x.squeeze(2).unflatten(1, (-1, heads))
    return x.transpose(1, 2)


@dataclasses.dataclass(frozen=True)
class _Step:
    """Some tiles of one bucket: indices, and what they may attend to."""

    rows: torch.Tensor  # [t, R]
    cols: torch.Tensor  # [t, C]
    allowed: torch.Tensor | None  # bool, broadcastable to [B, t, A, R, C]; None = everything
    factor: torch.Tensor | None  # dropout, [B, t, A, R, C]
    slots: slice


def tiles_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, program: TilesProgram, options: Options
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of [B, S, A, D] tensors: o like q, and LSE [B, S, A].

    Without `options.fused` it is differentiable to any order.
    """
    batch, _, width, _ = q.shape
    parts_o, parts_lse = [], []
    for step in _steps(q, program, options):
        q_t, k_t, v_t = _gather(q, step.rows), _gather(k, step.cols), _gather(v, step.cols)
        if options.fused:
            o, lse = engines.fused_forward(q_t, k_t, v_t, step.allowed, options.scale)
            if options.key_mask is not None and step.allowed is not None:
                # A row may have lost all its keys.
                hidden = ~step.allowed.any(dim=-1)
                o = o.masked_fill(hidden[..., None], 0.0)
                lse = lse.masked_fill(hidden, -math.inf)
        else:
            o, lse = engines.composite_forward(
                q_t, k_t, v_t, step.allowed, step.factor, options.scale
            )
        parts_o.append(o.transpose(2, 3).flatten(1, 2))
        parts_lse.append(lse.transpose(2, 3).flatten(1, 2))
    # One slot more than there are, for rows that have none.
    parts_o.append(q.new_zeros(batch, 1, *q.shape[2:]))
    parts_lse.append(q.new_full((batch, 1, width), -math.inf))
    return _merge(torch.cat(parts_o, 1), torch.cat(parts_lse, 1), program)


def _merge(
    slots_o: torch.Tensor, slots_lse: torch.Tensor, program: TilesProgram
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine each row's partial results: o = sum over its slots of exp(lse_i - lse) o_i."""
    o = slots_o.index_select(1, program.slot_of_row)
    lse = slots_lse.index_select(1, program.slot_of_row)
    for rows, slots in zip(program.more_rows, program.more_slots, strict=True):
        old, new = lse.index_select(1, rows), slots_lse.index_select(1, slots)
        # Not logaddexp: its second derivative is NaN where one side is -inf.
        largest = torch.maximum(old, new).detach()
        dead = largest == -math.inf
        largest = largest.masked_fill(dead, 0.0)
        old_weight, new_weight = torch.exp(old - largest), torch.exp(new - largest)
        total = (old_weight + new_weight).masked_fill(dead, 1.0)
        old_o, new_o = o.index_select(1, rows), slots_o.index_select(1, slots)
        merged = old_weight[..., None] * old_o + new_weight[..., None] * new_o
        o = o.index_copy(1, rows, merged / total[..., None])
        lse = lse.index_copy(1, rows, (largest + total.log()).masked_fill(dead, -math.inf))
    return o, lse


def tiles_backward(
    grad_o: torch.Tensor,
    grad_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    lse: torch.Tensor,
    program: TilesProgram,
    options: Options,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v, each [B, S, A, D]; `o` and `lse` are the forward's results.

    Deterministic: dQ goes to the slots of each tile, dK and dV are added up in tile order.
    """
    lse = lse.masked_fill(lse == -math.inf, 0.0)  # a dead row has exp(-inf - 0) = 0 everywhere
    delta = (grad_o * o).sum(-1) if grad_lse is None else (grad_o * o).sum(-1) - grad_lse
    slots_dq = q.new_empty(q.shape[0], program.num_slots + 1, *q.shape[2:])
    slots_dq[:, -1] = 0.0
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for step in _steps(q, program, options):
        g_t, q_t = _gather(grad_o, step.rows), _gather(q, step.rows)
        k_t, v_t = _gather(k, step.cols), _gather(v, step.cols)
        lse_t = _gather(lse[..., None], step.rows).squeeze(-1)
        if options.fused:  # which computes delta from o
            o_t = _gather(o, step.rows)
            gradients = engines.fused_backward(
                g_t, q_t, k_t, v_t, o_t, lse_t, step.allowed, options.scale
            )
        else:
            delta_t = _gather(delta[..., None], step.rows).squeeze(-1)
            gradients = engines.composite_backward(
                g_t, q_t, k_t, v_t, delta_t, lse_t, step.allowed, step.factor, options.scale
            )
        dq_t, dk_t, dv_t = (x.transpose(2, 3).flatten(1, 2) for x in gradients)
        slots_dq[:, step.slots] = dq_t
        _add_rows(dk, step.cols, dk_t)
        _add_rows(dv, step.cols, dv_t)
    dq = slots_dq.index_select(1, program.slot_of_row)
    for rows, slots in zip(program.more_rows, program.more_slots, strict=True):
        dq[:, rows] += slots_dq.index_select(1, slots)
    return dq, dk, dv


def _steps(q: torch.Tensor, program: TilesProgram, options: Options) -> Iterator[_Step]:
    """Cut the buckets into steps of bounded memory."""
    batch, _, width, dim = q.shape
    table = _byte_table(q.device)
    for bucket in program.buckets:
        tiles, slots = bucket.rows.shape
        per_tile = batch * width * bucket.cols.shape[1] * max(slots, dim)
        size = max(1, SCRATCH // max(1, per_tile))  # the batch may be empty
        for start in range(0, tiles, size):
            part = slice(start, min(start + size, tiles))
            rows, cols = bucket.rows[part], bucket.cols[part]
            first = bucket.first_slot + start * slots
            yield _Step(
                rows,
                cols,
                _allowed(bucket, part, table, program, options),
                _dropout_factor(rows, cols, program, options, q.dtype),
                slice(first, first + rows.numel()),
            )


def _allowed(
    bucket: Bucket, part: slice, table: torch.Tensor, program: TilesProgram, options: Options
) -> torch.Tensor | None:
    """What the tiles may attend to, mask and key mask together: [B or 1, t, 1, R, C]."""
    allowed = None
    if bucket.bits is not None:
        allowed = table[bucket.bits[part].int()].flatten(-2)[None, :, None]
    if options.key_mask is not None:
        real = options.key_mask[:, program.position(bucket.cols[part])][:, :, None, None, :]
        allowed = real if allowed is None else allowed & real
    return allowed


def _byte_table(device: torch.device) -> torch.Tensor:
    """The eight bits of each byte value: bool [256, 8]."""
    values = torch.arange(256, device=device)[:, None]
    return (values >> torch.arange(8, device=device)) & 1 == 1


def _dropout_factor(
    rows: torch.Tensor,
    cols: torch.Tensor,
    program: TilesProgram,
    options: Options,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    if options.dropout is None:
        return None
    keys = options.dropout.keys  # [B, H] -> [B, t, A, 1, 1]
    keys = keys[:, None] if program.shared else keys[:, program.head_place(rows[:, 0])][..., None]
    query = program.position(rows)[None, :, None, :, None]
    key = program.position(cols)[None, :, None, None, :]
    return options.dropout.factor(keys[..., None, None], query, key, dtype)


def _gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of x [B, S, A, D] for each tile: [B, t, A, R, D]."""
    picked = x.flatten(2).index_select(1, index.flatten())
    return picked.view(len(x), *index.shape, *x.shape[2:]).transpose(2, 3)


def _add_rows(total: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> None:
    """total[b, index[t, c]] += source[b, t * C + c], in a fixed order."""
    if total.device.type == "cpu":
        total.index_add_(1, index.flatten(), source)  # sequential there
    else:  # sorts, where index_add_ would use atomics
        every = torch.arange(len(total), device=total.device)[:, None]
        total.index_put_((every, index.flatten()[None]), source, accumulate=True)
