"""A backend of one's own, in one file: attention by the formula, forward and backward.

    python examples/new_backend.py

Any module can hold a backend. `register` gives it a name, and then `sparse_attention`,
`SparseSelfAttention`, `sparsify` and the tests of the contract take it like those that are there:
padding, dead queries, shared key heads, mixed plans and torch.compile are not its business.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

import sparsebert as sb
from sparsebert import dropout
from sparsebert.backends import registry
from sparsebert.backends.base import Backend, Call, CallKind, Forward, Gradients, Upstream
from sparsebert.compiler.schedule import Schedule


class MaskProgram(NamedTuple):
    """What the backend keeps of a plan: the mask of its heads, bool [H or 1, N, M]."""

    mask: torch.Tensor


class Reference(Backend):
    """`reference_attention` as a backend."""

    name = "reference"
    Program = MaskProgram

    def refuses(self, kind: CallKind) -> list[str]:
        if kind.dtype in (torch.float32, torch.float64):
            return []
        return [f"takes fp32 and fp64, got {kind.dtype}; convert the tensors"]

    def lower(self, schedule: Schedule, heads: np.ndarray) -> MaskProgram:
        listed = [0] if schedule.is_shared else schedule.heads_of(heads).tolist()
        return MaskProgram(schedule.mask.dense()[0, listed])

    def forward(self, call: Call, program: MaskProgram) -> Forward:
        o, lse = sb.reference_attention(
            call.q, call.k, call.v, program.mask, scale=call.scale, key_mask=call.key_mask,
            keep_mask=_kept(call), dropout_p=call.dropout_p, return_lse=True,
        )  # fmt: skip
        return o.to(call.q.dtype), lse

    def backward(self, call: Call, program: MaskProgram, upstream: Upstream) -> Gradients:
        groups = call.q.shape[1] // call.k.shape[1]
        k, v = (x.double().repeat_interleave(groups, dim=1) for x in (call.k, call.v))
        q, o, grad_o = (x.double() for x in (call.q, upstream.o, upstream.grad_o))
        allowed = program.mask[None]
        if call.key_mask is not None:
            allowed = allowed & call.key_mask[:, None, None, :]
        # What no query attends to, and queries that attend to nothing, may hold NaN.
        unseen, dead = ~allowed.any(2)[..., None], ~allowed.any(3)[..., None]
        k, v = k.masked_fill(unseen, 0.0), v.masked_fill(unseen, 0.0)
        q, grad_o = q.masked_fill(dead, 0.0), grad_o.masked_fill(dead, 0.0)

        lse = upstream.lse.double()[..., None].masked_fill(dead, 0.0)
        p = (call.scale * q @ k.mT - lse).exp().masked_fill(~allowed, 0.0)
        kept = _kept(call)
        factor = 1.0 if kept is None else kept.double() / (1.0 - call.dropout_p)
        delta = (grad_o * o).sum(-1, keepdim=True)
        if upstream.grad_lse is not None:
            delta = delta - upstream.grad_lse.double()[..., None]
        ds = call.scale * p * (grad_o @ v.mT * factor - delta)
        return ds @ k, ds.mT @ q, (p * factor).mT @ grad_o


def _kept(call: Call) -> torch.Tensor | None:
    """The dropout draw of the call's heads, bool [B, H, N, M]; None without dropout."""
    if call.dropout_p == 0.0:
        return None
    query = torch.arange(call.q.shape[2], device=call.q.device)[:, None]
    key = torch.arange(call.k.shape[2], device=call.q.device)
    keys = call.dropout_keys()[:, :, None, None]
    return dropout.keep_bits(keys, query, key, dropout.drop_threshold(call.dropout_p))


BACKEND = Reference()


def main() -> None:
    """Register it, and run one plan on it and on what the plan would choose."""
    registry.register("reference", __name__)
    plan = sb.compile_plan(sb.patterns.longformer(512, window=8))
    q, k, v = torch.randn(3, 2, 4, 512, 32)
    ours = sb.sparse_attention(q, k, v, plan, backend="reference")
    theirs = sb.sparse_attention(q, k, v, plan)
    print("largest difference:", (ours - theirs).abs().max().item())


if __name__ == "__main__":
    main()
