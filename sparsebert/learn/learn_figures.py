"""Plots of a mask search: importance over the steps, probabilities and mask, losses.

Each takes plain rows or tensors and a path, and writes a PNG file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparsebert.dam.importance import GROUPS
from sparsebert.masks import AttentionMask
from sparsebert.masks.drawing import MAX_PANELS, draw_cells, draw_mask
from sparsebert.reporting.figures import new_figure, save_figure, without_frame
from sparsebert.support.colours import COLOURS

History = Sequence[Mapping[str, float]]

_LABELS = {
    "diagonal": "diagonal",
    "neighbourhood": "neighbours, |i - j| = 1",
    "special": "special tokens",
    "others": "others",
}
_GROUP_COLOURS = dict(zip(GROUPS, (COLOURS[1], COLOURS[0], COLOURS[2], "grey"), strict=True))


def draw_importance(history: History, path: Path, goal: float | None = None) -> None:
    """The paper's figure: mean probability of the four groups of positions over the steps.

    Args:
        history: rows of `DAMTrainer.history`: "step", "importance_<group>", "mask_sparsity",
            and in some of them "predicted_speedup".
        path: the PNG file.
        goal: the asked sparsity, drawn as a line.
    """
    figure = new_figure(9.0, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    steps = [row["step"] for row in history]
    for group in GROUPS:
        values = [row.get(f"importance_{group}", math.nan) for row in history]
        if not all(map(math.isnan, values)):
            left.plot(steps, values, color=_GROUP_COLOURS[group], label=_LABELS[group])
    left.set_title("Mean probability of being kept", fontsize=10)
    left.set_yscale("log")  # what matters when nearly all is dropped are ratios
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:.1g}")
    left.legend(fontsize=8, frameon=False)
    right.plot(steps, [row["mask_sparsity"] for row in history], color=COLOURS[0])
    if goal is not None:
        right.axhline(goal, color="grey", linewidth=1, linestyle="--")
        right.annotate("goal", (steps[0], goal), xytext=(0, 3), textcoords="offset points",
                       fontsize=8, color="grey")  # fmt: skip
    right.set_ylim(0.0, 1.0)
    right.set_title("Expected sparsity", fontsize=10)
    for axis in (left, right):
        without_frame(axis, "training step")
    save_figure(figure, path)


def draw_probabilities(
    probabilities: torch.Tensor, mask: AttentionMask, title: str, path: Path
) -> None:
    """Heat maps of each layer and head: the probabilities, and below them the mask.

    Args:
        probabilities: [L, H, N, N], from 0 to 1.
        mask: of the same shape.
        title: above all.
        path: the PNG file.
    """
    layers, heads, n, _ = probabilities.shape
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    if len(places) > MAX_PANELS // 2:
        title += f" (the first {MAX_PANELS // 2} of {len(places)} heads)"
        places = places[: MAX_PANELS // 2]
    largest = probabilities.max().item()
    columns = min(6, len(places))
    bands = math.ceil(len(places) / columns)
    figure = new_figure(2.2 * columns + 0.8, bands * 4.6 + 0.6)
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (layer, head) in enumerate(places):
        band, column = divmod(place, columns)
        upper, lower = axes[2 * band][column], axes[2 * band + 1][column]
        kept = mask.layer(layer).head(head)
        name = f"layer {layer}, head {head}" if layers > 1 else f"head {head}"
        image = draw_cells(  # one scale, so that heads compare
            upper, probabilities[layer, head].numpy(), 1, n, n, most=768, cmap="viridis",
            vmin=0.0, vmax=largest,
        )  # fmt: skip
        draw_mask(lower, kept, most=768)
        upper.set_title(f"{name}\nprobability", fontsize=8)
        lower.set_title(f"mask, {kept.density:.1%} allowed", fontsize=8)
        for axis in (upper, lower):
            axis.set_axis_on()
            axis.spines[:].set_color("lightgrey")
            axis.tick_params(labelsize=7, length=2)
            axis.set_ylabel("query" if column == 0 else "", fontsize=8)
            axis.set_xlabel("key" if axis is lower else "", fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.5, aspect=30).ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def draw_losses(
    curves: Mapping[str, History], path: Path, begins: Mapping[str, int], smooth: int = 10
) -> None:
    """Training loss over the steps.

    Args:
        curves: for each label rows with "step" and "loss".
        begins: the step of the whole at which a curve begins; 0 for those not named.
        path: the PNG file.
        smooth: how many rows a plotted point is the mean of.
    """
    figure = new_figure(7.0, 4.0)
    axis = figure.subplots()
    for place, (label, rows) in enumerate(curves.items()):
        width = max(1, min(smooth, len(rows) // 2))
        losses = torch.tensor([row["loss"] for row in rows], dtype=torch.float64)
        axis.plot(
            [row["step"] + begins.get(label, 0) for row in rows][width - 1 :],
            losses.unfold(0, width, 1).mean(1).tolist(),
            color=COLOURS[place % len(COLOURS)],
            linestyle=("-", "--", ":")[place // len(COLOURS) % 3],
            label=label,
        )
    axis.set_ylabel("training loss", fontsize=9)
    axis.legend(fontsize=8, frameon=False)
    without_frame(axis, "training step")
    save_figure(figure, path)


def draw_bars(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Validation loss of each mask, best first, with the standard error of its difference.

    Args:
        rows: "mask", "loss", "difference_error" (0 for none), "kind" ("dense", "learned",
            "hand-made" or "measured").
        path: the PNG file.
    """
    colours = {
        "dense": "grey", "learned": COLOURS[1], "hand-made": COLOURS[0], "measured": COLOURS[2],
    }  # fmt: skip
    ordered = sorted(rows, key=lambda row: float(row["loss"]))
    figure = new_figure(7.0, 0.36 * len(ordered) + 1.1)
    axis = figure.subplots()
    for place, row in enumerate(ordered):
        axis.errorbar(
            row["loss"], place, xerr=row["difference_error"] or None, fmt="o",
            color=colours[row["kind"]], capsize=3,
        )  # fmt: skip
        axis.annotate(
            f"{row['loss']:.3f}", (row["loss"], place), xytext=(0, 6), textcoords="offset points",
            ha="center", fontsize=7,
        )  # fmt: skip
    axis.set_yticks(range(len(ordered)), [row["mask"] for row in ordered])
    axis.set_ylim(len(ordered) - 0.5, -0.7)
    axis.grid(axis="x", color="lightgrey", linewidth=0.5)
    axis.margins(x=0.1)
    without_frame(
        axis, "validation loss (lower is better); bars: standard error of the difference"
    )
    save_figure(figure, path)
