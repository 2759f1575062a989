"""Pictures in PNG files, drawn with matplotlib's Agg canvas: masks, plans and the demo's plots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsebert.cli.errors import UsageError
from sparsebert.compiler.inspect import tile_map
from sparsebert.masks import AttentionMask, drawing
from sparsebert.masks.drawing import MAX_PANELS
from sparsebert.masks.images import distinct_heads, mean_cells, step_for
from sparsebert.plan import AttentionPlan
from sparsebert.support.colours import COLOURS as COLOURS
from sparsebert.tiles.images import tile_colours

MAX_COVERS = 12
_DPI = 150


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of that many inches, on a canvas that needs no display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("pictures need matplotlib: pip install 'sparsebert[plot]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure as PNG, making the folder if it is missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DPI, format="png")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


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


def draw_covers(plans: Mapping[str, AttentionPlan], title: str, path: Path) -> None:
    """Draw the tiles of every distinct head of the plans, at most `MAX_COVERS`, into a PNG file.

    Colours are tiles, grey is computed in vain, white is skipped.
    """
    panels = [
        (f"{label}{', '.join(map(str, report.heads[:6]))}{' ...' * (len(report.heads) > 6)}",
         plan, report)
        for label, plan in plans.items()
        for report in plan.explain().per_head
    ]  # fmt: skip
    if len(panels) > MAX_COVERS:
        title += f" (the first {MAX_COVERS} of {len(panels)} different heads)"
        panels = panels[:MAX_COVERS]
    columns = min(4, math.ceil(math.sqrt(len(panels))))
    rows = math.ceil(len(panels) / columns)
    edge = 7.0 if len(panels) == 1 else 3.6
    figure = new_figure(columns * edge, rows * (edge + 0.5) + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (label, plan, report) in zip(axes.flat, panels, strict=False):
        step = step_for(plan.q_len, plan.kv_len, 1024)
        image = mean_cells(tile_colours(tile_map(plan, report.heads[0])), step)
        drawing.draw_cells(axis, image, step, plan.q_len, plan.kv_len, most=1024)
        axis.set_title(
            f"{label}: {report.executed_fraction:.1%} of the scores computed\n"
            f"{report.density:.1%} allowed; {report.route}, {report.cover}",
            fontsize=8,
        )
        axis.xaxis.label.set_size(8)
        axis.yaxis.label.set_size(8)
        axis.tick_params(labelsize=7, length=2)
    figure.suptitle(
        f"{title}\ncolours: tiles; grey: computed in vain; white: skipped", fontsize=10
    )
    save_figure(figure, path)
