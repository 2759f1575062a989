"""sparse_attention: check the arguments, choose a backend, run it, differentiate it.

The work is behind two `torch.library` custom ops, forward and backward, whose arguments are
tensors and numbers only: a plan travels as the tensors and sizes of its program. So torch.compile
sees one opaque node with known shapes, autograd and activation checkpointing work as for any op,
and the backward op is differentiable in turn.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import torch

from sparsebert import dropout
from sparsebert.executor import attention, plain
from sparsebert.executor.call import can_look_at
from sparsebert.executor.program import TRITON, FlatProgram, from_tensors
from sparsebert.mask_input import numbers_in, remedy
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from sparsebert.positions import why_not_crop

BACKENDS = ("auto", "triton", "torch", "dense")
MAX_HEAD_DIM = 256
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
            bf16 or fp64, all the same; D up to 256.
        plan: an `AttentionPlan`, or an `AttentionMask` of one layer, which is compiled once and
            remembered (under torch.compile pass a plan). One head's mask serves all heads.
        key_mask: bool [B, M], True = a real token; combined with the mask by AND.

    Args:
        scale: factor of the scores q k^T; None means D ** -0.5.
        dropout_p: dropout of the probabilities, in [0, 1). The draw depends on the seed (from
            torch's generator), batch, head, query and key alone, see `sparsebert.dropout`.
        return_lse: also return the natural-log sum of the exponentiated scores.
        backend: "auto" (what the plan chose; on a GPU, the kernels for its tiles), "torch" (tiles,
            in torch operations), "dense" (all scores, masked) or "triton" (the kernels in
            `sparsebert.kernels`: CUDA and HIP tensors, or with TRITON_INTERPRET=1 the CPU's).

    Returns o [B, H, N, D] in q's dtype and, with `return_lse`, LSE fp32 [B, H, N]. A query with
    nothing to attend gives zero output, zero gradients and an LSE of -inf. A k or v row that no
    query may attend to reaches no output and no gradient, whatever it holds; its own gradients are
    zero. The backward pass gives the same bits for the same inputs. For second derivatives take
    backend "torch" (or fp64): torch's own dense attention, which "auto" may choose, has none.

    Raises TypeError and ValueError that name the argument, what was expected, what came and what
    to do.

    >>> import torch, sparsebert as sb
    >>> q, k, v = torch.randn(3, 1, 4, 256, 32)
    >>> plan = sb.compile_plan(sb.patterns.sliding_window(256, window=8), target="cpu")
    >>> sb.sparse_attention(q, k, v, plan).shape
    torch.Size([1, 4, 256, 32])
    """
    if isinstance(plan, AttentionMask):
        _check_tensors(q, k, v)
        plan = _plan_of(plan, q)
    _check(q, k, v, plan, key_mask, dropout_p, backend)
    q, k, v = _autocast(q, k, v)
    program = plan.program_for(backend)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if program.is_plain and _sdpa_will_do(q, program, key_mask, dropout_p, return_lse):
        mask, unused = program.dense_mask, program.dense_unused
        return plain.attention(q, k, v, mask, unused, key_mask, scale)
    if backend == "auto" and q.is_cuda and _why_not_triton(q) is None:
        program = plan.program_for("triton")
    seed = dropout.draw_seed(q.device) if dropout_p > 0.0 else None
    o, lse = torch.ops.sparsebert.attention(
        q,
        k,
        v,
        program.tensors,
        program.sizes,
        key_mask,
        seed,
        scale,
        float(dropout_p),
    )
    return (o, lse.float()) if return_lse else o


def _sdpa_will_do(
    q: torch.Tensor,
    program: FlatProgram,
    key_mask: torch.Tensor | None,
    dropout_p: float,
    return_lse: bool,
) -> bool:
    """Whether a plain program's call needs nothing of our op, which takes longer than it helps.

    Not in fp64, the precision of derivative checks: SDPA has no second derivatives. Unused keys
    are left to the op on a GPU, whose kernels do not touch them.
    """
    if dropout_p > 0.0 or return_lse or q.dtype == torch.float64:
        return False
    if key_mask is not None and not can_look_at(key_mask):
        return False
    return program.dense_unused is None or q.device.type == "cpu"


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
    if ctx.sizes[0] == TRITON:
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


def _plan_of(mask: AttentionMask, q: torch.Tensor) -> AttentionPlan:
    if mask.num_layers != 1:
        raise ValueError(
            f"sparse_attention: plan is a mask of {mask.num_layers} layers; pass one of them, "
            "mask.layer(i)"
        )
    heads, head_dim = q.shape[1], q.shape[3]
    if mask.num_heads not in (1, heads):  # refused later, with what is known of the plan
        heads = mask.num_heads
    return _plan_on(mask, q.device, head_dim, heads, torch.get_num_threads())


@functools.lru_cache(maxsize=64)
def _plan_on(
    mask: AttentionMask, device: torch.device, head_dim: int, heads: int, threads: int
) -> AttentionPlan:
    """The plan of a mask on a device for such calls, remembered by the mask's content."""
    from sparsebert.plan_cache import compile_for

    return compile_for(mask, device, head_dim, heads).to(device)


