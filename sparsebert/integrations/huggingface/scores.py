"""How much each attention position matters to a dense model, measured on data.

>>> import torch
>>> from transformers import BertConfig, BertForMaskedLM
>>> from sparsebert.integrations.huggingface.scores import position_scores
>>> size = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, vocab_size=100)
>>> model = BertForMaskedLM(BertConfig(**size))
>>> ids = torch.randint(100, (8, 16))
>>> scores = position_scores(model, [{"input_ids": ids, "labels": ids}], kind="drop")
>>> scores.shape
torch.Size([2, 4, 16, 16])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sparsebert.integrations.huggingface.attached import sparse_modules
from sparsebert.integrations.huggingface.discovery import find_self_attention

KINDS = ("attention", "attention_gradient", "drop")

_NAME = "position_scores"
_LEFT = 0.05
"""What is left of a row at least when a position is dropped, where its share is nearly all."""

Loss = Callable[[Any, Mapping[str, Any]], torch.Tensor]


def position_scores(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    kind: str = "drop",
    loss: Loss | None = None,
    seq_len: int | None = None,
) -> torch.Tensor:
    """Scores of the attention positions of a dense model, for masks that keep the highest.

    Args:
        model: a transformers encoder with its own attention; run in evaluation mode, in place
            and unchanged afterwards.
        batches: what the model takes, on its device: "input_ids" [B, N] and so on, with
            "attention_mask" [B, N] where there is padding at the right.
        kind: with A the attention probabilities and dA the loss's gradient with respect to them,

            * "attention": mean of A;
            * "attention_gradient": mean of abs(A dA);
            * "drop": mean of (A / (1 - A) * (dA - sum over the row of A dA)) ** 2, the squared
              change of the loss, to first order in the attention's output, if this position
              alone were dropped and its row's other positions took over its share.
        loss: of (the model's output, the batch), a scalar. None: the model's own loss, if the
            batches hold labels; else each example's mean hidden state, of length 1, projected on
            a random direction, which needs no labels: what matters is then what changes the
            example's embedding. Only a constant factor depends on whether a loss is a sum or a
            mean over the batch, if all batches are of one size.
        seq_len: N of the scores; None: that of the longest batch.

    Means are over the examples in which both tokens are real; a position that is in none scores
    0. [L, H, N, N], fp32, on the CPU.

    Raises:
        TypeError: not a transformers model.
        ValueError: an unknown kind, no batch, batches longer than seq_len, a sparse model, or one
            that does not return its attention.
    """
    if kind not in KINDS:
        raise ValueError(f"{_NAME}: kind must be one of {KINDS}, got {kind!r}")
    attention = find_self_attention(_NAME, model)
    if sparse_modules(model):
        raise ValueError(
            f"{_NAME}: {type(model).__name__} is sparse, and scores are of dense attention; call "
            "densify(model) first"
        )
    wanted = _Loss() if loss is None else loss
    owner, was_training = attention.owner, model.training
    implementation = owner.config._attn_implementation
    sums: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.eval()
    owner.set_attn_implementation("eager")  # the one that returns its probabilities
    try:
        for batch in batches:
            sums.append(_scored(model, batch, kind, wanted))
    finally:
        owner.set_attn_implementation(implementation)
        model.train(was_training)
    if not sums:
        raise ValueError(f"{_NAME}: batches is empty; give some data")
    longest = max(total.shape[-1] for total, _ in sums)
    n = longest if seq_len is None else seq_len
    if longest > n:
        raise ValueError(
            f"{_NAME}: a batch of {longest} tokens for scores of seq_len={n}; truncate the batches"
        )
    layers, heads = sums[0][0].shape[:2]
    total, seen = torch.zeros(layers, heads, n, n), torch.zeros(n, n)
    for scores, count in sums:
        m = scores.shape[-1]
        total[..., :m, :m] += scores
        seen[:m, :m] += count
    return total / seen.clamp(min=1.0)


def _scored(
    model: nn.Module, batch: Mapping[str, Any], kind: str, loss: Loss
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over a batch of its scores [L, H, n, n], and of its pairs of real tokens [n, n]."""
    with torch.set_grad_enabled(kind != "attention"):
        output = model(**batch, output_attentions=True)
    found = output.attentions
    if not found or any(each is None for each in found):
        raise ValueError(
            f"{_NAME}: {type(model).__name__} returns no attention with output_attentions=True"
        )
    gradients: Any = [None] * len(found)
    if kind != "attention":
        gradients = torch.autograd.grad(loss(output, batch), found)
    length = found[0].shape[-1]
    real = batch.get("attention_mask")
    if real is None:
        real = found[0].new_ones(found[0].shape[0], length)
    pairs = (real.bool()[:, :, None] & real.bool()[:, None, :]).to(torch.float32)  # [B, n, n]
    scores = [
        torch.einsum("bhij,bij->hij", _score(a.detach().float(), g, kind), pairs)
        for a, g in zip(found, gradients, strict=True)
    ]
    return torch.stack(scores).cpu(), pairs.sum(0).cpu()


def _score(a: torch.Tensor, gradient: torch.Tensor | None, kind: str) -> torch.Tensor:
    """The score of each position in each example, [B, H, n, n]."""
    if gradient is None:
        return a
    gradient = gradient.float()
    if kind == "attention_gradient":
        return (a * gradient).abs()
    change = gradient - (a * gradient).sum(-1, keepdim=True)
    return (a / (1.0 - a).clamp(min=_LEFT) * change).square()


class _Loss:
    """The model's own loss, or a random projection of each example's mean hidden state."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, output: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        own: torch.Tensor | None = getattr(output, "loss", None)
        if own is not None:
            return own
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None:
            raise ValueError(
                f"{_NAME}: the output has neither a loss nor a last_hidden_state; put labels into "
                "the batches, pass the encoder alone (model.base_model), or give loss"
            )
        real = batch.get("attention_mask")
        real = hidden.new_ones(hidden.shape[:2]) if real is None else real.to(hidden.dtype)
        mean = torch.nn.functional.normalize((hidden * real[..., None]).sum(1), dim=-1)
        direction = torch.randn(mean.shape, generator=self._generator).to(mean)
        return (mean * direction).sum()
