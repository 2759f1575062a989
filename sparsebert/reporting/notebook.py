"""What masks, plans and reports show as the last line of a notebook cell: HTML, self-contained."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING

from sparsebert.masks.pictures import Image, data_uri, distinct_heads, mask_image, tile_image

if TYPE_CHECKING:
    from sparsebert.compiler.report import PlanReport
    from sparsebert.masks import AttentionMask
    from sparsebert.plan import AttentionPlan

_ONE, _MANY = 256, 112  # dots along the edge of a picture that is alone, or one of several
_MOST = 12  # pictures, or lines about heads
_LARGEST = 4096 * 4096  # positions of a head whose tiles are drawn; larger ones show their mask


def mask_html(mask: AttentionMask) -> str:
    """A line about the mask, its different heads as pictures, and where it comes from."""
    heads = distinct_heads(mask)
    dots = _ONE if len(heads) == 1 else _MANY
    pictures = [
        _picture(
            mask_image(head.bits[0, 0], head.kv_len, dots), f"{label}: {head.density:.2%}", dots
        )
        for label, head in heads[:_MOST]
    ]
    lines = [f"<p><code>{html.escape(repr(mask))}</code></p>", _row(pictures, len(heads))]
    if mask.provenance:
        lines.append(f"<p><small>{html.escape(_short(json.dumps(mask.provenance)))}</small></p>")
    return _page(lines)


def plan_html(plan: AttentionPlan) -> str:
    """The plan's report, with its tiles as pictures."""
    return report_html(plan.report, tiles_html(plan))


def tiles_html(plan: AttentionPlan) -> str:
    """The tiles of the plan's different heads: colours are tiles, grey is computed in vain."""
    from sparsebert.compiler.inspect import tile_map

    heads = plan.report.per_head
    dots = _ONE if len(heads) == 1 else _MANY
    pictures = []
    for head in heads[:_MOST]:
        first = head.heads[0]
        if plan.q_len * plan.kv_len > _LARGEST:
            image = mask_image(plan.mask.bits[0, first], plan.kv_len, dots)
        else:
            image = tile_image(tile_map(plan, first), dots)
        text = f"{head.label}: {head.route}, {head.executed_fraction:.1%} computed"
        pictures.append(_picture(image, text, dots))
    legend = "colours: tiles; grey: computed in vain; white: skipped"
    return _row(pictures, len(heads)) + f"<p><small>{legend}</small></p>"


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
        for head in report.per_head[:_MOST]
    ]
    names = ("heads", "route", "allowed", "computed", "speed-up", "cover", "why")
    heading = "".join(f"<th style='text-align:left'>{name}</th>" for name in names)
    more = len(report.per_head) - _MOST
    return _page(
        [
            f"<p><b>{html.escape(report.title)}</b></p>",
            f"<table>{figures}</table>",
            pictures,
            f"<table><tr>{heading}</tr>{''.join(rows)}</table>",
            f"<p>{more} more different heads: print(report.details())</p>" if more > 0 else "",
        ]
    )


def _page(lines: list[str]) -> str:
    return "<div>" + "\n".join(line for line in lines if line) + "</div>"


def _row(pictures: list[str], of: int) -> str:
    more = f"<p>the first {len(pictures)} of {of} different heads</p>" * (of > len(pictures))
    return f"<div style='display:flex;flex-wrap:wrap;gap:12px'>{''.join(pictures)}</div>{more}"


def _picture(image: Image, text: str, dots: int) -> str:
    """One picture over its text; every cell has the same whole number of dots."""
    rows, columns, _ = image.shape
    scale = max(1, dots // max(rows, columns))
    style = "image-rendering:pixelated;border:1px solid #ccc"
    return (
        f"<figure style='margin:0'><img src='{data_uri(image)}' width='{scale * columns}' "
        f"height='{scale * rows}' style='{style}' alt='{html.escape(text, quote=True)}'>"
        f"<figcaption><small>{html.escape(text)}</small></figcaption></figure>"
    )


def _cell(text: str) -> str:
    return f"<td style='text-align:left'>{html.escape(text)}</td>"


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
