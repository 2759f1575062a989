"""A model's masks on disk: save_masks and load_masks; what they belong to is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

import sparsebert as sb
from tests.huggingface.models import LENGTH, MASK_LENGTH, build, random_masks, run


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


def test_masks_are_saved_beside_the_model(tmp_path: Path) -> None:
    model = build("modernbert")
    masks = sb.AttentionMask.from_dense(random_masks(model), provenance={"from": "a test"})
    sb.sparsify(model, masks, backend="dense")
    sb.save_masks(model, tmp_path)
    model.save_pretrained(tmp_path)
    assert {"sparsebert_config.json", "sparsebert_masks.safetensors"} <= {
        file.name for file in tmp_path.iterdir()
    }
    assert "sparsebert" not in (tmp_path / "config.json").read_text()
    loaded = transformers.ModernBertForMaskedLM.from_pretrained(tmp_path).eval()
    assert loaded.config._attn_implementation == "sdpa"
    sb.load_masks(loaded, tmp_path)
    assert run(loaded, "modernbert").equal(run(model, "modernbert"))
    layer = loaded.model.layers[0].attn.sparsebert
    assert layer.masks == masks and layer.masks.provenance == {"from": "a test"}
    assert layer.backend == "dense"


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    bert = sb.sparsify(build("bert"), sb.patterns.star(MASK_LENGTH))
    sb.save_masks(bert, tmp_path / "bert")
    with pytest.raises(ValueError, match=r"for a bert model with 2 .* this is a electra model"):
        sb.load_masks(build("electra"), tmp_path / "bert")
    with pytest.raises(FileNotFoundError):
        sb.load_masks(bert, tmp_path)

    other = tmp_path / "other"
    sb.save_masks(sb.sparsify(build("bert"), sb.patterns.dense(MASK_LENGTH)), other)
    masks_file = other / "sparsebert_masks.safetensors"
    original = masks_file.read_bytes()
    masks_file.write_bytes((tmp_path / "bert" / "sparsebert_masks.safetensors").read_bytes())
    with pytest.raises(
        ValueError, match=r"is not the file that sparsebert_config\.json describes"
    ):
        sb.load_masks(bert, other)
    masks_file.write_bytes(original[:-1])
    with pytest.raises(ValueError, match="truncated"):
        sb.load_masks(bert, other)
    masks_file.write_bytes(original)

    note_file = other / "sparsebert_config.json"
    note = json.loads(note_file.read_text())
    for change, message in (
        ({"format_version": 2}, "has format version 2, and this SparseBERT reads up to 1"),
        ({"format_version": None}, "has no valid 'format_version'"),
        ({"backend": 3}, "has no valid 'backend'"),
        ({"backend": "quantum"}, "unknown backend 'quantum'"),
    ):
        note_file.write_text(json.dumps({**note, **change}))
        with pytest.raises(ValueError, match=message):
            sb.load_masks(bert, other)
    for text in ("{", "[]"):
        note_file.write_text(text)
        with pytest.raises(ValueError, match=r"sparsebert_config\.json"):
            sb.load_masks(bert, other)
    note_file.write_text(json.dumps(note))
    sb.load_masks(bert, other)


def test_load_masks_says_what_it_expects(tmp_path: Path) -> None:
    model = build("bert")
    with pytest.raises(FileNotFoundError, match=r"'user/repo' on this machine.*snapshot_download"):
        sb.load_masks(model, "user/repo")
    with pytest.raises(FileNotFoundError, match=r"no sparsebert_config\.json in .*save_masks"):
        sb.load_masks(model, tmp_path)
    sb.save_masks(sb.sparsify(model, sb.patterns.star(LENGTH)), tmp_path)
    (tmp_path / "sparsebert_masks.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no sparsebert_masks\.safetensors in"):
        sb.load_masks(model, tmp_path)
