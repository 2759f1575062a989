"""The experiment on learned masks: its committed report, and a tiny run of the whole."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

import sparsebert as sb
from benchmarks.harness.origin import RESULTS
from benchmarks.learned_masks import experiment, protocol
from benchmarks.learned_masks.__main__ import gather
from benchmarks.learned_masks.learned_masks_report import write_report
from sparsebert.dam.importance import GROUPS
from sparsebert.learn.python_text import topics

TINY = protocol.Setup(
    seq_len=32,
    hidden=32,
    heads=2,
    batch=4,
    dense_steps=4,
    search_steps=4,
    fixed_steps=2,
    vocab=256,
)


def test_the_committed_report_is_made_of_the_committed_rows(tmp_path: Path) -> None:
    shutil.copy(RESULTS / "learned_masks.csv", tmp_path)
    gather(tmp_path, tmp_path)  # no seeds there: the rows stay
    page = write_report(tmp_path)
    assert page.read_bytes() == (RESULTS / "learned_masks.md").read_bytes()
    for name in ("learned_masks_loss.png", "learned_masks_importance.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short text, and one contender of each kind."""
    monkeypatch.setattr(experiment, "python_text", lambda: "\n".join(topics()[:3]))
    monkeypatch.setattr(protocol, "HAND_MADE", ("star",))
    name = "DAM_s, executed area"
    for module in (experiment, protocol):
        monkeypatch.setattr(module, "DAMS", {name: protocol.DAMS[name]})


@pytest.mark.slow
def test_a_tiny_run(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, masks = tmp_path / "work", tmp_path / "masks"
    path = experiment.run_seed(TINY, 1, work, masks)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    learned = "DAM_s, executed area"
    fixed = ["dense", "dense without diagonal", "random", "star"]
    assert names == ["start", *fixed, learned, "importance analysis"]
    by_name = {row["contender"]: row for row in rows}
    for name in fixed:
        assert 4.0 < float(by_name[name]["loss"]) < 7.0
    assert float(by_name["dense"]["executed"]) == 1.0
    mask = sb.AttentionMask.load(masks / "DAM_s-executed_area-seed1.safetensors")
    assert mask.shape == (1, 2, 32, 32)
    row = by_name[learned]
    assert float(row["sparsity"]) == pytest.approx(mask.sparsity, abs=1e-5)
    for column in ("loss", "soft_loss", "hard_loss", "budget_loss"):
        assert 4.0 < float(row[column]) < 7.0
    assert row["hard_loss"] != row["budget_loss"]  # it was trained further
    curve = [row for row in rows if row["contender"] == "importance analysis"]
    assert [int(row["step"]) for row in curve] == [1, 2, 3, 4]
    assert all(0 < float(row[group]) < 1 for row in curve for group in GROUPS)
    assert all(row["seed"] == "1" and row["date"] and row["hidden"] == "32" for row in rows)

    before = path.read_bytes()  # a second start runs nothing again
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("trained again"))
    experiment.run_seed(TINY, 1, work, masks)
    assert path.read_bytes() == before
    gather(work, tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "1 seeds; ModernBERT with 2 layers, 2 heads, width 32" in page
    assert "| star | 0.908 |" in page and f"| {learned} |" in page


def test_other_settings_do_not_go_on_with_a_run(few: None, tmp_path: Path) -> None:
    experiment.Experiment(TINY, 1, tmp_path)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        experiment.Experiment(protocol.Setup(seq_len=32, batch=8), 1, tmp_path)
