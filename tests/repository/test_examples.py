"""The scripts in examples/, with tiny settings."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from transformers import AutoModel, AutoModelForSequenceClassification

import sparsebert as sb
from tests import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script as if it were run, with the fresh model; MiniLM takes longer."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def script(name: str) -> ModuleType:
        monkeypatch.setattr(importlib.import_module("starting_points"), "_minilm", lambda: None)
        return importlib.import_module(name)

    yield script
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_classify_with_dam(load: Any, tmp_path: Path, capsys: Any) -> None:
    example = load("classify_with_dam")
    table = tmp_path / "mine.csv"
    rows = (EXAMPLES / "reviews.csv").read_text(encoding="utf-8").splitlines()[1:61]
    table.write_text("\n".join(["body,stars", *rows]) + "\n", encoding="utf-8")
    options = ["--csv", str(table), "--text-column", "body", "-o", str(tmp_path / "out")]
    few = ["--steps", "4", "--tune-steps", "2", "--max-length", "24"]
    accuracy = example.main([*options, "--label-column", "stars", *few])
    assert 0.0 <= accuracy <= 1.0
    assert "on 12 texts it has not seen" in capsys.readouterr().out

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    sb.load_masks(model, tmp_path / "out")
    mask = sb.AttentionMask.load(tmp_path / "out" / "sparsebert_masks.safetensors")
    assert mask.sparsity >= 0.85 and mask.dense()[..., 0].all()  # 90 %, [CLS] kept
    with pytest.raises(SystemExit, match="no column 'label'; there are: body, stars"):
        example.main([*options, *few])


def test_classify_reads_dataset_folders(load: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    example = load("classify_with_dam")
    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "label": [0, 1]})
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "rows")
    options = example.parse(["--dataset", str(tmp_path / "rows")])
    assert example.read(options) == [("one", "0"), ("two", "1")]


def test_sparsify_finetuned(load: Any, tmp_path: Path, capsys: Any) -> None:
    example = load("sparsify_finetuned")
    text = tmp_path / "mine.txt"
    text.write_text("Each token attends to what it needs, and to nothing else. " * 90)
    few = ["--steps", "4", "--tune-steps", "2", "--max-length", "16"]
    cosine = example.main(["--text", str(text), "-o", str(tmp_path / "out"), *few])
    assert "90." in capsys.readouterr().out.split("mask:")[1].splitlines()[0]
    model = AutoModel.from_pretrained(tmp_path / "out")
    sb.load_masks(model, tmp_path / "out")
    with torch.no_grad():
        assert model(torch.tensor([[2, 7, 3]])).last_hidden_state.isfinite().all()
    # It stays near the dense model, whose weights it began with.
    assert 0.5 < cosine <= 1.0 + 1e-6


def test_the_sample_is_what_its_script_writes(load: Any) -> None:
    import csv
    import random

    make = load("make_reviews")
    draws = random.Random(0)
    with (EXAMPLES / "reviews.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [make.review(draws) for _ in range(400)]
