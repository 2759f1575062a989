"""A model's masks on disk: what they belong to is checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

import sparsebert as sb


def a_bert(layers: int = 2) -> transformers.BertModel:
    return transformers.BertModel(
        transformers.BertConfig(
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=20,
        )
    )


def test_a_model_of_other_depth_is_refused(tmp_path: Path) -> None:
    """One mask for all layers would fit any depth, but was not learned for it."""
    sb.save_masks(sb.sparsify(a_bert(), sb.patterns.star(32)), tmp_path)
    with pytest.raises(ValueError, match=r"with 2 attention modules, but this .* with 3;"):
        sb.load_masks(a_bert(layers=3), tmp_path)
    sb.load_masks(a_bert(), tmp_path)
