"""What `sparsebert learn` says in the end: quality, time and advice follow the numbers."""

from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from sparsebert.learn.conclusion import conclusion
from sparsebert.reporting.timing import Spread


def sure(value: float) -> Spread:
    return Spread(value, value, value, 10)


def row(mask: str, kind: str, loss: float, difference: float = 0.0) -> dict[str, Any]:
    # Guessing has loss 6, dense attention 4.
    return {
        "mask": mask, "kind": kind, "loss": loss, "kept": (6.0 - loss) / 2.0, "sparsity": 0.9,
        "difference": difference, "difference_error": 0.01,
        "measured": sure(3.0), "sparse_ms": sure(1.0), "dense_ms": sure(3.0),
        "masked_ms": sure(4.0),
    }  # fmt: skip


DENSE = row("dense", "dense", 4.0)
LEARNED = row("learned", "learned", 4.1)


def said(*others: dict[str, Any], encoder: Spread | None = None, **more: Any) -> str:
    times = {"measured": encoder or sure(1.25), "sparse_ms": sure(8.0), "dense_ms": sure(10.0)}
    options = {"guessing": 6.0, "model": "out/model"} | more
    return conclusion([DENSE, LEARNED, *others], times, **options)


def test_quality_and_time() -> None:
    words = said(
        row("star", "hand-made", 4.4, 0.3), row("fixed", "hand-made", 4.3, 0.2),
        row("attention", "measured", 4.05, -0.05),
    )  # fmt: skip
    assert "With 90.0% of the attention dropped, the learned mask keeps 95.0% of what" in words
    assert "the best hand-made mask, fixed (90.0% dropped), keeps 85.0%. On" in words
    assert "attention is 3.00x as fast with it (1.00 ms, SDPA without a mask 3.00, with" in words
    assert "whole encoder 1.25x as fast (8.0 ms, dense 10.0). To use it: sparsebert.load_" in words
    assert "hand-made" not in said()


def test_what_is_unclear_worse_or_slower_is_said() -> None:
    assert "star (90.0% dropped), keeps 94.5% (no clear difference)." in said(
        row("star", "hand-made", 4.11, 0.01)
    )
    better = said(row("star", "hand-made", 4.0, -0.1))
    assert "So take star here" in better and "To use it" not in better
    slower = said(encoder=sure(0.8))
    assert "0.80x as fast" in slower and "it does not pay at this length" in slower
    assert "whole encoder uncertain: 0.50x to 2.00x (" in said(encoder=Spread(0.5, 1.0, 2.0, 9))
    assert "star (90.0% dropped), keeps nothing." in said(row("star", "hand-made", 6.5, 2.4))


def test_a_model_without_context_says_nothing_of_masks() -> None:
    words = said(guessing=4.1)
    assert "no mask can be judged by it" in words and "keeps" not in words
    assert "attention is 3.00x as fast" in words


def test_the_planted_positions_are_counted() -> None:
    words = said(planted={"learned": 0.99, "star": 0.1})
    assert "Of the positions that were planted it keeps 99% (star 10%). On this" in words
