"""A table of estimates for several lengths."""

from __future__ import annotations

from collections.abc import Iterable

from sparsebert.estimate.prediction import Estimate

_WIDTHS = (6, 10, 12, 8, 8, 8, 8, 8)


def table(estimates: Iterable[Estimate]) -> str:
    """The estimates of several lengths, one a line."""
    header = ("N", "executed", "attn share", "attn", "model", "best", "train", "best")
    lines = [
        f"{'':<27}{'----- inference -----':>22}   {'- training -':>12}",
        "".join(f"{name:>{width}}" for name, width in zip(header, _WIDTHS, strict=True)),
    ]
    for found in estimates:
        cells = (
            str(found.length), f"{found.executed_fraction:.4f}", f"{found.attention_share():.1%}",
            f"{found.attention_speedup():.2f}x", f"{found.speedup():.2f}x",
            f"{found.best_speedup():.2f}x", f"{found.speedup(training=True):.2f}x",
            f"{found.best_speedup(training=True):.2f}x",
        )  # fmt: skip
        lines.append("".join(f"{cell:>{w}}" for cell, w in zip(cells, _WIDTHS, strict=True)))
    return "\n".join(lines)
