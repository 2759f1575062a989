"""A folder with a model's masks can be loaded at any time: writers that are killed, or meet."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sparsebert as sb
from sparsebert.integrations.huggingface.files import read_masks, write_masks
from tests.storage.kills import killed_at, posix

OLD, NEW = sb.patterns.star(40), sb.patterns.sliding_window(40, 3)
AUTO = {"backend": "auto", "positions": "sequence"}
TORCH = {"backend": "torch", "positions": "batch"}


def a_model(modules: int = 2) -> Any:
    """What write_masks and read_masks look at."""
    config = SimpleNamespace(model_type="bert")
    return SimpleNamespace(owner=SimpleNamespace(config=config), modules=dict.fromkeys("ab"))


@posix
@pytest.mark.parametrize("new", [(NEW, TORCH), (OLD, TORCH), (NEW, AUTO)])
def test_a_folder_of_masks_can_be_loaded_whenever_its_writer_was_killed(
    tmp_path: Path, new: tuple[sb.AttentionMask, dict[str, str]]
) -> None:
    old, model = (OLD, AUTO), a_model()
    write_masks(tmp_path, OLD, model, AUTO)
    step, seen = 0, []
    save = lambda: write_masks(tmp_path, new[0], model, new[1])  # noqa: E731
    while killed_at(step, save, ("os.rename", "fcntl.")):
        seen.append(read_masks(tmp_path, model))
        assert seen[-1] in (old, new)
        if seen[-1] == new:  # a later save after one that was killed, from each state
            write_masks(tmp_path, OLD, model, AUTO)
        step += 1
    assert read_masks(tmp_path, model) == new
    assert old in seen and new in seen
    assert sorted(os.listdir(tmp_path)) == [
        "sparsebert_config.json",
        "sparsebert_masks.safetensors",
    ]
    assert "replaces" not in json.loads((tmp_path / "sparsebert_config.json").read_text())


def test_masks_that_cannot_be_loaded_are_replaced(tmp_path: Path) -> None:
    model = a_model()
    for name in ("sparsebert_masks.safetensors", "sparsebert_config.json"):
        write_masks(tmp_path, OLD, model, AUTO)
        (tmp_path / name).write_text("broken")
        with pytest.raises(ValueError, match=name):
            read_masks(tmp_path, model)
        write_masks(tmp_path, NEW, model, TORCH)
        assert read_masks(tmp_path, model) == (NEW, TORCH)


def test_a_reader_that_meets_a_writer_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, load = a_model(), sb.AttentionMask.load
    write_masks(tmp_path, OLD, model, AUTO)
    turns = []

    def meanwhile(path: Path) -> sb.AttentionMask:
        """Between the reading of the note and of the masks, a whole save."""
        if not turns:
            turns.append(path)
            write_masks(tmp_path, NEW, model, TORCH)
        return load(path)

    monkeypatch.setattr(sb.AttentionMask, "load", meanwhile)
    assert read_masks(tmp_path, model) == (NEW, TORCH)


def test_a_note_that_was_changed_says_so(tmp_path: Path) -> None:
    write_masks(tmp_path, OLD, a_model(), AUTO)
    path = tmp_path / "sparsebert_config.json"
    changed = {**json.loads(path.read_text()), "sparsebert_version": "7.0"}
    path.write_text(json.dumps(changed))
    with pytest.raises(
        ValueError, match=r"load_masks: .*config\.json has been changed, .*'sha256'"
    ):
        read_masks(tmp_path, a_model())
    del changed["sha256"]  # as earlier versions wrote it, or somebody who means it
    path.write_text(json.dumps({**changed, "backend": "torch"}))
    assert read_masks(tmp_path, a_model()) == (OLD, {**AUTO, "backend": "torch"})


def test_no_flip_of_a_bit_changes_what_a_folder_means(tmp_path: Path) -> None:
    settings = {"backend": "torch", "positions": "batch"}
    write_masks(tmp_path, OLD, a_model(), settings)
    note = tmp_path / "sparsebert_config.json"
    good = note.read_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(good), 500, replace=False).tolist():
        place, flip = bit // 8, 1 << bit % 8
        note.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
        try:
            found = read_masks(tmp_path, a_model())
        except ValueError:
            continue
        assert found == (OLD, settings), (place, good[place : place + 1], flip)


@posix
def test_two_writers_to_one_folder_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the masks of one would stand beside the note of the other."""
    model, save = a_model(), sb.AttentionMask.save
    second = threading.Thread(target=lambda: write_masks(tmp_path, NEW, model, TORCH))

    def meanwhile(mask: sb.AttentionMask, path: Path) -> None:
        save(mask, path)
        if mask == OLD:
            second.start()
            second.join(0.3)

    monkeypatch.setattr(sb.AttentionMask, "save", meanwhile)
    write_masks(tmp_path, OLD, model, AUTO)
    second.join()
    assert read_masks(tmp_path, model) == (NEW, TORCH)
