"""No time without a right answer: results against the fp64 reference, before anything is timed.

The whole batch and all heads run; the first head of the first sample and the last head of the
last one are compared, which bounds the memory that fp64 takes. `sparsebert.testing` says how large
an error may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from benchmarks.attention.cases import Case
from sparsebert import dropout
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from sparsebert.testing import Arithmetic, Expected, expected_attention

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
) -> torch.Tensor:
    """Masked attention by its formula, in the inputs' dtype."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    if dropout_p:
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


class ResultCheck:
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
        self.case, self.mask, self.key_mask = case, mask, key_mask
        self.qkv, self.grad_o = qkv, grad_o
        torch.manual_seed(SEED)
        self._seed = dropout.draw_seed(grad_o.device) if case.dropout else None
        self._expected: dict[Arithmetic, list[tuple[int, int, Expected]]] = {}

    def refusal(
        self,
        attention: Callable[..., torch.Tensor],
        *,
        stores_scores: bool = False,
        plan: AttentionPlan | None = None,
    ) -> str:
        """Run a contender; why its results must not be timed, "" if they are right.

        Args:
            stores_scores: it is written out in torch operations, see `Arithmetic`.
            plan: what it runs, if it is this project.
        """
        torch.manual_seed(SEED)  # so that sparse_attention drops what the reference drops
        found = run(attention, self.qkv, self.grad_o, trains=self.case.trains)
        passes_on = plan is not None and plan.passes_on
        arithmetic = Arithmetic.of(self.qkv[0], stores_scores=stores_scores, passes_on=passes_on)
        for batch, head, expected in self._compared(arithmetic):
            results = {name: x[batch, head][None, None] for name, x in found.items()}
            for outcome in expected.outcomes(results):
                if not outcome.passed:
                    return (
                        f"{WRONG} {outcome.name} is off by up to {outcome.error:.1e}, "
                        f"{outcome.ratio:.3g} times the bound of {outcome.budget:.1e}"
                    )
        return ""

    def _compared(self, arithmetic: Arithmetic) -> list[tuple[int, int, Expected]]:
        """Sample, head, and what must come of them; made at their first use."""
        if arithmetic not in self._expected:
            last = (self.case.batch - 1, self.case.heads - 1)
            self._expected[arithmetic] = [
                (batch, head, self._expect(batch, head, arithmetic))
                for batch, head in sorted({(0, 0), last})
            ]
        return self._expected[arithmetic]

    def _expect(self, batch: int, head: int, arithmetic: Arithmetic) -> Expected:
        q, k, v, grad_o = (x.detach()[batch, head][None, None] for x in (*self.qkv, self.grad_o))
        return expected_attention(
            q,
            k,
            v,
            self.mask.head(head if self.mask.num_heads > 1 else 0),
            key_mask=None if self.key_mask is None else self.key_mask[batch : batch + 1],
            keep_mask=None if self._seed is None else _keep(self.case, self._seed, batch, head),
            dropout_p=self.case.dropout,
            grad_o=grad_o if self.case.trains else None,
            arithmetic=arithmetic,
        )


def _keep(case: Case, seed: torch.Tensor, batch: int, head: int) -> torch.Tensor:
    """The dropout draw of one batch and head: bool [1, 1, N, N]."""
    keys = dropout.head_keys(seed, case.batch, case.heads)[batch, head][None, None, None, None]
    query = torch.arange(case.length, device=seed.device)[:, None]
    key = torch.arange(case.length, device=seed.device)[None, :]
    return dropout.keep_bits(keys, query, key, dropout.drop_threshold(case.dropout))
