"""Compare `sparse_attention` with the fp64 reference, within bounds that are derived, not tuned.

Inputs are drawn, rounded to the dtype, and only then promoted to fp64 for the reference, so that
the rounding of the inputs is in no error. `sparsebert.testing` has the bounds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from tqdm import tqdm

from sparsebert import dropout
from sparsebert.api import sparse_attention
from sparsebert.backends import registry
from sparsebert.masks import AttentionMask
from sparsebert.plan import compile_plan
from sparsebert.testing import Arithmetic, Outcome, expected_attention

QUANTITIES = ("o", "lse", "dq", "dk", "dv")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One comparison; see the options of ``sparsebert verify``.

    Raises:
        ValueError: there is no such backend.
    """

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

    def __post_init__(self) -> None:
        registry.check_name("verify", self.backend)

    def __str__(self) -> str:
        return (
            f"B={self.batch} H={self.heads} N={self.mask.q_len} M={self.mask.kv_len} "
            f"D={self.head_dim} {str(self.dtype).removeprefix('torch.')} on {self.device}, "
            f"backend {self.backend}, key padding {self.key_padding:g}, "
            f"dropout {self.dropout_p:g}"
        )


@dataclasses.dataclass(frozen=True)
class _Inputs:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    grad_o: torch.Tensor
    grad_lse: torch.Tensor
    key_mask: torch.Tensor | None
    keep_mask: torch.Tensor | None


def verify(comparison: Comparison) -> list[Outcome]:
    """The outcome for each of `QUANTITIES`: output, log-sum-exp, and the three gradients.

    Raises:
        TypeError, ValueError: `sparse_attention` refuses the comparison.
    """
    inputs = _draw(comparison)
    ours, passes_on = _run_sparse(comparison, inputs)
    worst: dict[str, Outcome] = {}
    # A head at a time: the fp64 scores of all heads at once may not fit into memory.
    for head in tqdm(range(comparison.heads), desc="heads", leave=False, disable=None):
        one = slice(head, head + 1)
        expected = expected_attention(
            inputs.q[:, one],
            inputs.k[:, one],
            inputs.v[:, one],
            comparison.mask.head(head if comparison.mask.num_heads > 1 else 0),
            key_mask=inputs.key_mask,
            keep_mask=None if inputs.keep_mask is None else inputs.keep_mask[:, one],
            dropout_p=comparison.dropout_p,
            grad_o=inputs.grad_o[:, one],
            grad_lse=inputs.grad_lse[:, one],
            arithmetic=Arithmetic.of(inputs.q, passes_on=passes_on),
        )
        for outcome in expected.outcomes({name: x[:, one] for name, x in ours.items()}):
            if outcome.name not in worst or outcome.ratio > worst[outcome.name].ratio:
                worst[outcome.name] = outcome
    return [worst[name] for name in QUANTITIES]


def in_words(outcomes: Sequence[Outcome]) -> str:
    """The largest errors and the share of its bound that one reaches, a quantity a line."""
    lines = [f"  {'quantity':<9}{'max error':>11}{'of its bound':>14}"]
    for outcome in outcomes:
        verdict = "ok" if outcome.passed else "FAILED"
        lines.append(f"  {outcome.name:<9}{outcome.error:>11.2e}{outcome.ratio:>14.3g}  {verdict}")
    return "\n".join(lines)


def usable_device(name: str) -> torch.device:
    """The device of that name, on which memory can be had.

    Raises:
        ValueError: it cannot be used here; the message says why.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _draw(comparison: Comparison) -> _Inputs:
    """Random inputs on the comparison's device; hidden keys and values are zero here."""
    mask, batch, heads, dim = (
        comparison.mask,
        comparison.batch,
        comparison.heads,
        comparison.head_dim,
    )
    generator = torch.Generator().manual_seed(comparison.seed)

    def normal(*shape: int) -> torch.Tensor:
        drawn = torch.randn(*shape, generator=generator)
        return drawn.to(device=comparison.device, dtype=comparison.dtype)

    q, grad_o = normal(batch, heads, mask.q_len, dim), normal(batch, heads, mask.q_len, dim)
    k, v = normal(batch, heads, mask.kv_len, dim), normal(batch, heads, mask.kv_len, dim)
    grad_lse = normal(batch, heads, mask.q_len).float()
    key_mask = keep_mask = None
    if comparison.key_padding:
        key_mask = torch.rand(batch, mask.kv_len, generator=generator) >= comparison.key_padding
        key_mask = key_mask.to(comparison.device)
        k, v = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v))
    if comparison.dropout_p:
        torch.manual_seed(comparison.seed)
        keep_mask = dropout.keep_mask(
            batch, heads, mask.q_len, mask.kv_len, comparison.dropout_p, device=comparison.device
        )
    return _Inputs(q, k, v, grad_o, grad_lse, key_mask, keep_mask)


def _run_sparse(comparison: Comparison, inputs: _Inputs) -> tuple[dict[str, torch.Tensor], bool]:
    """What we compute, each [B, H, ...], and whether o was rounded on the way.

    Hidden keys and values hold NaN, which must not leak.
    """
    k, v = inputs.k, inputs.v
    if inputs.key_mask is not None:
        k, v = (x.masked_fill(~inputs.key_mask[:, None, :, None], math.nan) for x in (k, v))
    q, k, v = (x.clone().requires_grad_() for x in (inputs.q, k, v))
    target = "cpu" if comparison.device.type == "cpu" else None
    plan = compile_plan(comparison.mask, target=target, head_dim=comparison.head_dim).to(
        comparison.device
    )
    torch.manual_seed(comparison.seed)  # the draw that keep_mask has seen
    o, lse = sparse_attention(
        q, k, v, plan, key_mask=inputs.key_mask, dropout_p=comparison.dropout_p, return_lse=True,
        backend=comparison.backend,
    )  # fmt: skip
    gradients = torch.autograd.grad((o, lse), (q, k, v), (inputs.grad_o, inputs.grad_lse))
    passes_on = plan.passes_on
    return dict(zip(QUANTITIES, (o, lse, *gradients), strict=True)), passes_on
