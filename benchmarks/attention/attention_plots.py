"""Plots of the attention benchmark, from its rows alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attention.cases import DIRECTIONS, PAPER
from benchmarks.attention.result_files import BEST_DENSE, Row, key_of, with_best_dense
from benchmarks.attention.rivals import OURS, SDPA_MASK
from benchmarks.harness.named_masks import LEARNED_LOOKING, NO_DIAGONAL
from sparsebert.reporting.figures import new_figure, save_figure
from sparsebert.support.colours import COLOURS

_BARS = "bars: times of 20 to 80 % of the calls"
_GROUPS = ("paper-short", "paper-long", "no-gain", "learned", "tiny", "quick")
_MASKS = (*PAPER, LEARNED_LOOKING, NO_DIAGONAL)
_STYLES = dict(zip(_MASKS, zip((*COLOURS, "#888888"), "osD^vP*X", strict=True), strict=True))
Points = dict[int, tuple[float, float, float]]
"""For each length the lowest, middle and highest value that the times of 20 to 80 % give."""


def speedups(rows: Sequence[Row], path: Path) -> None:
    """SDPA's time with the same mask over ours, over N, a line for each mask."""
    figure, panels = _panels(f"SDPA's time with the same mask, over ours ({_BARS})")
    for axis, direction in zip(panels, DIRECTIONS, strict=True):
        for name, points in _lines(rows, SDPA_MASK, direction, "speedup").items():
            _draw(axis, name, points)
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axis.axhline(1.0, color="black", linewidth=1.0)
        low, high = axis.get_ylim()
        axis.axhspan(low, 1.0, color="#D55E00", alpha=0.07, linewidth=0)
        axis.set_ylim(low, high)
        axis.annotate(
            "we lose", (0.98, 0.02), xycoords="axes fraction", ha="right", color="#777777"
        )
    _finish(figure, panels, path)


def bounds(rows: Sequence[Row], path: Path) -> None:
    """Share of the bound that our plans reach, over N; dense attention without a mask dashed."""
    figure, panels = _panels(f"share of the bound that is reached ({_BARS})")
    for axis, direction in zip(panels, DIRECTIONS, strict=True):
        for name, points in _lines(rows, OURS, direction, "of_bound").items():
            _draw(axis, name, points)
        # Without a mask all masks of a length are the same work, timed several times.
        dense: dict[int, list[float]] = {}
        for points in _lines(with_best_dense(rows), BEST_DENSE, direction, "of_bound").values():
            for length, (_, share, _) in points.items():
                dense.setdefault(length, []).append(share)
        if dense:
            lengths = sorted(dense)
            shares = [statistics.median(dense[n]) for n in lengths]
            axis.plot(lengths, shares, "--", color="black", label="torch, dense, no mask")
        axis.set_ylim(0.0, None)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _finish(figure, panels, path)


def _lines(rows: Sequence[Row], contender: str, direction: str, column: str) -> dict[str, Points]:
    """For each mask the values over N."""
    ours = {(key_of(row)): row for row in rows if row["contender"] == OURS}
    lines: dict[str, Points] = {name: {} for name in _MASKS}
    for row in rows:
        wanted = row["contender"] == contender and row["direction"] == direction
        if wanted and row[column] and row["group"] in _GROUPS and row["mask"] in lines:
            fastest, slowest = _spread(row)
            if column == "speedup":  # their time over ours
                our_fastest, our_slowest = _spread(ours.get(key_of(row), {}))
                fastest, slowest = fastest / our_slowest, slowest / our_fastest
            else:
                fastest, slowest = 1.0 / slowest, 1.0 / fastest
            value = float(row[column])
            lines[row["mask"]][int(row["length"])] = value * fastest, value, value * slowest
    return {name: points for name, points in lines.items() if points}


def _spread(row: Row) -> tuple[float, float]:
    """The times below and above which a fifth of the calls are, over the median."""
    if not all(row.get(name) for name in ("ms_20", "ms_50", "ms_80")):
        return 1.0, 1.0
    middle = float(row["ms_50"])
    return float(row["ms_20"]) / middle, float(row["ms_80"]) / middle


def _panels(title: str) -> tuple[Any, Sequence[Any]]:
    figure = new_figure(11.0, 4.4)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    figure.suptitle(title)
    return figure, panels


def _draw(axis: Any, name: str, points: Points) -> None:
    colour, marker = _STYLES[name]
    lengths = sorted(points)
    low, middle, high = (np.array([points[n][part] for n in lengths]) for part in range(3))
    axis.errorbar(
        lengths,
        middle,
        yerr=(np.maximum(0.0, middle - low), np.maximum(0.0, high - middle)),
        marker=marker,
        markersize=5,
        color=colour,
        capsize=2,
        elinewidth=1,
        label=name,
    )


def _finish(figure: Any, panels: Sequence[Any], path: Path) -> None:
    format_length: Callable[[float, int], str] = lambda value, _: f"{value:g}"  # noqa: E731
    for axis, direction in zip(panels, DIRECTIONS, strict=True):
        axis.set_title(direction)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(format_length)
        axis.set_xlabel("N, tokens")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles: dict[str, Any] = {}
    for axis in panels:
        handles |= {
            label: line for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    save_figure(figure, path)
