"""What `sparse_attention` refuses, and with which words."""

from __future__ import annotations

import torch

from sparsebert.backends import registry
from sparsebert.masks import AttentionMask
from sparsebert.masks.mask_input import numbers_in, remedy
from sparsebert.masks.positions import why_not_crop
from sparsebert.plan import AttentionPlan

MAX_HEAD_DIM = 256
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_call(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: AttentionPlan,
    key_mask: torch.Tensor | None,
    dropout_p: float,
    backend: str,
) -> None:
    """Refuse what does not fit together; see `sparse_attention`."""
    check_tensors(q, k, v)
    if not isinstance(plan, AttentionPlan):
        raise TypeError(
            "sparse_attention: plan must be an AttentionPlan or an AttentionMask, got "
            f"{describe(plan)}; {remedy(plan, 'compile_plan(AttentionMask.from_dense({}))')}"
        )
    check_fit(q, k, plan)
    batch, kv_len = q.shape[0], k.shape[2]
    if plan.device != q.device:
        raise ValueError(
            f"sparse_attention: q is on {q.device} but the plan is on {plan.device}; "
            f"move it once, plan = plan.to({str(q.device)!r})"
        )
    if key_mask is not None:
        _check_key_mask(key_mask, batch, kv_len, q.device)
    if not _is_probability(dropout_p):
        raise ValueError(
            f"sparse_attention: dropout_p must be in [0, 1), got {dropout_p!r}; "
            "it is the probability to drop, 0.0 for none"
        )
    registry.check_name("sparse_attention", backend)


def check_fit(q: torch.Tensor, k: torch.Tensor, plan: AttentionPlan | AttentionMask) -> None:
    """Refuse a plan, or the mask that one would be made of, for other lengths or heads."""
    _, heads, q_len, _ = q.shape
    kv_len = k.shape[2]
    size = plan.report if isinstance(plan, AttentionPlan) else plan
    if size.q_len != q_len or size.kv_len != kv_len:
        wrong, cure = _length_mismatch(q_len, kv_len, plan), _length_remedy(q_len, kv_len, plan)
        raise ValueError(f"sparse_attention: {wrong}; {cure}")
    if size.num_heads not in (1, heads):
        raise ValueError(
            f"sparse_attention: q has H={heads} heads but the plan has {plan.num_heads}; "
            f"compile a mask with 1 head (it serves all) or {heads}"
        )


def check_tensors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    alike = _are_alike(q, k, v)  # as most are; then what is right of q is right of all
    for name, x in (("q", q),) if alike else (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor) or x.dim() != 4:
            raise ValueError(
                f"sparse_attention: {name} must be a tensor [B, H, N, D], got {describe(x)}; "
                f"{_to_four_dimensions(name, x)}"
            )
        if x.dtype not in _DTYPES:
            raise TypeError(
                f"sparse_attention: {name} must be fp16, bf16, fp32 or fp64, got {x.dtype}; "
                f"convert it, for example {name}.float()"
            )
    if not alike:
        _check_together(q, k, v)
    _, heads, _, head_dim = q.shape
    if heads == 0 or (not alike and k.shape[1] == 0):
        name, x = ("k", k) if heads else ("q", q)
        raise ValueError(
            f"sparse_attention: {name} has no heads, its shape is {list(x.shape)}; it must be "
            "[B, H, N, D] with H of at least 1"
        )
    if not alike and heads % k.shape[1]:
        raise ValueError(
            f"sparse_attention: q has H={heads} heads, which is not a multiple of k's "
            f"H_kv={k.shape[1]}; each k/v head serves an equal number of query heads"
        )
    if head_dim == 0:
        raise ValueError("sparse_attention: D must be at least 1, got 0; q, k and v are empty")
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(
            f"sparse_attention: D must be at most {MAX_HEAD_DIM}, got {head_dim}; "
            "use more heads of a smaller size"
        )


