"""The report of `sparsebert learn`: its pictures, and what it says of the numbers."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

import sparsebert as sb
from sparsebert.dam.importance import GROUPS
from sparsebert.learn import learn_figures, learn_report


def is_picture(path: Path) -> bool:
    from matplotlib.image import imread

    return bool(imread(path)[..., :3].std() > 0.02)  # not one colour


def test_plots(tmp_path: Path) -> None:
    history = [
        {"step": float(s), "loss": 5.0 - 0.1 * s, "mask_sparsity": s / 10}
        | {f"importance_{group}": 0.5 - 0.02 * s * (1 + k) for k, group in enumerate(GROUPS)}
        for s in range(1, 6)
    ]
    learn_figures.draw_importance(history, tmp_path / "importance.png", goal=0.5)
    learn_figures.draw_losses(
        {"a": history, "b": history[:1]}, tmp_path / "training.png", {"b": 5}
    )
    for structure, layers in (("full", 1), ("toeplitz", 2)):
        dam = sb.DifferentiableAttentionMask(layers, 3, 24, structure)
        path = tmp_path / f"{structure}.png"
        learn_figures.draw_probabilities(
            dam.probabilities().detach(), dam.binarize(), "title", path
        )
    bars = [
        {"mask": "dense", "kind": "dense", "loss": 4.0, "difference_error": 0.1},
        {"mask": "learned", "kind": "learned", "loss": 4.2, "difference_error": 0.0},
        {"mask": "star", "kind": "hand-made", "loss": 4.3, "difference_error": 0.1},
    ]
    learn_figures.draw_bars(bars, tmp_path / "losses.png")
    written = list(tmp_path.glob("*.png"))
    assert len(written) == 5
    assert all(is_picture(path) for path in written)


def row(mask: str, kind: str, difference: float, error: float = 0.01) -> dict[str, Any]:
    return {
        "mask": mask, "kind": kind, "loss": 4.0 + difference,
        "difference": difference, "difference_error": error,
    }  # fmt: skip


def test_verdict_follows_the_numbers() -> None:
    learned = row("learned", "learned", 0.0, 0.0)
    words = learn_report._verdict(
        [row("dense", "dense", -0.03), learned, row("star", "hand-made", 0.015),
         row("fixed", "hand-made", 0.05)]
    )  # fmt: skip
    assert "without mask ends at 3.970, the learned one at 4.000: the learned mask is wo" in words
    assert "mask, star, ends at 4.015, the learned one at 4.000: no clear difference" in words
    assert "Of 2 hand-made masks 1 are clearly worse than the learned one, 0 clearly be" in words
    words = learn_report._verdict(
        [row("star", "hand-made", -0.1), learned, row("dense", "dense", 0.2)]
    )
    assert "star, ends at 3.900, the learned one at 4.000: the learned mask is worse" in words
    assert "Training without mask ends at 4.200" in words and "is better (+0.200" in words
