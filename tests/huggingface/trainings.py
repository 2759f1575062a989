"""Trainings of a tiny classifier with a DAM, and states of models to compare."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    TrainingArguments,
)

import sparsebert as sb

VOCAB, N, H, BATCH, STEPS = 12, 10, 2, 8, 6
MASK_LR, LR = 0.05, 1e-3
EPS64 = torch.finfo(torch.float64).eps


def build(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=H,
        intermediate_size=16,
        max_position_embeddings=N,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.3,  # tiny models say nothing at 0.02
    )
    return BertForSequenceClassification(config).to(dtype)


def build_dam(dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    torch.manual_seed(1)
    return sb.DifferentiableAttentionMask(1, H, N, seed=3, dtype=dtype, **settings)


def data(count: int = BATCH * STEPS) -> list[dict[str, torch.Tensor]]:
    """Is the last token the first one's double?"""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, VOCAB, (count, N), generator=generator)
    labels = (ids[:, 0] > ids[:, -1]).long()
    return [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LR,
        "weight_decay": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
    }
    return TrainingArguments(**{**settings, **changes})


def trainer_of(folder: Path, model: Any = None, **changes: Any) -> sb.DAMTrainer:
    """A DAMTrainer of a tiny model; `changes` are its own arguments or transformers' ones."""
    own = {k: changes.pop(k) for k in list(changes) if k not in TrainingArguments.__annotations__}
    settings: dict[str, Any] = {
        "model": build() if model is None else model,
        "args": arguments(folder, **changes),
        "train_dataset": data(),
        "dam": build_dam(),
        "mask_learning_rate": MASK_LR,
    }
    return sb.DAMTrainer(**{**settings, **own})


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal up to the order in which fp64 gradients are summed.

    An Adam step divides the gradient by its own size plus 1e-8: an error e of a gradient moves a
    parameter by at most lr * e / 1e-8. With gradients of a few units summed over fewer than 1000
    terms, e is below 1000 * 2.2e-16, in each of a few steps.
    """
    budget = STEPS * MASK_LR * 1000 * EPS64 / 1e-8
    assert budget < 1e-4 * MASK_LR * STEPS  # or it would excuse a wrong step
    assert one.keys() == other.keys()
    far = {name: (one[name] - other[name]).abs().max().item() for name in one}
    assert {name: d for name, d in far.items() if not d <= budget} == {}


class Spoilt(BertForSequenceClassification):
    """Its third forward pass in training goes wrong."""

    passes, wrong = 0, "loss"

    def forward(self, input_ids: Any = None, labels: Any = None) -> Any:
        out = super().forward(input_ids, labels=labels)
        self.passes += self.training
        if self.passes == 3 and self.training:
            if self.wrong == "loss":
                out.loss = out.loss * math.nan
            elif self.wrong == "gradient":  # of a finite loss
                out.loss = out.loss + (out.logits.sum() * 0.0).abs().sqrt()
        return out


def spoilt(wrong: str) -> Spoilt:
    model = Spoilt(build().config).double()
    model.load_state_dict(build().state_dict())
    model.wrong = wrong
    return model


def distributed(folder: Path, batch: int) -> sb.DAMTrainer:
    model = build()
    if int(os.environ.get("RANK", "0")) == 1:  # another teacher, too
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
    trainer = trainer_of(
        folder,
        model=model,
        distillation=3.0,
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",
    )
    if trainer.args.process_index == 1:  # what the first process has must win
        with torch.no_grad():
            trainer.dam.alpha.add_(1.0)
        trainer.dam.noise_seed.fill_(0)
        trainer.dam.resume_stream()
        torch.rand(17)
    trainer.train()
    return trainer
