"""What plans and reports show as the last line of a notebook cell: HTML, complete in itself."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from sparsebert.compiler.tile_map import tile_map
from sparsebert.masks.html import MOST_HEADS, dots_of, page, picture, row
from sparsebert.masks.images import mask_image
from sparsebert.tiles.images import LEGEND, tile_image

if TYPE_CHECKING:
    from sparsebert.compiler.report import PlanReport
    from sparsebert.compiler.schedule import Schedule

_LARGEST = 4096 * 4096  # positions of a head whose tiles are drawn; larger ones show their mask


def plan_html(schedule: Schedule) -> str:
    """The plan's report, with its tiles as pictures."""
    return report_html(schedule.report, tiles_html(schedule))


def tiles_html(schedule: Schedule) -> str:
    """What covers the plan's different heads, as pictures with a legend."""
    mask, heads = schedule.mask, schedule.report.per_head
    dots = dots_of(len(heads))
    pictures = []
    for head in heads[:MOST_HEADS]:
        first = head.heads[0]
        if mask.q_len * mask.kv_len > _LARGEST:
            image = mask_image(mask.bits[0, first], mask.kv_len, dots)
        else:
            image = tile_image(tile_map(schedule, first), dots)
        text = f"{head.label}: {head.route}, {head.executed_fraction:.1%} computed"
        pictures.append(picture(image, text, dots))
    return row(pictures, len(heads)) + f"<p><small>{LEGEND}</small></p>"


def report_html(report: PlanReport, pictures: str = "") -> str:
    """The report's figures as a table, the pictures, and a line for each different head."""
    figures = "".join(
        f"<tr>{_cell(name)}{_cell(value)}{_cell(meaning)}</tr>"
        for name, value, meaning in report.figures()
    )
    rows = [
        f"<tr>{_cell(head.label)}{_cell(head.route)}{_cell(f'{head.density:.2%}')}"
        f"{_cell(f'{head.executed_fraction:.2%}')}{_cell(f'{head.predicted_speedup:.2f}x')}"
        f"{_cell(head.cover)}{_cell(head.reason)}</tr>"
        for head in report.per_head[:MOST_HEADS]
    ]
    names = ("heads", "route", "allowed", "computed", "speed-up", "cover", "why")
    heading = "".join(f"<th style='text-align:left'>{name}</th>" for name in names)
    more = len(report.per_head) - MOST_HEADS
    return page(
        [
            f"<p><b>{html.escape(report.title)}</b></p>",
            f"<table>{figures}</table>",
            pictures,
            f"<table><tr>{heading}</tr>{''.join(rows)}</table>",
            f"<p>{more} more different heads: print(report.details())</p>" if more > 0 else "",
        ]
    )


def _cell(text: str) -> str:
    return f"<td style='text-align:left'>{html.escape(text)}</td>"
