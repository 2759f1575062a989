"""What a mask shows as the last line of a notebook cell: HTML, complete in itself.

`page`, `row` and `picture` are what plans and reports build theirs of, too.
"""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING

from sparsebert.masks.images import Image, data_uri, distinct_heads, mask_image

if TYPE_CHECKING:
    from sparsebert.masks.mask import AttentionMask

MOST_HEADS = 12
"""Pictures, or lines, of different heads; of more it is said that there are more."""


def mask_html(mask: AttentionMask) -> str:
    """A line about the mask, its different heads as pictures, and where it comes from."""
    heads = distinct_heads(mask)
    dots = dots_of(len(heads))
    pictures = [
        picture(
            mask_image(head.bits[0, 0], head.kv_len, dots), f"{label}: {head.density:.2%}", dots
        )
        for label, head in heads[:MOST_HEADS]
    ]
    lines = [f"<p><code>{html.escape(repr(mask))}</code></p>", row(pictures, len(heads))]
    if mask.provenance:
        lines.append(f"<p><small>{html.escape(_short(json.dumps(mask.provenance)))}</small></p>")
    return page(lines)


def dots_of(heads: int) -> int:
    """Dots along the edge of a picture that is alone, or one of several."""
    return 256 if heads == 1 else 112


def page(lines: list[str]) -> str:
    """Pieces of HTML one below the other; empty ones are left out."""
    return "<div>" + "\n".join(line for line in lines if line) + "</div>"


def row(pictures: list[str], of: int) -> str:
    """Pictures side by side, the first ones of `of` different heads."""
    more = f"<p>the first {len(pictures)} of {of} different heads</p>" * (of > len(pictures))
    return f"<div style='display:flex;flex-wrap:wrap;gap:12px'>{''.join(pictures)}</div>{more}"


def picture(image: Image, text: str, dots: int) -> str:
    """One picture over its text; every cell has the same whole number of dots."""
    rows, columns, _ = image.shape
    scale = max(1, dots // max(rows, columns))
    style = "image-rendering:pixelated;border:1px solid #ccc"
    return (
        f"<figure style='margin:0'><img src='{data_uri(image)}' width='{scale * columns}' "
        f"height='{scale * rows}' style='{style}' alt='{html.escape(text, quote=True)}'>"
        f"<figcaption><small>{html.escape(text)}</small></figcaption></figure>"
    )


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
