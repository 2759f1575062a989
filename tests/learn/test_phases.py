"""Phases of `sparsebert learn` that its command does not use: the experiment on learned masks."""

import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from sparsebert.dam.importance import GROUPS
from sparsebert.learn import training
from sparsebert.learn.data import MaskedText
from sparsebert.learn.phases import Phases, Search
from sparsebert.learn.python_text import topics
from sparsebert.learn.settings import Settings

TINY = Settings(
    layers=1, hidden_size=32, heads=2, vocab_size=300, seq_len=16, sparsity=0.75, steps=4,
    tune_steps=2, batch_size=4, per_layer=False,
)  # fmt: skip


def phases_in(folder: Path) -> tuple[Phases, MaskedText]:
    """The phases after the dense training, and the data."""
    phases = Phases(TINY, folder)
    data = phases.data("\n".join(topics()[:3]), "some topics")
    phases.dense(data)
    return phases, data


def search(folder: Path) -> Search:
    phases, data = phases_in(folder)
    return phases.search(
        data, "other", steps=3, further=4, dam_options={"structure": "toeplitz"},
        trainer_options={"penalty": "executed_area"},
    )  # fmt: skip


def test_a_search_trains_on_with_its_mask_and_goes_on_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = search(tmp_path / "undisturbed")
    assert found.mask.shape == (1, 2, 16, 16) and found.mask.sparsity >= 0.75
    bits = found.mask.dense()
    assert bits[..., 1:, 1:].equal(bits[..., :-1, :-1])  # toeplitz
    assert len(found.history) == 3
    assert found.hard.mean() > found.further.mean()
    assert not list((tmp_path / "undisturbed").rglob("checkpoint-*"))

    original = training._Bar.on_step_end

    def press(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if self.title.endswith("other, further") and state.global_step == 2:
            monkeypatch.setattr(training._Bar, "on_step_end", original)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training._Bar, "on_step_end", press)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "disturbed")
    assert (tmp_path / "disturbed/work/other/further/checkpoint-2").exists()
    again = search(tmp_path / "disturbed")
    assert again.mask == found.mask and again.soft.equal(found.soft)
    assert again.further.equal(found.further)


def test_the_importance_run_follows_a_soft_mask_without_a_goal(tmp_path: Path) -> None:
    phases, data = phases_in(tmp_path)
    history = phases.importance(data, steps=3, mask_learning_rate=0.1)
    assert [row["step"] for row in history] == [1, 2, 3]
    assert all(row["mask_penalty"] == 0.0 for row in history)
    assert all(0 < row[f"importance_{group}"] < 1 for row in history for group in GROUPS)
    assert phases.importance(data, steps=3, mask_learning_rate=0.1) == history  # from its note
