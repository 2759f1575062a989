"""Compare `sparse_attention` with the fp64 reference, with a budget that is derived, not tuned.

Inputs are drawn, rounded to the dtype, and only then promoted to fp64 for the reference, so that
the rounding of the inputs is in no error. Errors are the largest absolute differences.

The budget is twice the error of dense PyTorch in the same dtype plus one rounding step of the
largest value. dq and dk are sums over scale * P * (dP - delta), where dP and delta cancel, to
exactly zero in a row with one key; they are allowed one fp32 rounding step of what cancels, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from sparsebert import dropout
from sparsebert.compiler import compile_plan
from sparsebert.masks import AttentionMask
from sparsebert.ops import sparse_attention
from sparsebert.reference import reference_attention

QUANTITIES = ("o", "lse", "dq", "dk", "dv")


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison; see the options of ``sparsebert verify``."""

    mask: AttentionMask
    batch: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    key_padding: float
    dropout_p: float
    backend: str
    device: torch.device
    seed: int

    def __str__(self) -> str:
        return (
            f"B={self.batch} H={self.heads} N={self.mask.q_len} M={self.mask.kv_len} "
            f"D={self.head_dim} {str(self.dtype).removeprefix('torch.')} on {self.device}, "
            f"backend {self.backend}, key padding {self.key_padding:g}, "
            f"dropout {self.dropout_p:g}"
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Largest error of one quantity, and the largest that is allowed."""

    name: str
    error: float
    budget: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the budget; NaN is not."""
        return self.error <= self.budget


@dataclasses.dataclass(frozen=True)
class _Inputs:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    grad_o: torch.Tensor
    grad_lse: torch.Tensor
    key_mask: torch.Tensor | None
    keep_mask: torch.Tensor | None


def verify(case: Case) -> list[Outcome]:
    """The outcome for each of `QUANTITIES`: output, log-sum-exp, and the three gradients.

    Raises:
        TypeError, ValueError: `sparse_attention` refuses the case.
    """
    inputs = _draw(case)
    ours = _run_sparse(case, inputs)
    errors = dict.fromkeys(QUANTITIES, 0.0)
    dense_errors = dict.fromkeys(QUANTITIES, 0.0)
    largest = dict.fromkeys(QUANTITIES, 0.0)
    cancelling = dict.fromkeys(QUANTITIES, 0.0)
    # A head at a time: the fp64 scores of all heads at once may not fit into memory.
    for head in tqdm(range(case.heads), desc="heads", leave=False, disable=None):
        exact = _run_dense(case, inputs, head, torch.float64)
        dense = _run_dense(case, inputs, head, case.dtype)
        for name in QUANTITIES:
            errors[name] = _worst(errors[name], ours[name][:, head], exact[name])
            dense_errors[name] = _worst(dense_errors[name], dense[name], exact[name])
            finite = exact[name].nan_to_num(neginf=0.0).abs()
            largest[name] = max(largest[name], finite.max().item())
        grad_p = _largest_grad_p(case, inputs, head)
        for name, factor in (("dq", inputs.k), ("dk", inputs.q)):
            terms = grad_p * case.head_dim**-0.5 * factor[:, head].abs().max().item()
            cancelling[name] = max(cancelling[name], terms)
    outcomes = []
    for name in QUANTITIES:
        dtype = torch.float32 if name == "lse" else case.dtype
        step = torch.finfo(dtype).eps * largest[name]
        step += torch.finfo(torch.float32).eps * cancelling[name]
        outcomes.append(Outcome(name, errors[name], 2.0 * dense_errors[name] + step))
    return outcomes


def _draw(case: Case) -> _Inputs:
    """Random inputs on the case's device; hidden keys and values are zero here."""
    mask, batch, heads, dim = case.mask, case.batch, case.heads, case.head_dim
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> torch.Tensor:
        drawn = torch.randn(*shape, generator=generator)
        return drawn.to(device=case.device, dtype=case.dtype)

    q, grad_o = normal(batch, heads, mask.q_len, dim), normal(batch, heads, mask.q_len, dim)
    k, v = normal(batch, heads, mask.kv_len, dim), normal(batch, heads, mask.kv_len, dim)
    grad_lse = normal(batch, heads, mask.q_len).float()
    key_mask = keep_mask = None
    if case.key_padding:
        key_mask = torch.rand(batch, mask.kv_len, generator=generator) >= case.key_padding
        key_mask = key_mask.to(case.device)
        k, v = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v))
    if case.dropout_p:
        torch.manual_seed(case.seed)
        keep_mask = dropout.keep_mask(
            batch, heads, mask.q_len, mask.kv_len, case.dropout_p, device=case.device
        )
    return _Inputs(q, k, v, grad_o, grad_lse, key_mask, keep_mask)


