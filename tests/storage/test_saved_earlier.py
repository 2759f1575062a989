"""Files that an earlier version wrote can still be read, and mean what they meant."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertModel

import sparsebert as sb
from sparsebert import patterns
from sparsebert.integrations.huggingface.dam import attached
from sparsebert.integrations.huggingface.dam_files import DAM_FILE, load_dam
from sparsebert.integrations.huggingface.files import CONFIG_FILE, MASKS_FILE
from tests.storage import saved_earlier

STACKED = sb.AttentionMask.stack_layers(
    [
        sb.AttentionMask.stack_heads([patterns.star(12), patterns.sliding_window(12, 2)]),
        sb.AttentionMask.stack_heads(
            [patterns.random(12, 0.3, seed=5), patterns.neighborhood_2d(3, 4, 3)]
        ),
    ]
)


def a_bert() -> BertModel:
    size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 10}
    return BertModel(BertConfig(num_hidden_layers=2, **size))


def test_masks(tmp_path: Path) -> None:
    path = tmp_path / "mask"
    path.write_bytes(saved_earlier.MASK)
    mask = sb.AttentionMask.load(path)
    assert mask == STACKED and mask.provenance == STACKED.provenance
    STACKED.save(path)
    assert path.read_bytes() == saved_earlier.MASK  # the format has not changed
    path.write_bytes(saved_earlier.ODD_MASK)
    mask = sb.AttentionMask.load(path)
    assert mask.shape == (1, 3, 5, 11)
    assert mask.fingerprint.startswith("1248fd941b9f799e917cba3a3ef6af2f")
    assert mask.provenance == {
        "note": "Grüße ☃",
        "pattern": "mine",
        "steps": [1, None, True, 0.1],
    }


def test_plans(tmp_path: Path) -> None:
    path, mask = tmp_path / "plan", patterns.star(24)
    path.write_bytes(saved_earlier.PLAN)
    plan = sb.AttentionPlan.load(path, mask)
    assert torch.equal(plan.dense(), mask.dense()[0])
    assert (plan.target, plan.objective) == ("cpu", "area")


def test_dams(tmp_path: Path) -> None:
    """They had no sums."""
    (tmp_path / DAM_FILE).write_bytes(saved_earlier.DAM)
    found = attached(load_dam(a_bert(), tmp_path))
    assert found.gate == "softmax" and found.dam.structure == "toeplitz"
    # There was no other way when it was written.
    assert (found.dam.sampling, found.dam.density, found.dam.scope) == ("gumbel", 1.0, "head")
    state = found.dam.state_dict()
    assert (int(state["noise_seed"]), int(state["draws"]), float(state["temperature"])) == (
        7,
        1,
        1,
    )
    assert state["alpha"].shape == (1, 2, 8) and 0 < state["alpha"].abs().max() < 0.01


def test_folders_of_masks(tmp_path: Path) -> None:
    (tmp_path / MASKS_FILE).write_bytes(saved_earlier.FOLDER_MASKS)
    (tmp_path / CONFIG_FILE).write_bytes(saved_earlier.FOLDER_NOTE)
    model = sb.load_masks(a_bert(), tmp_path)
    layers = [layer.attention.self.sparsebert for layer in model.encoder.layer]
    assert [layer.masks for layer in layers] == [patterns.star(12)] * 2
    assert {layer.backend for layer in layers} == {"torch"}
