"""One call on the backends that run it: what comes before them, and what after.

Padding is applied here. Rows of k and v that the key mask hides are set to zero for backends that
would read them, so are queries that it leaves nothing to attend, and the gradients of hidden rows:
what stands there may be NaN, and 0 * NaN is NaN. The key mask itself is a part of the call.
Results lie in memory as [B, N, H, D], the order of HuggingFace models.
"""

from __future__ import annotations

import functools
import math

import torch

from sparsebert.backends.base import Call, Forward, ForwardAsked, Gradients, Upstream
from sparsebert.backends.program import Part, Program
from sparsebert.backends.torch_common import expand_heads
from sparsebert.support.tensors import can_look_at, may_hold_any


def direct(call: Call, program: Program) -> torch.Tensor | None:
    """o of the program's first part without our op, by operations that torch differentiates.

    For calls without dropout and LSE; None where the op is the better way.
    """
    part = program.parts[0]
    alone = len(program.parts) == 1
    if not part.backend.runs_directly(call, part.program, alone=alone):
        return None
    return run_directly(call, part)


def run_directly(call: Call, part: Part) -> torch.Tensor:
    """o of a part's heads, [B, h, N, D]."""
    if part.heads is not None:
        call = _of_heads(call, part.heads)
    if call.key_mask is not None:
        call = _without_hidden_keys(_needed(call))
    return part.backend.direct(call, part.program)


def forward(call: Call, parts: tuple[Part, ...]) -> ForwardAsked:
    """o [B, H, N, D] in q's dtype and LSE [B, H, N], fp32 or better.

    Heads that no part runs get zeros, and an LSE of -inf. Of a call that does not want the LSE
    there may be None.
    """
    call = _needed(call)
    if parts[0].heads is None:
        (part,) = parts
        o, lse = part.backend.forward(_of_all_heads(call, part), part.program)
        if part.backend.finishes:
            return o, lse
    else:
        results = [
            part.backend.forward(each, part.program)
            for part, each in zip(parts, _calls(call, parts), strict=True)
        ]
        heads = call.q.shape[1]
        o = _joined([o for o, _ in results], parts, heads, 0.0)
        every = [lse for _, lse in results if lse is not None]
        complete = len(every) == len(parts)
        lse = _joined(every, parts, heads, -math.inf) if complete else None
    return _laid_out(o, call.q.dtype), None if lse is None else lse.contiguous()


def compose(call: Call, parts: tuple[Part, ...]) -> Forward:
    """As `forward`, by operations for which torch has all rules."""
    call = _without_hidden_keys(_needed(call))
    calls = [call if p.heads is None else _of_heads(call, p.heads) for p in parts]
    results = [
        part.backend.compose(each, part.program) for part, each in zip(parts, calls, strict=True)
    ]
    listed = [part.heads for part in parts if part.heads is not None]
    o, lse = results[0]
    if listed:
        order = torch.cat(listed).argsort()
        o, lse = (
            torch.cat(pieces, 1).index_select(1, order) for pieces in zip(*results, strict=True)
        )
        if len(order) < call.q.shape[1]:  # the other heads run beside the op
            every = torch.cat(listed).sort().values
            nothing = call.q.new_zeros(call.q.shape), lse.new_full(call.q.shape[:3], -math.inf)
            o, lse = (x.index_copy(1, every, y) for x, y in zip(nothing, (o, lse), strict=True))
    return _memory_order(o), lse.contiguous()


def backward(call: Call, parts: tuple[Part, ...], upstream: Upstream) -> Gradients:
    """dq, dk and dv in the dtypes of q, k and v."""
    call = _needed(call)
    key_mask = call.key_mask
    if key_mask is not None:
        dead = (upstream.lse == -math.inf)[..., None]
        if may_hold_any(dead):
            call = call._replace(q=call.q.masked_fill(dead, 0.0))
            upstream = upstream._replace(grad_o=upstream.grad_o.masked_fill(dead, 0.0))
    if parts[0].heads is None:
        (part,) = parts
        dq, dk, dv = part.backend.backward(_of_all_heads(call, part), part.program, upstream)
        if part.backend.finishes:
            return dq, dk, dv
    else:
        results = [
            part.backend.backward(each, part.program, _upstream_of(upstream, part))
            for part, each in zip(parts, _calls(call, parts), strict=True)
        ]
        dq, dk, dv = (
            _joined(list(pieces), parts, call.q.shape[1], 0.0)
            for pieces in zip(*results, strict=True)
        )
    dtype, kv_heads = call.q.dtype, call.k.shape[1]
    dq = _laid_out(dq, dtype)
    dk, dv = _laid_out(_summed(dk, kv_heads), dtype), _laid_out(_summed(dv, kv_heads), dtype)
    if key_mask is not None and not all(part.backend.skips_padding for part in parts):
        hidden = ~key_mask[:, :, None, None]  # filled in the order of memory, which it keeps
        dk, dv = (x.transpose(1, 2).masked_fill(hidden, 0.0).transpose(1, 2) for x in (dk, dv))
    return dq, dk, dv


