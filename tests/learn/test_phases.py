"""The search of `sparsebert learn`, interrupted and not."""

import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from sparsebert.learn import training
from sparsebert.learn.data import MaskedText
from sparsebert.learn.phases import Phases
from sparsebert.learn.python_text import topics
from sparsebert.learn.settings import Settings

TINY = Settings(
    layers=1, hidden_size=32, heads=2, vocab_size=300, seq_len=16, sparsity=0.75, steps=4,
    search_steps=4, tune_steps=2, batch_size=4, per_layer=False,
)  # fmt: skip


def phases_in(folder: Path) -> tuple[Phases, MaskedText]:
    """The phases after the dense training, and the data."""
    phases = Phases(TINY, folder)
    data = phases.data("\n".join(topics()[:3]), "some topics")
    phases.dense(data)
    return phases, data


def test_a_search_goes_on_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases, data = phases_in(tmp_path / "undisturbed")
    found = phases.search(data)
    assert found.mask.shape == (1, 2, 16, 16) and found.mask.sparsity >= 0.75
    assert len(found.history) == TINY.search_steps
    assert not list((tmp_path / "undisturbed").rglob("checkpoint-*"))

    original = training._Bar.on_step_end

    def press(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if self.title.endswith("search") and state.global_step == 2:
            monkeypatch.setattr(training._Bar, "on_step_end", original)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training._Bar, "on_step_end", press)
    phases, data = phases_in(tmp_path / "disturbed")
    with pytest.raises(KeyboardInterrupt):
        phases.search(data)
    assert (tmp_path / "disturbed/work/search/checkpoint-2").exists()
    phases, data = phases_in(tmp_path / "disturbed")
    again = phases.search(data)
    assert again.mask == found.mask and again.soft.equal(found.soft)
    assert again.hard.equal(found.hard)
