"""Pictures, drawn with matplotlib's Agg canvas: masks, plans and the demo's plots.

Colours are from Okabe and Ito's set, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsebert.cli.errors import UsageError
from sparsebert.compiler.inspect import NOT_COMPUTED, WASTE, tile_map
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MAX_PANELS = 48
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
    columns = columns or min(6, math.ceil(math.sqrt(len(panels))))
    rows = math.ceil(len(panels) / columns)
    edge = 5.0 if len(panels) == 1 else 2.4
    cells = int(0.75 * edge * _DPI)  # fewer than pixels, or thin lines would come and go
    tallest = max(mask.q_len / mask.kv_len for mask in panels.values())
    figure = new_figure(columns * edge, rows * (0.86 * edge * min(tallest, 2.0) + 0.45) + 0.55)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    drawn = zip(axes.flat, panels.items(), strict=False)
    for place, (axis, (label, mask)) in enumerate(drawn):
        axis.imshow(
            # The square root keeps thin lines visible where a cell stands for many positions.
            np.sqrt(_cells(mask, cells)),
            cmap="Blues",
            vmin=0.0,
            vmax=1.0,
            interpolation="nearest",
            extent=(0, mask.kv_len, mask.q_len, 0),
        )
        # A margin, so that the frame does not hide the first row and column: global tokens.
        axis.set_xlim(-0.02 * mask.kv_len, 1.02 * mask.kv_len)
        axis.set_ylim(1.02 * mask.q_len, -0.02 * mask.q_len)
        axis.spines[:].set_color("lightgrey")
        axis.set_title(f"{label}\n{mask.density:.1%} allowed", fontsize=8)
        axis.set_xticks([0, mask.kv_len])
        axis.set_yticks([0, mask.q_len])
        axis.tick_params(labelsize=7, length=2)
        if place % columns == 0:
            axis.set_ylabel("query", fontsize=8)
        if place >= len(panels) - columns:
            axis.set_xlabel("key", fontsize=8)
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
        image = tile_colours(tile_map(plan, report.heads[0]))
        axis.imshow(
            _mean_cells(image, int(0.75 * edge * _DPI)),
            interpolation="nearest",
            extent=(0, plan.kv_len, plan.q_len, 0),
        )
        axis.set_title(
            f"{label}: {report.executed_fraction:.1%} of the scores computed\n"
            f"{report.density:.1%} allowed; {report.route}, {report.cover}",
            fontsize=8,
        )
        axis.set_xticks([0, plan.kv_len])
        axis.set_yticks([0, plan.q_len])
        axis.set_xlabel("key", fontsize=8)
        axis.set_ylabel("query", fontsize=8)
        axis.tick_params(labelsize=7, length=2)
    figure.suptitle(
        f"{title}\ncolours: tiles; grey: computed in vain; white: skipped", fontsize=10
    )
    save_figure(figure, path)


def tile_colours(tiles: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """RGB [N, M, 3] of a `tile_map`: neighbouring tiles differ, waste is grey, the rest white."""
    palette = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLOURS[:6]])
    image = palette[np.maximum(tiles, 0) % len(palette)]
    image[tiles == WASTE] = 0.85
    image[tiles == NOT_COMPUTED] = 1.0
    return np.asarray(image)


def distinct_heads(mask: AttentionMask) -> list[tuple[str, AttentionMask]]:
    """The different heads of a mask, each with a label that says where it is used."""
    places: dict[bytes, list[tuple[int, int]]] = {}
    for layer in range(mask.num_layers):
        for head in range(mask.num_heads):
            places.setdefault(mask.bits[layer, head].tobytes(), []).append((layer, head))
    return [
        (_label(where, mask), mask.layer(where[0][0]).head(where[0][1]))
        for where in places.values()
    ]


def _label(places: Sequence[tuple[int, int]], mask: AttentionMask) -> str:
    layers, heads, *_ = mask.shape
    if len(places) == layers * heads:
        return "all layers and heads"
    first = f"layer {places[0][0]}, head {places[0][1]}" if layers > 1 else f"head {places[0][1]}"
    return f"{first} and {len(places) - 1} more" if len(places) > 1 else first


def _cells(mask: AttentionMask, most: int) -> npt.NDArray[np.float64]:
    """The mask as at most `most` x `most` cells: each the share of its positions allowed."""
    return _mean_cells(mask.dense()[0, 0].numpy().astype(np.float64)[..., None], most)[..., 0]


def _mean_cells(image: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.float64]:
    """[N, M, channels] averaged down to at most `most` x `most` cells."""
    rows, columns = _edges(image.shape[0], most), _edges(image.shape[1], most)
    sums = np.add.reduceat(np.add.reduceat(image, rows[:-1], axis=0), columns[:-1], axis=1)
    area: npt.NDArray[np.float64] = np.diff(rows)[:, None] * np.diff(columns)[None, :]
    return np.asarray(sums / area[..., None])


def _edges(length: int, most: int) -> npt.NDArray[np.int64]:
    return np.linspace(0, length, min(length, most) + 1).astype(np.int64)
