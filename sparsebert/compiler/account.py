"""The compiler's account of one head: what its cover executes, what that should cost, and why."""

from __future__ import annotations

import dataclasses

import numpy as np

from sparsebert.compiler.cost import CostModel
from sparsebert.compiler.pieces import Tiles
from sparsebert.report import HeadReport
from sparsebert.tiles import TileSet


@dataclasses.dataclass(frozen=True)
class Mask:
    """What a head's report says of its mask.

    Attributes:
        heads: the heads that have it.
        entries: its number of ones.
        q_len, kv_len: N and M.
    """

    heads: tuple[int, ...]
    entries: int
    q_len: int
    kv_len: int


def report_tiles(
    mask: Mask,
    cover: list[Tiles],
    name: str,
    tried: tuple[tuple[str, float], ...],
    reason: str,
    model: CostModel,
) -> HeadReport:
    """Describe a head that runs in tiles."""
    lengths = mask.q_len, mask.kv_len
    positions = mask.q_len * mask.kv_len
    counts: dict[int, int] = {}
    for tiles in sorted(cover, key=lambda tiles: -tiles.height):
        counts[tiles.height] = counts.get(tiles.height, 0) + len(tiles.rows)
    rows = [tiles.rows[tiles.rows >= 0] for tiles in cover]
    slots = sum(map(len, rows))
    covered = len(np.unique(np.concatenate(rows))) if rows else 0
    return HeadReport(
        heads=mask.heads,
        density=mask.entries / positions,
        executed_fraction=sum(t.height * int(t.padded.sum()) for t in cover) / positions,
        route="tiles",
        cover=name,
        tiles=counts,
        gathered_columns=sum(int(tiles.padded.sum()) for tiles in cover),
        merge_share=1.0 - covered / slots if slots else 0.0,
        predicted_us=model.cover_us(cover, *lengths),
        predicted_backward_us=model.cover_us(cover, *lengths, backward=True),
        dense_us=model.forward.dense(*lengths),
        dense_backward_us=model.backward.dense(*lengths),
        bound_us=model.bound_us(mask.entries, *lengths),
        tried=tried,
        reason=reason,
    )


def report_dense(
    mask: Mask, tried: tuple[tuple[str, float], ...], reason: str, model: CostModel
) -> HeadReport:
    """Describe a head that runs dense."""
    lengths = mask.q_len, mask.kv_len
    everything = mask.entries == mask.q_len * mask.kv_len
    return HeadReport(
        heads=mask.heads,
        density=mask.entries / (mask.q_len * mask.kv_len),
        executed_fraction=1.0,
        route="dense",
        cover="all scores, no mask" if everything else "all scores, masked",
        tiles={},
        gathered_columns=0,
        merge_share=0.0,
        predicted_us=model.forward.dense(*lengths),
        predicted_backward_us=model.backward.dense(*lengths),
        dense_us=model.forward.dense(*lengths),
        dense_backward_us=model.backward.dense(*lengths),
        bound_us=model.bound_us(mask.entries, *lengths),
        tried=tried,
        reason=reason,
    )


_MARGIN = 1.1
"""Tiles must be predicted this much faster than dense, as the fitted model errs by a tenth."""


def with_fallback(report: HeadReport, mask: Mask, model: CostModel) -> HeadReport:
    """The report of dense attention instead, unless the model predicts that tiles win clearly.

    They must win in the forward pass, and in a training step's forward and backward.
    """
    step = report.predicted_us + report.predicted_backward_us
    dense_step = report.dense_us + report.dense_backward_us
    if _MARGIN * report.predicted_us < report.dense_us and _MARGIN * step < dense_step:
        return report
    what, lost, dense = "forward", report.predicted_us, report.dense_us
    if _MARGIN * report.predicted_us < report.dense_us:
        what, lost, dense = "forward and backward", step, dense_step
    reason = (
        f"sparsity does not pay here: the best tiles ({report.cover}) would execute "
        f"{report.executed_fraction:.1%} of the scores and take {lost:.4g} us {what}, "
        f"dense attention {dense:.4g} us"
    )
    return report_dense(mask, ((report.cover, report.predicted_us), *report.tried), reason, model)


def tiles_of_head(tiles: TileSet, head: int) -> list[Tiles]:
    """A head's tiles by height, as the cost model takes them."""
    found = []
    for height in np.unique(tiles.height[tiles.head == head])[::-1]:
        index = np.flatnonzero((tiles.head == head) & (tiles.height == height))
        slots = tiles.row_start[index][:, None] + np.arange(height)
        found.append(Tiles(tiles.rows[slots], tiles.width[index].astype(np.int64)))
    return found
