"""The plots of the report: losses at one sparsity, their curves over it, groups over training."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from benchmarks.learned_masks.paired import Interval
from benchmarks.learned_masks.protocol import DAMS, DENSE, HAND_MADE, IMPORTANCE
from sparsebert.dam.importance import GROUPS
from sparsebert.reporting.figures import new_figure, save_figure, without_frame

_SHOWN = 0.9  # the sparsity of the bars
_LINEAR = 0.05  # a loss above dense up to which wide scales are linear; logarithmic beyond
_WIDE = 8.0  # times the median that the largest loss is, for a scale that is wide
_MARKERS = "osDv^<>P*X"


def above_dense(rows: pd.DataFrame) -> dict[tuple[str, float], dict[int, float]]:
    """Loss above dense by contender and sparsity, for each seed."""
    dense = rows[rows["contender"] == DENSE].set_index("seed")["loss"]
    found: dict[tuple[str, float], dict[int, float]] = {}
    for row in rows[rows["asked"].notna() & rows["seed"].isin(dense.index)].itertuples():
        found.setdefault((row.contender, row.asked), {})[row.seed] = row.loss - dense[row.seed]
    return found


def _colour(name: str) -> str:
    return "C0" if name in DAMS else "C1" if name in HAND_MADE else "C7"


def _is_wide(losses: list[float]) -> bool:
    return max(losses) > _WIDE * max(statistics.median(losses), _LINEAR / _WIDE)


def draw_losses(rows: pd.DataFrame, path: Path, title: str) -> bool:
    """Loss above dense of every contender at 90 %, one dot a seed; False if there is none."""
    found = {name: seeds for (name, asked), seeds in above_dense(rows).items() if asked == _SHOWN}
    if not found:
        return False
    means = {name: Interval.of(seeds.values()) for name, seeds in found.items()}
    names = sorted(found, key=lambda name: -means[name].mean)
    figure = new_figure(7.0, 1.4 + 0.24 * len(names))
    axis = figure.subplots()
    for place, name in enumerate(names):
        axis.barh(place, means[name].mean, color=_colour(name), alpha=0.5)
        seeds = list(found[name].values())
        axis.plot(seeds, [place] * len(seeds), "o", color=_colour(name), markersize=3.5)
    axis.set_yticks(range(len(names)), names)
    axis.axvline(0.0, color="black", linewidth=0.8)
    if _is_wide([each.mean for each in means.values()]):
        axis.set_xscale("symlog", linthresh=_LINEAR)
        axis.set_xlim(left=min(0.0, *(min(seeds.values()) for seeds in found.values())) - 0.003)
        axis.xaxis.set_major_formatter("{x:g}")
    axis.set_title(f"{title}\n{_SHOWN:.0%} sparsity: learned (blue), hand-made (orange), scored")
    without_frame(axis, "loss above dense attention (dots: seeds)")
    save_figure(figure, path)
    return True


def draw_curves(rows: pd.DataFrame, path: Path, title: str) -> bool:
    """Loss above dense over sparsity with 95 % bands; False with fewer than two sparsities."""
    found = above_dense(rows)
    curves: dict[str, list[tuple[float, Interval]]] = {}
    for (name, asked), seeds in sorted(found.items()):
        curves.setdefault(name, []).append((asked, Interval.of(seeds.values())))
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return False
    figure = new_figure(8.6, 4.8)
    axis = figure.subplots()
    styles = {"C0": "-", "C1": "--", "C7": ":"}
    for number, (name, points) in enumerate(sorted(curves.items())):
        where = [asked for asked, _ in points]
        mean = [each.mean for _, each in points]
        line = axis.plot(
            where, mean, styles[_colour(name)], color=f"C{number % 10}", label=name,
            marker=_MARKERS[number // 2 % len(_MARKERS)], markersize=4,
        )[0]  # fmt: skip
        low = [each.mean - each.half for _, each in points]
        high = [each.mean + each.half for _, each in points]
        axis.fill_between(where, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    if _is_wide([each.mean for points in curves.values() for _, each in points]):
        axis.set_yscale("symlog", linthresh=_LINEAR)
        axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("loss above dense attention", fontsize=9)
    axis.set_title(f"{title}: 95 % bands over seeds", fontsize=10)
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    without_frame(axis, "sparsity")
    save_figure(figure, path)
    return True


def draw_importance(rows: pd.DataFrame, path: Path, title: str) -> bool:
    """The four groups over the steps of the soft-mask run; thin lines are seeds."""
    mine = rows[rows["contender"] == IMPORTANCE]
    if mine.empty:
        return False
    figure = new_figure(6.0, 3.8)
    axis = figure.subplots()
    for number, group in enumerate(GROUPS):
        curves = mine.pivot(index="step", columns="seed", values=group)
        axis.plot(curves, color=f"C{number}", linewidth=0.6, alpha=0.6)
        axis.plot(curves.mean(axis=1), color=f"C{number}", linewidth=2.0, label=group)
    axis.set_ylabel("mean of P = sigmoid(alpha)", fontsize=9)
    axis.set_title(f"Importance of positions, {mine['seed'].nunique()} seeds")
    axis.legend(frameon=False)
    without_frame(axis, "training step")
    save_figure(figure, path)
    return True


PLOTS: dict[str, Callable[[pd.DataFrame, Path, str], bool]] = {
    "losses": draw_losses,
    "curves": draw_curves,
    "importance": draw_importance,
}
"""By the end of their file's name; each draws, or says that there is nothing to draw."""
