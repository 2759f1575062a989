"""Masks drawn with matplotlib: `AttentionMask.plot` and what other pictures share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparsebert.masks.images import distinct_heads, ink, step_for

if TYPE_CHECKING:
    from sparsebert.masks.mask import AttentionMask

MAX_PANELS = 48


def plot_mask(mask: AttentionMask, layer: int | None, head: int | None, ax: Any) -> Any:
    """See `AttentionMask.plot`."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "plot: pictures need matplotlib: pip install 'sparsebert[plot]'", name="matplotlib"
        ) from error
    mask = mask if layer is None else mask.layer(layer)
    mask = mask if head is None else mask.head(head)
    heads = distinct_heads(mask)
    if len(heads) == 1:
        axis = pyplot.subplots(layout="constrained")[1] if ax is None else ax
        draw_mask(axis, mask.layer(0).head(0))
        name = mask.provenance.get("pattern")
        axis.set_title(f"{f'{name}, ' if name else ''}{mask.density:.1%} allowed")
        return axis
    if ax is not None:
        raise ValueError(
            f"plot: ax takes one head, but the mask has {len(heads)} different ones; choose with "
            "layer= and head=, or leave ax out for a figure of all"
        )
    shown = dict(heads[:MAX_PANELS])
    figure = pyplot.figure(figsize=panels_size(shown), layout="constrained")
    draw_panels(figure, shown)
    if len(heads) > MAX_PANELS:
        figure.suptitle(f"the first {MAX_PANELS} of {len(heads)} different heads", fontsize=11)
    return figure


def panels_size(
    panels: Mapping[str, AttentionMask], columns: int | None = None
) -> tuple[float, float]:
    """Width and height, in inches, of a figure for `draw_panels`."""
    columns = columns or _columns(len(panels))
    edge = 5.0 if len(panels) == 1 else 2.4
    tallest = max(mask.q_len / mask.kv_len for mask in panels.values())
    rows = math.ceil(len(panels) / columns)
    return columns * edge, rows * (0.86 * edge * min(tallest, 2.0) + 0.45) + 0.55


def draw_panels(
    figure: Any, panels: Mapping[str, AttentionMask], columns: int | None = None
) -> None:
    """Draw masks of one layer and head side by side, each under its label."""
    columns = columns or _columns(len(panels))
    axes = figure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for place, (axis, (label, mask)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
        draw_mask(axis, mask, most=768 if len(panels) > 1 else 1536)
        axis.set_title(f"{label}\n{mask.density:.1%} allowed", fontsize=8)
        axis.tick_params(labelsize=7, length=2)
        axis.set_xlabel("key" if place >= len(panels) - columns else "", fontsize=8)
        axis.set_ylabel("query" if place % columns == 0 else "", fontsize=8)


def draw_mask(axis: Any, mask: AttentionMask, most: int = 1536) -> None:
    """Draw a mask of one layer and head on a matplotlib axis."""
    step = step_for(mask.q_len, mask.kv_len, most)
    dark = ink(mask.bits[0, 0], mask.kv_len, step)
    draw_cells(axis, dark, step, mask.q_len, mask.kv_len, most, cmap="Blues", vmin=0.0, vmax=1.0)
    # A margin, so that the frame does not hide the first row and column: global tokens.
    axis.set_xlim(-0.5 - 0.02 * mask.kv_len, 1.02 * mask.kv_len - 0.5)
    axis.set_ylim(1.02 * mask.q_len - 0.5, -0.5 - 0.02 * mask.q_len)
    axis.spines[:].set_color("lightgrey")


def draw_cells(
    axis: Any,
    cells: npt.NDArray[np.floating],
    step: int,
    q_len: int,
    kv_len: int,
    most: int = 1536,
    **style: Any,
) -> Any:
    """Draw an image whose cells are `step` x `step` positions; axes count positions, from 0.

    Shrinking averages, but what is enlarged is sampled, with lines now one pixel wide and now
    two: so the image is made larger than its place, up to `most` dots.
    """
    rows, columns = cells.shape[:2]
    enlarged = max(1, most // max(rows, columns))
    image = axis.imshow(
        cells.repeat(enlarged, axis=0).repeat(enlarged, axis=1),
        interpolation="antialiased",
        extent=(-0.5, step * columns - 0.5, step * rows - 0.5, -0.5),
        **style,
    )
    axis.set_xlim(-0.5, kv_len - 0.5)
    axis.set_ylim(q_len - 0.5, -0.5)
    axis.set_xticks(sorted({0, kv_len - 1}))
    axis.set_yticks(sorted({0, q_len - 1}))
    axis.set_xlabel("key")
    axis.set_ylabel("query")
    return image


def _columns(panels: int) -> int:
    return min(6, math.ceil(math.sqrt(panels)))
