"""The models that ``sparsebert learn`` trains: a fresh one, one from a folder, the planted one."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from sparsebert.learn.planted import PlantedTask
from sparsebert.learn.planted_model import planted_model
from sparsebert.learn.settings import PLANTED, Settings


def new_model(settings: Settings, tokenizer: Any, planted: PlantedTask | None) -> Any:
    """The model before any training of this run; the same for the same seed."""
    torch.manual_seed(settings.seed)
    if planted is not None:
        return planted_model(planted)
    if settings.model is not None:
        return AutoModelForMaskedLM.from_pretrained(settings.model)
    # Rotary positions: a model of this size that has to learn its positions does not get beyond
    # the tokens' frequencies in so few steps, and then no mask matters to it.
    options: dict[str, Any] = {"global_attn_every_n_layers": 1}  # no windows of its own
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=2 * settings.hidden_size,
        max_position_embeddings=settings.seq_len,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        # Keeps the scores of so narrow a model from all being alike to begin with.
        initializer_range=settings.hidden_size**-0.5,
        **options,
    )
    return ModernBertForMaskedLM(config)


def trained_model(settings: Settings, folder: str | os.PathLike[str]) -> Any:
    """A model of this run that was saved to `folder`."""
    torch.manual_seed(settings.seed)
    kind = AutoModelForTokenClassification if settings.task == PLANTED else AutoModelForMaskedLM
    return kind.from_pretrained(os.fspath(folder))
