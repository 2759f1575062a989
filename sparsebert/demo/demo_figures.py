"""The demo's plots: what dropping positions does, and the times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsebert.demo.dropped_positions import DROPS
from sparsebert.reporting.figures import new_figure, save_figure, without_frame
from sparsebert.support.colours import COLOURS

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw_importance(rows: list[dict[str, Any]], path: Path) -> None:
    """Two bar charts over what was dropped: embeddings moved, nearest neighbours changed.

    Bars are means; a dot is one draw of the random positions.
    """
    figure = new_figure(9.0, 3.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axis, key, title in (
        (panels[0], "moved", "How far embeddings move (1 - cosine)"),
        (panels[1], "changed", "Sentences with another nearest neighbour"),
    ):
        for place, kind in enumerate(DROPS):
            values = [row[key] for row in rows if row["kind"] == kind]
            colour = COLOURS[1] if kind == "diagonal" else COLOURS[0]
            mean = sum(values) / len(values)
            axis.barh(place, mean, color=colour, height=0.7)
            shown = f"{mean:.4f}" if key == "moved" else f"{mean:.0%}"
            axis.annotate(
                shown, (max(values), place), xytext=(6, 0), textcoords="offset points",
                va="center", fontsize=8,
            )  # fmt: skip
            if len(values) > 1:
                axis.plot(values, [place] * len(values), "o", color="black", markersize=3)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.16)
        without_frame(axis)
    panels[0].set_yticks(range(len(DROPS)), list(DROPS.values()))
    panels[0].invert_yaxis()
    panels[1].xaxis.set_major_formatter("{x:.0%}")
    save_figure(figure, path)


def draw_times(rows: list[dict[str, Any]], path: Path) -> None:
    """Speed over dense against length of text, for the encoder and for attention alone.

    Points are medians; bars reach from the 20 % to the 80 % quantile.
    """
    figure = new_figure(9.0, 3.8)
    panels = figure.subplots(1, 2)
    patterns = list(dict.fromkeys(row["pattern"] for row in rows))
    lengths = sorted({row["tokens"] for row in rows})
    for axis, part, title in (
        (panels[0], "encoder", "Whole encoder"),
        (panels[1], "attention", "Attention alone"),
    ):
        for place, pattern in enumerate(patterns):
            of_pattern = [row for row in rows if row["pattern"] == pattern]
            ratios = [row[f"{part}_speedup"] for row in of_pattern]
            axis.errorbar(
                [row["tokens"] for row in of_pattern],
                [ratio.middle for ratio in ratios],
                yerr=[
                    [ratio.middle - ratio.low for ratio in ratios],
                    [ratio.high - ratio.middle for ratio in ratios],
                ],
                marker=_MARKERS[place],
                color=COLOURS[place],
                capsize=3,
                label=pattern,
            )
        axis.axhline(1.0, color="grey", linewidth=1, linestyle="--")
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.set_ylim(0.0, 1.1 * max(1.0, *(row[f"{part}_speedup"].high for row in rows)))
        axis.set_title(f"{title}: speed-up over dense (1 = equal)", fontsize=10)
        without_frame(axis, "tokens in a text")
    panels[0].legend(fontsize=8, frameon=False)
    save_figure(figure, path)
