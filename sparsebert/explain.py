"""``sparsebert explain`` as a library: the plans of a mask's layers, in words and as a picture.

>>> import sparsebert as sb
>>> from sparsebert.explain import explain_plans
>>> plan = sb.compile_plan(sb.patterns.star(64), target="cpu")
>>> print(explain_plans({0: plan}).splitlines()[0])
plan for 1 head(s) of 64 x 64, target cpu, objective time
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from sparsebert.compiler.report import PlanReport
from sparsebert.compiler.tile_map import tile_map
from sparsebert.masks import drawing
from sparsebert.masks.images import mean_cells, step_for
from sparsebert.plan import AttentionPlan
from sparsebert.reporting.figures import new_figure, save_figure
from sparsebert.tiles.images import LEGEND, tile_colours

MAX_TILE_PANELS = 12
_FEW_HEADS = 8  # of all layers together, for which each layer is reported at length


def explain_plans(plans: Mapping[int, AttentionPlan], *, details: bool = False) -> str:
    """The reports of numbered layers: the total first, then each layer, at length if they are few.

    Args:
        plans: the plan of each layer, by the layer's number.
        details: whether every different head of every layer gets its report in full.
    """
    reports = {index: plan.explain() for index, plan in plans.items()}
    if len(reports) == 1:
        (report,) = reports.values()
        return _in_full(report, details)
    every = list(reports.values())

    def mean(field: str) -> float:
        return float(sum(getattr(report, field) for report in every) / len(every))

    lines = [
        f"{len(every)} layers, each a {every[0].title}",
        f"  density            {mean('density'):8.4f}   share of ones in the masks",
        f"  executed fraction  {mean('executed_fraction'):8.4f}   share of the scores computed",
        f"  predicted time     {mean('predicted_us'):8.4g} us a head forward, "
        f"{mean('predicted_backward_us'):.4g} us backward",
        f"  predicted speed-up {mean('dense_us') / mean('predicted_us'):8.2f}x  over dense "
        "attention, forward",
    ]
    if details or sum(len(report.per_head) for report in every) <= _FEW_HEADS:
        for index, report in reports.items():
            lines += [f"layer {index}", _in_full(report, details)]
        return "\n".join(lines)
    lines.append("  layer   density  executed  speed-up  routes")
    for index, report in reports.items():
        lines.append(
            f"  {index:>5}  {report.density:8.4f}  {report.executed_fraction:8.4f}  "
            f"{report.predicted_speedup:7.2f}x  {report.routes}"
        )
    lines.append("  --layer I shows one layer, --details every different head of all")
    return "\n".join(lines)


def _in_full(report: PlanReport, details: bool) -> str:
    return report.details() if details else str(report)


def draw_tiles(plans: Mapping[int, AttentionPlan], title: str, path: Path) -> None:
    """Draw the tiles of every distinct head, at most `MAX_TILE_PANELS`, into a PNG file.

    It has a legend.

    Args:
        plans: the plan of each layer, by the layer's number.
        title: above all; the target they were planned for follows it.
        path: the PNG file.

    Raises:
        ModuleNotFoundError, OSError: no matplotlib, or the file cannot be written.
    """
    panels = []
    for index, plan in plans.items():
        layer = f"layer {index}, " if len(plans) > 1 else ""
        for report in plan.report.per_head:
            heads = f"{', '.join(map(str, report.heads[:6]))}{' ...' * (len(report.heads) > 6)}"
            panels.append((f"{layer}head {heads}", plan, report))
        target = plan.target
    title = f"{title}, planned for {target}"
    if len(panels) > MAX_TILE_PANELS:
        title += f" (the first {MAX_TILE_PANELS} of {len(panels)} different heads)"
        panels = panels[:MAX_TILE_PANELS]
    columns = min(4, math.ceil(math.sqrt(len(panels))))
    rows = math.ceil(len(panels) / columns)
    edge = 7.0 if len(panels) == 1 else 3.6
    figure = new_figure(columns * edge, rows * (edge + 0.5) + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (label, plan, report) in zip(axes.flat, panels, strict=False):
        step = step_for(plan.q_len, plan.kv_len, 1024)
        image = mean_cells(tile_colours(tile_map(plan.schedule, report.heads[0])), step)
        drawing.draw_cells(axis, image, step, plan.q_len, plan.kv_len, most=1024)
        axis.set_title(
            f"{label}: {report.executed_fraction:.1%} of the scores computed\n"
            f"{report.density:.1%} allowed; {report.route}, {report.cover}",
            fontsize=8,
        )
        axis.xaxis.label.set_size(8)
        axis.yaxis.label.set_size(8)
        axis.tick_params(labelsize=7, length=2)
    figure.suptitle(f"{title}\n{LEGEND}", fontsize=10)
    save_figure(figure, path)
