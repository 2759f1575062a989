"""Plots of the GPU's report: speed-up over dense and FlexAttention, and predictions beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.attention.cases import DIRECTIONS, PAPER
from benchmarks.attention.rivals import OURS
from benchmarks.gpu.gpu_tables import BEST_FLEX, DENSE, prediction, ratio, timed
from benchmarks.harness.rows import Row
from sparsebert.reporting.figures import new_figure, save_figure
from sparsebert.support.colours import COLOURS

_STYLES = dict(zip(PAPER, zip(COLOURS, "osD^vP", strict=False), strict=True))


def speedups(rows: Sequence[Row], path: Path) -> None:
    """Time of the best dense and the best FlexAttention over ours, over N, by pattern."""
    found = timed(rows)
    figure = new_figure(11.0, 8.0)
    figure.suptitle(f"Time of others over ours, {rows[0]['processor']}: above 1 we win")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for line, name in zip(panels, (DENSE, BEST_FLEX), strict=True):
        for axis, direction in zip(line, DIRECTIONS, strict=True):
            for mask in PAPER:
                points = {
                    case[1]: ratio(found, row)
                    for (case, who), row in found.items()
                    if who == name and case[0] == mask and case[2] == direction
                }
                _draw(axis, mask, points)
            axis.axhline(1.0, color="black", linewidth=1.0)
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
            axis.set_title(f"{name}, {direction}", fontsize=10)
    _finish(figure, panels, path)


def predicted(rows: Sequence[Row], predictions: Sequence[Row], path: Path) -> None:
    """Our measured time over the predicted one, over N, by pattern."""
    found = timed(rows)
    figure = new_figure(11.0, 4.4)
    figure.suptitle(f"Measured over predicted time, {rows[0]['processor']}")
    panels = figure.subplots(1, 2, sharex=True, sharey=True, squeeze=False)
    for axis, direction in zip(panels[0], DIRECTIONS, strict=True):
        for mask in PAPER:
            points = {}
            for (case, who), row in found.items():
                if who == OURS and case[0] == mask and case[2] == direction:
                    expected = prediction(predictions, row)
                    if expected:
                        points[case[1]] = 1e3 * float(row["graph_ms"] or row["ms_50"]) / expected
            _draw(axis, mask, points)
        axis.axhline(1.0, color="black", linewidth=1.0)
        axis.set_title(direction, fontsize=10)
    _finish(figure, panels, path)


def _draw(axis: Any, mask: str, points: dict[int, float]) -> None:
    lengths = [n for n in sorted(points) if points[n] == points[n]]
    if lengths:
        colour, marker = _STYLES[mask]
        values = [points[n] for n in lengths]
        axis.plot(lengths, values, color=colour, marker=marker, label=mask)


def _finish(figure: Any, panels: Any, path: Path) -> None:
    for axis in panels.flat:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.grid(alpha=0.3)
    for axis in panels[-1]:
        axis.set_xlabel("N")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
    save_figure(figure, path)
