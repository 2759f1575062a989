"""sparse_attention: check the arguments, choose who runs the call, run it.

Dense heads of calls without options go to torch's own SDPA (`Backend.direct`); all else to the ops
of `sparsebert.autograd`, or, where a transform of torch.func or forward-mode differentiation is at
work, to operations that torch has all rules for (`execution.compose`).
"""

from __future__ import annotations

from typing import Literal, overload

import torch

from sparsebert import autograd, dropout
from sparsebert.arguments import as_number, check_call, check_fit, check_tensors
from sparsebert.backends import execution, registry, routing
from sparsebert.backends.base import Call
from sparsebert.backends.program import Program
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan, plan_on, request_for
from sparsebert.plan_cache import PlanKey, plans
from sparsebert.support.tensors import is_traced, is_transformed

__all__ = ["sparse_attention"]

_LOWERED = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that autocast changes."""
_KINDS = 64
"""Of calls that a plan remembers."""


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
            `plan.explain()` says; the tiles run in the kernels of `sparsebert.kernels`, on a CPU
            in those of C++ if they are built. The others run all heads on one route, whatever the
            plan chose: "native" in the CPU's kernels; "torch" in tiles, in torch operations;
            "triton" in tiles, in the kernels (CUDA and HIP tensors, or with
            TRITON_INTERPRET=1 the CPU's); "dense" over all scores, masked; or what was registered
            with `sparsebert.backends.registry`.

    Returns o [B, H, N, D] in q's dtype and, with `return_lse`, LSE fp32 [B, H, N]. A query with
    nothing to attend gives zero output, zero gradients and an LSE of -inf. A k or v row that no
    query may attend to reaches no output and no gradient, whatever it holds; its own gradients are
    zero.

    The backward pass gives the same bits for the same inputs; on a GPU heads that run dense go
    through torch's SDPA, where `torch.use_deterministic_algorithms` decides that. For second
    derivatives take backend "torch" (or fp64): torch's own dense attention, which "auto" may
    choose, has none, and "native" takes all scores for them. Within torch.func transforms (grad,
    vjp, jvp, vmap, hessian, ...) and forward-mode differentiation, all backends but "triton" work,
    by composed operations that are slower, differentiable to any order.

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
    transformed = is_transformed()
    if transformed or is_traced():
        check_call(q, k, v, plan, key_mask, dropout_p, backend)
        program = _program(q, plan, backend, transformed)
    else:
        program = _known_program(q, k, v, plan, key_mask, dropout_p, backend)
    head_dim = int(q.shape[-1])  # a tensor under torch.jit.trace
    scale = head_dim**-0.5 if scale is None else as_number("scale", scale)
    call = Call(q, k, v, key_mask, None, scale, float(dropout_p), wants_lse=return_lse)
    if not (dropout_p > 0.0 or return_lse or transformed):
        o = execution.direct(call, program)
        if o is not None:
            return o if not program.singles else _beside(o, call, program)
    if dropout_p > 0.0:
        call = call._replace(seed=dropout.draw_seed(q.device))
    if transformed and q.shape[0] == 0:  # which some of torch's rules cannot take
        o, lse = q.clone(), q.sum(-1)
    elif transformed:
        o, lse = execution.compose(call, program.parts)
    else:
        o, asked = autograd.attention(call, program)
        if asked is None:
            return o
        lse = asked
    return (o, lse.float()) if return_lse else o


def _known_program(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    key_mask: torch.Tensor | None,
    dropout_p: float,
    backend: str,
) -> Program:
    """What runs a call, which is refused if it has to be; found again for others of its kind.

    To check each call, and to choose its backends, takes a third of the host's time.
    """
    try:
        kind = (
            q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, k.device, v.device,
            None if key_mask is None else (key_mask.shape, key_mask.dtype, key_mask.device),
            type(dropout_p), float(dropout_p),  # a tensor would be known by its identity alone
            backend, registry.changes,
        )  # fmt: skip
        program = plan.checked.get(kind)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        # Something is not what it should be, or of unknown sizes.
        kind, program = None, None
    if program is None:
        check_call(q, k, v, plan, key_mask, dropout_p, backend)
        program = _program(q, plan, backend, transformed=False)
        if kind is not None:
            if len(plan.checked) >= _KINDS:
                plan.checked.clear()
            plan.checked[kind] = program
    return program


def _program(q: torch.Tensor, plan: AttentionPlan, backend: str, transformed: bool) -> Program:
    """What the backends of a call run of the plan."""
    device, head_dim = q.device.type, int(q.shape[-1])
    return plan.program_for(*routing.choose(backend, device, q.dtype, head_dim, transformed))


def _beside(o: torch.Tensor, call: Call, program: Program) -> torch.Tensor:
    """The heads of the first part, run already, and the others by the op."""
    first, rest = program.singles
    heads = first.parts[0].heads
    assert heads is not None
    whole, _ = autograd.attention(call, rest)  # zeros in the heads of the first
    # In the order of memory, which results keep.
    return whole.transpose(1, 2).index_copy(2, heads, o.transpose(1, 2)).transpose(1, 2)


def _plan_of(mask: AttentionMask, q: torch.Tensor, k: torch.Tensor) -> AttentionPlan:
    if mask.num_layers != 1:
        raise ValueError(
            f"sparse_attention: plan is a mask of {mask.num_layers} layers; pass one of them, "
            "mask.layer(i)"
        )
    heads, head_dim = int(q.shape[1]), int(q.shape[3])  # tensors under torch.jit.trace
    request = request_for(mask, q.device, head_dim, heads)
    plan = plans.get(PlanKey.whole(request, q.device))
    if plan is None:
        check_fit(q, k, mask)  # before what may take long
        plan = plan_on(request, q.device)
    return plan


def _autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What torch's own attention does under autocast: lower precision where that is asked for.

    Also for tensors of several precisions, as a norm of queries and keys alone leaves them.
    """
    if not isinstance(tensors[0], torch.Tensor):  # they are not checked yet
        return tensors
    device = tensors[0].device.type
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    if not known or not torch.is_autocast_enabled(device):
        return tensors
    if any(not isinstance(x, torch.Tensor) or x.dtype not in _LOWERED for x in tensors):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)
