"""What a run of ``sparsebert learn`` comes to, in a few sentences made of its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsebert.learn.phases import DENSE, LEARNED
from sparsebert.reporting.timing import Spread

CONTEXT = 0.2
"""Nats below guessing that show that a model uses its context."""
SURE = 2.0
"""Standard errors that a difference must have to be called one."""


def conclusion(
    rows: Sequence[Mapping[str, Any]],
    encoder: Mapping[str, Spread],
    *,
    guessing: float,
    model: str,
    planted: Mapping[str, float] | None = None,
) -> str:
    """Quality kept and time saved, and what to do with that.

    Args:
        rows: of `comparison`.
        encoder: of `speed.encoder`, for the learned mask.
        guessing: the loss of guessing without context.
        model: where the model with the learned mask is.
        planted: share of the positions planted that each mask keeps, in the planted task.
    """
    by_name = {row["mask"]: row for row in rows}
    dense, learned = by_name[DENSE], by_name[LEARNED]
    if dense["loss"] > guessing - CONTEXT:
        return (
            f"Dense attention ends at a loss of {dense['loss']:.3f}, guessing at {guessing:.3f}: "
            "the model makes hardly any use of its context yet, so no mask can be judged by it. "
            "Train longer (--steps), or bring a trained model "
            f"(--model). {_speed(learned, encoder)}"
        )
    return " ".join([
        _quality(rows, learned, planted), _speed(learned, encoder), _advice(rows, encoder, model)
    ])  # fmt: skip


def _quality(
    rows: Sequence[Mapping[str, Any]],
    learned: Mapping[str, Any],
    planted: Mapping[str, float] | None,
) -> str:
    words = (
        f"With {learned['sparsity']:.1%} of the attention dropped, the learned mask keeps "
        f"{_share(learned['kept'])} of what dense attention gains over guessing"
    )
    best = _best(rows)
    if best is not None:
        words += (
            f"; the best hand-made mask, {best['mask']} ({best['sparsity']:.1%} dropped), keeps "
            f"{_share(best['kept'])}"
        )
        if abs(best["difference"]) < SURE * best["difference_error"]:
            words += " (no clear difference)"
    words += "."
    if planted is not None:
        words += f" Of the positions that were planted it keeps {planted[LEARNED]:.0%}"
        others = [f"{name} {share:.0%}" for name, share in planted.items() if name != LEARNED]
        words += f" ({', '.join(others)})." if others else "."
    return words


def _speed(learned: Mapping[str, Any], encoder: Mapping[str, Spread]) -> str:
    return (
        f"On this machine attention is {_times(learned['measured'])} with it "
        f"({learned['sparse_ms'].brief('{:.2f}')} ms, SDPA without a mask "
        f"{learned['dense_ms'].brief('{:.2f}')}, with this mask "
        f"{learned['masked_ms'].brief('{:.2f}')}), and the whole encoder "
        f"{_times(encoder['measured'])} ({encoder['sparse_ms'].brief('{:.1f}')} ms, dense "
        f"{encoder['dense_ms'].brief('{:.1f}')})."
    )


def _advice(rows: Sequence[Mapping[str, Any]], encoder: Mapping[str, Spread], model: str) -> str:
    best = _best(rows)
    if best is not None and -best["difference"] > SURE * best["difference_error"]:
        return (
            f"So take {best['mask']} here (`sparsebert patterns`), or search longer "
            "(--search-steps)."
        )
    if not encoder["measured"].uncertain and encoder["measured"].middle < 1.0:
        return "So it does not pay at this length; longer sequences gain more (--seq-len)."
    return f"To use it: sparsebert.load_masks(model, {model!r})."


def _best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    hand_made = [row for row in rows if row["kind"] == "hand-made"]
    return min(hand_made, key=lambda row: float(row["loss"]), default=None)


def _share(kept: float) -> str:
    return f"{kept:.1%}" if kept > 0.0 else "nothing"


def _times(ratio: Spread) -> str:
    """How a ratio of times reads: "3.1x as fast"."""
    return ratio.show("{:.2f}x") + " as fast" * (not ratio.uncertain)
