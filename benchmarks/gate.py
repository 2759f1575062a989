"""No time without a right answer: results against the fp64 reference, before anything is timed.

The whole batch and all heads run; the first head of the first sample and the last head of the
last one are compared, which bounds the memory that fp64 takes. The error may be twice that of
dense PyTorch in the same dtype on the same inputs, plus one rounding step of the largest value in
that dtype, plus the rounding of a chain of fp32 operations as long as a row. dq and dk are sums of
differences dP - delta, which cancel, so there the largest value is at least that of such a term.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from benchmarks.cases import Case
from sparsebert import dropout
from sparsebert.masks import AttentionMask
from sparsebert.reference import reference_attention

WRONG = "WRONG:"  # begins the note of a result that is not timed
SEED = 20210714  # of the dropout draw
Tensors = tuple[torch.Tensor, ...]
Results = dict[str, torch.Tensor]


def eager_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    allowed: torch.Tensor,
    *,
    dropout_p: float = 0.0,
    factor: torch.Tensor | None = None,
) -> torch.Tensor:
    """Masked attention by its formula, in the inputs' dtype; `factor` is a given dropout draw."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    if factor is not None:
        weights = weights * factor
    elif dropout_p:
        weights = torch.nn.functional.dropout(weights, dropout_p)
    return weights @ v


def run(
    attention: Callable[..., torch.Tensor], qkv: Tensors, grad_o: torch.Tensor, *, trains: bool
) -> Results:
    """o and, in training, dq, dk and dv."""
    with torch.set_grad_enabled(trains):
        o = attention(*qkv)
    gradients = torch.autograd.grad(o, qkv, grad_o) if trains else ()
    names = ("dq", "dk", "dv") if trains else ()
    return {"o": o.detach(), **dict(zip(names, gradients, strict=True))}


class Gate:
    """What a case's results must be, made once from its inputs, for any number of contenders.

    Args:
        qkv: [B, H, N, D] each; with gradients if the case trains.
        key_mask: bool [B, N], True = a real token, or None.
    """

    def __init__(
        self,
        case: Case,
        mask: AttentionMask,
        qkv: Tensors,
        grad_o: torch.Tensor,
        key_mask: torch.Tensor | None,
    ) -> None:
        self.case, self.qkv, self.grad_o = case, qkv, grad_o
        torch.manual_seed(SEED)
        seed = dropout.draw_seed(grad_o.device) if case.dropout else None
        self._exact: list[tuple[int, int, Results, dict[str, float]]] = []
        for batch, head in {(0, 0), (case.batch - 1, case.heads - 1)}:
            of_head = mask.head(head if mask.num_heads > 1 else 0).dense()[0].to(grad_o.device)
            keys = None if key_mask is None else key_mask[batch : batch + 1]
            kept = None if seed is None else _keep(case, seed, batch, head)
            one = tuple(x.detach()[batch, head][None, None] for x in (*qkv, grad_o))
            exact = self._exact_results(one, of_head, keys, kept)
            dense = self._dense_results(one, of_head, keys, kept)
            self._exact.append((batch, head, exact, self._budgets(one, exact, dense)))

    def _exact_results(
        self,
        one: Tensors,
        allowed: torch.Tensor,
        keys: torch.Tensor | None,
        kept: torch.Tensor | None,
    ) -> Results:
        def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            result = reference_attention(
                q, k, v, allowed, key_mask=keys, keep_mask=kept, dropout_p=self.case.dropout
            )
            assert isinstance(result, torch.Tensor)
            return result

        *qkv, grad = (x.double() for x in one)
        return run(reference, self._leaves(qkv), grad, trains=self.case.trains)

    def _dense_results(
        self,
        one: Tensors,
        allowed: torch.Tensor,
        keys: torch.Tensor | None,
        kept: torch.Tensor | None,
    ) -> Results:
        """Dense PyTorch in the case's dtype: SDPA or, for a given dropout draw, the formula."""
        allowed = allowed if keys is None else allowed & keys[:, None, None, :]
        dead = ~allowed.any(-1, keepdim=True)
        allowed = allowed | dead

        def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            if kept is None:
                o = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
            else:
                factor = (kept / (1.0 - self.case.dropout)).to(q.dtype)
                o = eager_attention(q, k, v, allowed, factor=factor)
            return o.masked_fill(dead, 0.0)

        return run(dense, self._leaves(one[:3]), one[3], trains=self.case.trains)

    def _leaves(self, qkv: Tensors | list[torch.Tensor]) -> Tensors:
        return tuple(x.detach().requires_grad_(self.case.trains) for x in qkv)

    def _budgets(self, one: Tensors, exact: Results, dense: Results) -> dict[str, float]:
        """The largest error allowed, by result."""
        cancels: dict[str, float] = {}
        if self.case.trains:
            delta = (one[3].double() * exact["o"]).sum(-1).abs().max().item()
            scale = self.case.dim**-0.5
            cancels["dq"] = scale * delta * one[1].abs().max().item()
            cancels["dk"] = scale * delta * one[0].abs().max().item()
        rounding = (
            torch.finfo(one[0].dtype).eps + self.case.length * torch.finfo(torch.float32).eps
        )
        budgets = {}
        for name, expected in exact.items():
            largest = max(expected.abs().max().item(), cancels.get(name, 0.0))
            budgets[name] = 2.0 * _error(dense[name], expected) + rounding * largest
        return budgets

    def refusal(self, attention: Callable[..., torch.Tensor]) -> str:
        """Run a contender; why its results must not be timed, "" if they are right."""
        torch.manual_seed(SEED)  # so that sparse_attention drops what the reference drops
        found = run(attention, self.qkv, self.grad_o, trains=self.case.trains)
        for batch, head, exact, budgets in self._exact:
            for name, expected in exact.items():
                error = _error(found[name][batch, head], expected[0, 0])
                if not error <= budgets[name]:
                    return f"{WRONG} {name} is off by {error:.1e}, allowed {budgets[name]:.1e}"
        return ""


def _error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest absolute difference; NaN anywhere counts as infinite."""
    return (result.double() - exact).abs().nan_to_num(nan=math.inf).max().item()


def _keep(case: Case, seed: torch.Tensor, batch: int, head: int) -> torch.Tensor:
    """The dropout draw of one batch and head: bool [1, 1, N, N]."""
    keys = dropout.head_keys(seed, case.batch, case.heads)[batch, head][None, None, None, None]
    query = torch.arange(case.length, device=seed.device)[:, None]
    key = torch.arange(case.length, device=seed.device)[None, :]
    return dropout.keep_bits(keys, query, key, dropout.drop_threshold(case.dropout))