def _autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What torch's own attention does under autocast: lower precision where that is asked for."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    key_mask: torch.Tensor | None,
    dropout_p: float,
    backend: str,
) -> None:
    """Refuse what does not fit together; see `sparse_attention`."""
    _check_tensors(q, k, v)
    if not isinstance(plan, AttentionPlan):
        raise TypeError(
            "sparse_attention: plan must be an AttentionPlan or an AttentionMask, got "
            f"{_describe(plan)}; {remedy(plan, 'compile_plan(AttentionMask.from_dense({}))')}"
        )
    batch, heads, q_len, _ = q.shape
    kv_len = k.shape[2]
    if plan.q_len != q_len or plan.kv_len != kv_len:
        wrong, cure = _length_mismatch(q_len, kv_len, plan), _length_remedy(q_len, kv_len, plan)
        raise ValueError(f"sparse_attention: {wrong}; {cure}")
    if plan.num_heads not in (1, heads):
        raise ValueError(
            f"sparse_attention: q has H={heads} heads but the plan has {plan.num_heads}; "
            f"compile a mask with 1 head (it serves all) or {heads}"
        )
    if plan.device != q.device:
        raise ValueError(
            f"sparse_attention: q is on {q.device} but the plan is on {plan.device}; "
            f"move it once, plan = plan.to({str(q.device)!r})"
        )
    if key_mask is not None:
        _check_key_mask(key_mask, batch, kv_len, q.device)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(
            f"sparse_attention: dropout_p must be in [0, 1), got {dropout_p}; "
            "it is the probability to drop, 0.0 for none"
        )
    if backend not in BACKENDS:
        raise ValueError(f"sparse_attention: backend must be one of {BACKENDS}, got {backend!r}")
    if backend == "triton" and (why := _why_not_triton(q)):
        raise ValueError(
            f"sparse_attention: backend 'triton' {why}; or use backend 'auto', 'torch' or 'dense'"
        )


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


def _check_tensors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    named = {"q": q, "k": k, "v": v}
    for name, x in named.items():
        if not isinstance(x, torch.Tensor) or x.dim() != 4:
            raise ValueError(
                f"sparse_attention: {name} must be a tensor [B, H, N, D], got {_describe(x)}; "
                "add missing dimensions, for example x[None] for a batch of one"
            )
        if x.dtype not in _DTYPES:
            raise TypeError(
                f"sparse_attention: {name} must be fp16, bf16, fp32 or fp64, got {x.dtype}; "
                f"convert it, for example {name}.float()"
            )
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise TypeError(
                f"sparse_attention: q is {q.dtype} but {name} is {x.dtype}; "
                f"convert one of them, for example {name}.to(q.dtype)"
            )
        if x.device != q.device:
            raise ValueError(
                f"sparse_attention: q is on {q.device} but {name} is on {x.device}; "
                "move all three to one device"
            )
    if k.shape != v.shape:
        raise ValueError(
            f"sparse_attention: k has shape {list(k.shape)} but v has {list(v.shape)}; "
            "they must agree"
        )
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"sparse_attention: q has B={q.shape[0]}, D={q.shape[3]} but k has B={k.shape[0]}, "
            f"D={k.shape[3]}; batch and head size must agree"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"sparse_attention: q has H={q.shape[1]} heads, which is not a multiple of k's "
            f"H_kv={k.shape[1]}; each k/v head serves an equal number of query heads"
        )
    if not 1 <= q.shape[3] <= MAX_HEAD_DIM:
        raise ValueError(
            f"sparse_attention: D must be at most {MAX_HEAD_DIM}, got {q.shape[3]}; "
            "use more heads of a smaller size"
        )


def _check_key_mask(key_mask: torch.Tensor, batch: int, kv_len: int, device: torch.device) -> None:
    if not isinstance(key_mask, torch.Tensor) or key_mask.dtype != torch.bool:
        raise TypeError(
            f"sparse_attention: key_mask must be bool [B={batch}, M={kv_len}], got "
            f"{_describe(key_mask)}; {_key_mask_remedy(key_mask)}"
        )
    if key_mask.shape != (batch, kv_len):
        raise ValueError(
            f"sparse_attention: key_mask must have shape [B={batch}, M={kv_len}], got "
            f"{_describe(key_mask)}; {_key_mask_remedy(key_mask)}"
        )
    if key_mask.device != device:
        raise ValueError(
            f"sparse_attention: q is on {device} but key_mask is on {key_mask.device}; "
            "move it to q's device"
        )


def _key_mask_remedy(key_mask: object) -> str:
    if isinstance(key_mask, torch.Tensor) and numbers_in(key_mask) == "additive":
        return "True = a real token; this one is additive (0 = a real token): key_mask == 0"
    return "True = a real token; from a HuggingFace attention_mask write mask.bool()"


def _length_mismatch(q_len: int, kv_len: int, plan: AttentionPlan) -> str:
    wrong = []
    if q_len != plan.q_len:
        wrong.append(f"q has N={q_len} but the plan covers N={plan.q_len}")
    if kv_len != plan.kv_len:
        wrong.append(f"k has M={kv_len} but the plan covers M={plan.kv_len}")
    return " and ".join(wrong)


def _length_remedy(q_len: int, kv_len: int, plan: AttentionPlan) -> str:
    if q_len <= plan.q_len and kv_len <= plan.kv_len:
        if why := why_not_crop(plan.mask.positions):
            return f"the mask cannot be cropped to them: {why}"
        lengths = f"{q_len}" if q_len == kv_len else f"{q_len}, {kv_len}"
        return f"crop the mask (mask.crop({lengths})) and compile it, or pad the tensors"
    return "build the mask for the longer sequence, or shorten the tensors"


def _describe(x: object) -> str:
    if isinstance(x, torch.Tensor):
        return f"a tensor {x.dtype} {list(x.shape)}"
    return type(x).__name__
