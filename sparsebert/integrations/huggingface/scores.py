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

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from sparsebert.dam.mask import DifferentiableAttentionMask
from sparsebert.integrations.huggingface.attached import sparse_modules
from sparsebert.integrations.huggingface.discovery import find_self_attention
from sparsebert.support import checks

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
        ValueError: an unknown kind, no batch, batches longer than seq_len or with padding at the
            left, a model that is sparse, has a DAM or does not return its attention, or a loss
            that does not depend on all of it.
    """
    if kind not in KINDS:
        raise ValueError(f"{_NAME}: kind must be one of {KINDS}, got {kind!r}")
    if seq_len is not None:
        seq_len = checks.integer(_NAME, "seq_len", seq_len, 1)
    attention = find_self_attention(_NAME, model)
    if sparse_modules(model):
        raise ValueError(
            f"{_NAME}: {type(model).__name__} is sparse, and scores are of dense attention; call "
            "densify(model) first"
        )
    if any(isinstance(module, DifferentiableAttentionMask) for module in model.modules()):
        raise ValueError(
            f"{_NAME}: {type(model).__name__} has a DAM, and scores are of dense attention; call "
            "detach_dam(model) first, or score the positions before attach_dam"
        )
    wanted = _Loss() if loss is None else loss
    total: torch.Tensor | None = None
    seen = torch.zeros(0, 0)
    with _run_dense(model, attention.owner, gradients=kind != "attention"):
        for batch in batches:
            scores, count = _scored(model, batch, kind, wanted)
            m = len(count)
            if seq_len is not None and m > seq_len:
                raise ValueError(
                    f"{_NAME}: a batch of {m} tokens for scores of seq_len={seq_len}; truncate "
                    "the batches"
                )
            if total is None:
                total = scores.new_zeros(*scores.shape[:2], 0, 0)
            more = max(m, seq_len or 0) - len(seen)
            if more > 0:
                total, seen = (functional.pad(x, (0, more, 0, more)) for x in (total, seen))
            total[..., :m, :m] += scores
            seen[:m, :m] += count
    if total is None:
        raise ValueError(f"{_NAME}: batches is empty; give some data")
    return total / seen.clamp(min=1.0)


@contextlib.contextmanager
def _run_dense(model: nn.Module, owner: PreTrainedModel, gradients: bool) -> Iterator[None]:
    """Evaluation mode, with attention that returns its probabilities and can be differentiated."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    implementation = owner.config._attn_implementation
    try:
        model.eval()
        owner.set_attn_implementation("eager")
        for parameter, _ in trained if gradients else ():
            # Of a frozen model autograd would record nothing.
            parameter.requires_grad_(parameter.is_floating_point())
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
        owner.set_attn_implementation(implementation)
        for module, mode in modes:
            module.training = mode


def _scored(
    model: nn.Module, batch: Mapping[str, Any], kind: str, loss: Loss
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over a batch of its scores [L, H, n, n], and of its pairs of real tokens [n, n]."""
    output = model(**{**batch, "output_attentions": True})
    found = getattr(output, "attentions", None)
    if not found or any(each is None for each in found):
        raise ValueError(
            f"{_NAME}: {type(model).__name__} returns no attention with output_attentions=True; "
            "of an encoder-decoder pass the encoder alone (model.get_encoder())"
        )
    gradients: Any = [None] * len(found)
    if kind != "attention":
        value = loss(output, batch)
        gradients = torch.autograd.grad(value, found, allow_unused=True)
        if any(each is None for each in gradients):
            raise ValueError(
                f"{_NAME}: the loss does not depend on the attention that layer "
                f"{[each is None for each in gradients].index(True)} returns; give a loss that "
                "depends on all layers, or kind='attention'"
            )
    real = _real_tokens(batch, found[0])
    pairs = real[:, :, None] & real[:, None, :]  # [B, n, n]
    scores = [
        # Chosen, not multiplied: padding may hold NaN.
        torch.where(pairs[:, None], _score(a.detach().float(), g, kind), 0.0).sum(0)
        for a, g in zip(found, gradients, strict=True)
    ]
    return torch.stack(scores).cpu(), pairs.sum(0).float().cpu()


def _real_tokens(batch: Mapping[str, Any], attention: torch.Tensor) -> torch.Tensor:
    """bool [B, n]: which tokens are real."""
    shape = attention.shape[0], attention.shape[-1]
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=attention.device)
    if tuple(mask.shape) != shape:
        raise ValueError(
            f"{_NAME}: attention_mask is {list(mask.shape)}, but the model attends to "
            f"{shape[1]} tokens of {shape[0]} examples; it must be [B, N] = {list(shape)}"
        )
    real: torch.Tensor = mask.bool().to(attention.device)
    if bool((~real[:, 0] & real.any(1)).any()):
        raise ValueError(
            f"{_NAME}: an example begins with padding, and position 0 of a mask is its first real "
            "token; pad at the right"
        )
    return real


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
        if real is not None:
            hidden = hidden.masked_fill(~real.bool()[..., None], 0.0)
        mean = functional.normalize(hidden.sum(1), dim=-1)
        direction = torch.randn(mean.shape, generator=self._generator).to(mean)
        return (mean * direction).sum()
