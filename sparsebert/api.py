"""sparse_attention: check the arguments, decide what runs, run it, differentiate it.

What runs where. The plan decides for every head whether it runs in tiles or dense, and every
backend keeps to that unless the caller names another. What is decided here is only which code
runs a route: torch's own SDPA for calls that are wholly dense and have no options, else the ops of
`executor.library`, or, where a transform of torch.func or forward-mode differentiation is at work,
the operations that these are composed of.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Literal, overload

import torch

from sparsebert import autograd as library
from sparsebert import dropout
from sparsebert.arguments import BACKENDS, as_number, check_call, check_fit, check_tensors
from sparsebert.backends import sdpa as plain
from sparsebert.backends import torch_attention as attention
from sparsebert.backends.call import expand_heads
from sparsebert.backends.torch_program import FlatProgram, from_tensors
from sparsebert.masks import AttentionMask
from sparsebert.memory import Shelf
from sparsebert.plan import AttentionPlan
from sparsebert.plan_cache import compile_for
from sparsebert.support.tensors import can_look_at, is_transformed

__all__ = ["BACKENDS", "sparse_attention"]

_plans: Shelf[AttentionPlan] = Shelf(AttentionPlan.buffers)
"""Plans of masks that were passed, by content, device and kind of call."""

_LOWERED = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that autocast changes."""

_HAS_TRITON = importlib.util.find_spec("triton") is not None


@overload
def sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan | AttentionMask,
    *,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: Literal[False] = False,
    backend: str = "auto",
) -> torch.Tensor: ...


@overload
def sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan | AttentionMask,
    *,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: Literal[True],
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]: ...


@overload
def sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan | AttentionMask,
    *,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: bool,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]: ...


def sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan | AttentionMask,
    *,
    scale: float | None = None,
    key_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention over exactly the positions that the plan's mask allows.

    Shapes and dtypes:
        q: [B, H, N, D]; k, v: [B, H_kv, M, D] with H a multiple of H_kv; any strides; fp32, fp16,
            bf16 or fp64, all the same unless autocast makes them so; D up to 256.
        plan: an `AttentionPlan`, or an `AttentionMask` of one layer, which is compiled once and
            remembered (under torch.compile pass a plan). One head's mask serves all heads.
        key_mask: bool [B, M], True = a real token; combined with the mask by AND.

    Args:
        scale: factor of the scores q k^T; None means D ** -0.5.
        dropout_p: dropout of the probabilities, in [0, 1). The draw depends on the seed (from
            torch's generator), batch, head, query and key alone, see `sparsebert.dropout`.
        return_lse: also return the natural-log sum of the exponentiated scores.
        backend: "auto" runs every head on the route that the plan chose, in tiles or dense, as
            `plan.explain()` says; on a GPU the tiles run in the kernels of `sparsebert.kernels`.
            The others run all heads on one route, whatever the plan chose: "torch" in tiles, in
            torch operations; "triton" in tiles, in the kernels (CUDA and HIP tensors, or with
            TRITON_INTERPRET=1 the CPU's); "dense" over all scores, masked.

    Returns o [B, H, N, D] in q's dtype and, with `return_lse`, LSE fp32 [B, H, N]. A query with
    nothing to attend gives zero output, zero gradients and an LSE of -inf. A k or v row that no
    query may attend to reaches no output and no gradient, whatever it holds; its own gradients are
    zero.

    The backward pass gives the same bits for the same inputs; on a GPU heads that run dense go
    through torch's SDPA, where `torch.use_deterministic_algorithms` decides that. For second
    derivatives take backend "torch" (or fp64): torch's own dense attention, which "auto" may
    choose, has none. Within torch.func transforms (grad, vjp, jvp, vmap, hessian, ...) and
    forward-mode differentiation, all backends but "triton" work, by composed operations that are
    slower, differentiable to any order.

    Raises TypeError and ValueError that name the argument, what was expected, what came and what
    to do.

    >>> import torch, sparsebert as sb
    >>> q, k, v = torch.randn(3, 1, 4, 256, 32)
    >>> plan = sb.compile_plan(sb.patterns.sliding_window(256, window=8), target="cpu")
    >>> sb.sparse_attention(q, k, v, plan).shape
    torch.Size([1, 4, 256, 32])
    """
    q, k, v = _autocast(q, k, v)
    if isinstance(plan, AttentionMask):
        check_tensors(q, k, v)
        plan = _plan_of(plan, q, k)
    check_call(q, k, v, plan, key_mask, dropout_p, backend)
    if backend == "triton" and (why := _why_not_triton(q)):
        raise ValueError(
            f"sparse_attention: backend 'triton' {why}; or use backend 'auto', 'torch' or 'dense'"
        )
    scale = float(q.shape[-1]) ** -0.5 if scale is None else as_number("scale", scale)
    transformed = is_transformed()
    program = plan.program_for(backend if transformed else _program_name(q, backend))
    if not (dropout_p > 0.0 or return_lse or transformed) and _sdpa_will_do(q, key_mask):
        if program.is_plain:
            return _plain(q, k, v, program, key_mask, scale)
        if program.is_mixed and program.parts[0].is_plain:
            return _beside_tiles(q, k, v, program, key_mask, scale)
    seed = dropout.draw_seed(q.device) if dropout_p > 0.0 else None
    options = key_mask, seed, scale, float(dropout_p)
    run = _composed if transformed else library.attention_op
    o, lse = run(q, k, v, program, *options)
    return (o, lse.float()) if return_lse else o


def _program_name(q: torch.Tensor, backend: str) -> str:
    """Which of the plan's programs a call runs, see `AttentionPlan.program_for`."""
    if backend == "auto" and _on_gpu(q) and _why_not_triton(q) is None:
        return "mixed"
    return backend


def _on_gpu(q: torch.Tensor) -> bool:
    """Whether "auto" has kernels for the tiles of such a call."""
    return q.is_cuda


def _sdpa_will_do(q: torch.Tensor, key_mask: torch.Tensor | None) -> bool:
    """Whether torch's SDPA may run dense heads of a call without dropout and LSE.

    Our own op around it would take longer than short sequences do. Not in fp64, the precision of
    derivative checks: SDPA has no second derivatives. And on a CPU not where a key mask cannot be
    looked at: the op looks when it runs, and most hide nothing.
    """
    if q.dtype == torch.float64:
        return False
    return key_mask is None or can_look_at(key_mask) or q.device.type != "cpu"


def _plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    program: FlatProgram,
    key_mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    mask, unused = program.dense_mask, program.dense_unused
    return plain.attention(q, k, v, mask, unused, key_mask, scale)


def _beside_tiles(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    program: FlatProgram,
    key_mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """The dense heads of a mixed program by SDPA, the others by the op."""
    dense, tiled = program.parts
    heads = dense.dense_heads
    q_, k_, v_ = (expand_heads(x, q.shape[1]).index_select(1, heads) for x in (q, k, v))
    part = _plain(q_, k_, v_, dense, key_mask, scale)
    o, _ = library.attention_op(
        q, k, v, tiled, key_mask, None, scale, 0.0
    )  # zeros in the dense heads
    # In the order of memory, which results keep.
    return o.transpose(1, 2).index_copy(2, heads, part.transpose(1, 2)).transpose(1, 2)


def _composed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    program: FlatProgram,
    key_mask: torch.Tensor | None,
    seed: torch.Tensor | None,
    scale: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by operations for which torch has all rules."""
    if not program.is_torch:
        raise NotImplementedError(
            "sparse_attention: the Triton kernels have no rules for torch.func transforms and "
            "forward-mode differentiation; use backend='torch' or 'dense', or 'auto'"
        )
    if q.shape[0] == 0:  # which some of torch's rules cannot take
        return q.clone(), q.sum(-1)
    whole = from_tensors(*program)
    return attention.forward(q, k, v, key_mask, seed, whole, scale, dropout_p, differentiable=True)


def _plan_of(mask: AttentionMask, q: torch.Tensor, k: torch.Tensor) -> AttentionPlan:
    if mask.num_layers != 1:
        raise ValueError(
            f"sparse_attention: plan is a mask of {mask.num_layers} layers; pass one of them, "
            "mask.layer(i)"
        )
    heads, head_dim = q.shape[1], q.shape[3]
    key = mask.fingerprint, mask.positions, q.device, head_dim, heads, torch.get_num_threads()
    plan = _plans.get(key)
    if plan is None:
        check_fit(q, k, mask)  # before what may take long
        plan = compile_for(mask, q.device, head_dim, heads).to(q.device)
        _plans.put(key, plan)
    return plan


def _autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What torch's own attention does under autocast: lower precision where that is asked for.

    Also for tensors of several precisions, as a norm of queries and keys alone leaves them.
    """
    for x in tensors:  # not yet checked
        if not isinstance(x, torch.Tensor) or x.dtype not in _LOWERED:
            return tensors
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def _why_not_triton(q: torch.Tensor) -> str | None:
    """Why the kernels cannot run this call; None if they can."""
    if not _HAS_TRITON:
        return "needs Triton, which is not installed; pip install 'sparsebert[triton]'"
    if q.dtype == torch.float64:
        return "takes fp16, bf16 and fp32, got torch.float64; convert the tensors"
    if not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return (
            f"needs CUDA or HIP tensors, got {q.device}; move them, or set TRITON_INTERPRET=1 "
            "before Python starts to have the kernels interpreted on the CPU"
        )
    return None