# ------------------------------------------------------------------------------ padding


def _needed(call: Call) -> Call:
    """The call without a key mask that is seen to hide nothing."""
    key_mask = call.key_mask
    if key_mask is None or not can_look_at(key_mask) or not bool(key_mask.all()):
        return call
    return call._replace(key_mask=None)


def _without_hidden_keys(call: Call) -> Call:
    """The call with zeros in the rows of k and v that its key mask hides."""
    if call.key_mask is None:
        return call
    hidden = ~call.key_mask[:, None, :, None]
    k, v = (x.masked_fill(hidden, 0.0) for x in (call.k, call.v))
    return call._replace(k=k, v=v)


# ------------------------------------------------------------------------------ heads


def _of_all_heads(call: Call, part: Part) -> Call:
    """The call as the backend of a part with all heads takes it."""
    if call.key_mask is None or part.backend.skips_padding:
        return call
    return _without_hidden_keys(call)


def _calls(call: Call, parts: tuple[Part, ...]) -> list[Call]:
    """The call as each part's backend takes it."""
    clean, calls = None, []
    for part in parts:
        each = call
        if call.key_mask is not None and not part.backend.skips_padding:
            clean = each = clean or _without_hidden_keys(call)
        if part.heads is not None and not part.backend.picks_heads:
            each = _of_heads(each, part.heads)
        calls.append(each)
    return calls


def _of_heads(call: Call, heads: torch.Tensor) -> Call:
    """The tensors of some heads alone, each query head with a key head of its own."""
    every = call.q.shape[1]
    q, k, v = (expand_heads(x, every).index_select(1, heads) for x in (call.q, call.k, call.v))
    return call._replace(q=q, k=k, v=v, heads=heads, all_heads=every)


def _upstream_of(upstream: Upstream, part: Part) -> Upstream:
    """What reaches a part's backend."""
    if part.heads is None or part.backend.picks_heads:
        return upstream
    o, lse, grad_o = (x.index_select(1, part.heads) for x in upstream[:3])
    grad_lse = upstream.grad_lse
    if grad_lse is not None:
        grad_lse = grad_lse.index_select(1, part.heads)
    return Upstream(o, lse, grad_o, grad_lse)


def _joined(
    pieces: list[torch.Tensor], parts: tuple[Part, ...], heads: int, nothing: float
) -> torch.Tensor:
    """The results of all parts in one tensor of all heads; `nothing` fills those of no part."""
    whole = next(
        (y for y, part in zip(pieces, parts, strict=True) if part.backend.picks_heads), None
    )
    if whole is None:
        batch, _, rows, *dim = pieces[0].shape
        widest = functools.reduce(torch.promote_types, (piece.dtype for piece in pieces))
        whole = pieces[0].new_full((batch, rows, heads, *dim), nothing, dtype=widest)
        whole = whole.transpose(1, 2)
    for piece, part in zip(pieces, parts, strict=True):
        if piece is not whole:
            assert part.heads is not None
            if part.backend.picks_heads:
                piece = piece.index_select(1, part.heads)
            whole.index_copy_(1, part.heads, piece.to(whole.dtype))
    return whole


def _summed(x: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Add up the gradients of the query heads that share a k or v head, [B, H, M, D]."""
    if x.shape[1] == kv_heads:
        return x
    summed: torch.Tensor = x.transpose(1, 2).unflatten(2, (kv_heads, -1)).sum(3)
    return summed.transpose(1, 2)


def _laid_out(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A result [B, H, N, D] in its dtype and in `_memory_order`; mostly it is so already.

    To ask costs less than to have torch find out. Not for tensors that are traced.
    """
    if x.dtype != dtype:
        x = x.to(dtype)
    _, heads, rows, dim = x.shape
    in_order = x.stride() == (rows * heads * dim, dim, heads * dim, 1)
    return x if in_order else _memory_order(x)


def _memory_order(x: torch.Tensor) -> torch.Tensor:
    """The same values [B, H, N, D], laid out as [B, N, H, D]."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)