def _are_alike(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Tensors of one shape and dtype on one device."""
    return (
        isinstance(q, torch.Tensor)
        and isinstance(k, torch.Tensor)
        and isinstance(v, torch.Tensor)
        and q.shape == k.shape == v.shape
        and q.dtype == k.dtype == v.dtype
        and q.device == k.device == v.device
    )


def _check_together(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Refuse tensors [B, H, N, D] that do not fit each other."""
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


def _to_four_dimensions(name: str, x: object) -> str:
    """What makes a tensor [B, H, N, D] of what came."""
    if not isinstance(x, torch.Tensor):
        return f"make it one, torch.as_tensor({name})"
    if x.dim() == 3:
        return (
            f"add the missing dimension: {name}[None] is a batch of one, {name}[:, None] one head"
        )
    if x.dim() == 2:
        return f"add the missing dimensions: {name}[None, None] is a batch of one with one head"
    return "join or add dimensions with reshape"


def _check_key_mask(key_mask: torch.Tensor, batch: int, kv_len: int, device: torch.device) -> None:
    if not isinstance(key_mask, torch.Tensor) or key_mask.dtype != torch.bool:
        raise TypeError(
            f"sparse_attention: key_mask must be bool [B={batch}, M={kv_len}], got "
            f"{describe(key_mask)}; {_key_mask_remedy(key_mask)}"
        )
    if key_mask.shape != (batch, kv_len):
        raise ValueError(
            f"sparse_attention: key_mask must have shape [B={batch}, M={kv_len}], got "
            f"{describe(key_mask)}; {_key_mask_remedy(key_mask)}"
        )
    if key_mask.device != device:
        raise ValueError(
            f"sparse_attention: q is on {device} but key_mask is on {key_mask.device}; "
            "move it to q's device"
        )


def as_number(name: str, value: float) -> float:
    """A number as a float; not one that a gradient should reach, which it would not."""
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise TypeError(
            f"sparse_attention: {name} must be a number, got a tensor that requires grad, which "
            f"would get none; multiply q by it and pass {name}=1.0"
        )
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(
        f"sparse_attention: {name} must be a number or None, got {describe(value)}; "
        "the scores q k^T are multiplied by it"
    )


def _is_probability(dropout_p: float) -> bool:
    try:
        return 0.0 <= dropout_p < 1.0
    except TypeError:  # None, text
        return False


def _key_mask_remedy(key_mask: object) -> str:
    real = "True = a real token"
    if not isinstance(key_mask, torch.Tensor):
        return f"{real}; make it a tensor, torch.as_tensor(key_mask)"
    if key_mask.dtype == torch.bool:
        if key_mask.dim() == 4:
            return f"{real}; of a mask [B, 1, 1, M] that hides padding alone take mask[:, 0, 0]"
        return f"{real}; it says for every sequence of the batch which keys are"
    numbers = numbers_in(key_mask)
    if numbers in ("additive", "biases") or (numbers == "0" and key_mask.is_floating_point()):
        return f"{real}; this one is additive (0 = a real token): key_mask == 0"
    return f"{real}; from a HuggingFace attention_mask write mask.bool()"


def _length_mismatch(q_len: int, kv_len: int, plan: AttentionPlan | AttentionMask) -> str:
    wrong = []
    if q_len != plan.q_len:
        wrong.append(f"q has N={q_len} but the plan covers N={plan.q_len}")
    if kv_len != plan.kv_len:
        wrong.append(f"k has M={kv_len} but the plan covers M={plan.kv_len}")
    return " and ".join(wrong)


def _length_remedy(q_len: int, kv_len: int, plan: AttentionPlan | AttentionMask) -> str:
    if q_len == 0 or kv_len == 0:
        return "an empty sequence has nothing to attend, leave it out"
    if q_len <= plan.q_len and kv_len <= plan.kv_len:
        mask = plan if isinstance(plan, AttentionMask) else plan.mask
        if why := why_not_crop(mask.positions):
            return f"the mask cannot be cropped to them: {why}"
        lengths = f"{q_len}" if q_len == kv_len else f"{q_len}, {kv_len}"
        return f"crop the mask (mask.crop({lengths})) and compile it, or pad the tensors"
    return "build the mask for the longer sequence, or shorten the tensors"


def describe(x: object) -> str:
    if isinstance(x, torch.Tensor):
        return f"a tensor {x.dtype} {list(x.shape)}"
    return type(x).__name__