def _run_sparse(case: Case, inputs: _Inputs) -> dict[str, torch.Tensor]:
    """What we compute, each [B, H, ...]. Hidden keys and values hold NaN, which must not leak."""
    k, v = inputs.k, inputs.v
    if inputs.key_mask is not None:
        k, v = (x.masked_fill(~inputs.key_mask[:, None, :, None], math.nan) for x in (k, v))
    q, k, v = (x.clone().requires_grad_() for x in (inputs.q, k, v))
    target = "cpu" if case.device.type == "cpu" else None
    plan = compile_plan(case.mask, target=target, head_dim=case.head_dim).to(case.device)
    torch.manual_seed(case.seed)  # the draw that keep_mask has seen
    o, lse = sparse_attention(
        q, k, v, plan, key_mask=inputs.key_mask, dropout_p=case.dropout_p, return_lse=True,
        backend=case.backend,
    )  # fmt: skip
    return _with_gradients(o, lse, q, k, v, inputs.grad_o, inputs.grad_lse)


def _run_dense(
    case: Case, inputs: _Inputs, head: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """One head, each [B, ...]: the reference for fp64, plain dense PyTorch for another dtype."""
    one = slice(head, head + 1)
    q, k, v = (x[:, one].to(dtype).requires_grad_() for x in (inputs.q, inputs.k, inputs.v))
    keep_mask = None if inputs.keep_mask is None else inputs.keep_mask[:, one]
    mask = case.mask.head(head if case.mask.num_heads > 1 else 0).dense()[0].to(case.device)
    attention: Callable[..., Any] = _plain_attention
    if dtype == torch.float64:
        attention = reference_attention
    o, lse = attention(
        q, k, v, mask, key_mask=inputs.key_mask, return_lse=True, keep_mask=keep_mask,
        dropout_p=case.dropout_p,
    )  # fmt: skip
    grad_o, grad_lse = inputs.grad_o[:, one].to(dtype), inputs.grad_lse[:, one]
    results = _with_gradients(o, lse, q, k, v, grad_o, grad_lse)
    return {name: value[:, 0] for name, value in results.items()}


def _largest_grad_p(case: Case, inputs: _Inputs, head: int) -> float:
    """The largest gradient of a probability, |dP| = |dO V^T| / (1 - p), of one head."""
    grad_p = inputs.grad_o[:, head].double() @ inputs.v[:, head].double().transpose(-1, -2)
    return grad_p.abs().max().item() / (1.0 - case.dropout_p)


def _plain_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    *,
    key_mask: torch.Tensor | None,
    return_lse: bool,
    keep_mask: torch.Tensor | None,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense attention as one writes it in PyTorch, every step in the inputs' dtype."""
    allowed = mask if key_mask is None else mask & key_mask[:, None, None, :]
    dead = ~allowed.any(dim=-1, keepdim=True)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~allowed, -math.inf)
    probabilities = scores.masked_fill(dead, 0.0).softmax(dim=-1).masked_fill(dead, 0.0)
    if keep_mask is not None:
        probabilities = probabilities * keep_mask / (1.0 - dropout_p)
    lse = scores.masked_fill(dead, 0.0).float().logsumexp(dim=-1)
    return probabilities @ v, lse.masked_fill(dead[..., 0], -math.inf)


def _with_gradients(
    o: torch.Tensor,
    lse: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grad_o: torch.Tensor,
    grad_lse: torch.Tensor,
) -> dict[str, torch.Tensor]:
    dq, dk, dv = torch.autograd.grad((o, lse), (q, k, v), (grad_o, grad_lse.to(lse.dtype)))
    return {"o": o.detach(), "lse": lse.detach(), "dq": dq, "dk": dk, "dv": dv}


def _worst(so_far: float, value: torch.Tensor, exact: torch.Tensor) -> float:
    """The larger of `so_far` and the largest difference; NaN wins, equal infinities agree."""
    value = value.to(exact.dtype)
    difference = torch.where(value == exact, 0.0, (value - exact).abs())
    worst = difference.max().item()
    return worst if math.isnan(worst) else max(so_far, worst)
