"""Figures in PNG files, drawn with matplotlib's Agg canvas, which needs no display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsebert.masks import AttentionMask, drawing
from sparsebert.masks.drawing import MAX_PANELS
from sparsebert.masks.images import distinct_heads

_DPI = 150


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of that many inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says how to.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModuleNotFoundError(
            "pictures need matplotlib: pip install 'sparsebert[plot]'", name="matplotlib"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure as PNG, making the folder if it is missing.

    Raises:
        OSError: it cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DPI, format="png")
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error


def without_frame(axis: Any, xlabel: str = "") -> None:
    """Leave out the frame above and to the right of a plot, and label it in small type."""
    if xlabel:
        axis.set_xlabel(xlabel, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(which="both", labelsize=8)


def draw_mask(mask: AttentionMask, title: str, path: Path) -> None:
    """Draw every distinct head of a mask, at most `MAX_PANELS` of them, into a PNG file."""
    heads = distinct_heads(mask)
    panels = dict(heads[:MAX_PANELS])
    if len(heads) > MAX_PANELS:
        title += f" (the first {MAX_PANELS} of {len(heads)} different heads)"
    draw_panels(panels, title, path)


def draw_panels(
    panels: Mapping[str, AttentionMask], title: str, path: Path, columns: int | None = None
) -> None:
    """Draw masks of one layer and head side by side, each under its label, into a PNG file."""
    figure = new_figure(*drawing.panels_size(panels, columns))
    drawing.draw_panels(figure, panels, columns)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)
