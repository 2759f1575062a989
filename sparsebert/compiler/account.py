"""The compiler's account of one head: what its cover executes, what that should cost, and why."""

from __future__ import annotations

import dataclasses

from sparsebert.compiler.cost import CostModel
from sparsebert.compiler.cover import Cover
from sparsebert.report import HeadReport


def report_head(
    cover: Cover,
    heads: tuple[int, ...],
    entries: int,
    model: CostModel,
    lengths: tuple[int, int],
) -> HeadReport:
    """Describe a cover of a mask with so many entries, for the heads that have this mask."""
    tiles: dict[int, int] = {}
    area = columns = slots = 0
    rows: set[int] = set()
    for piece in cover.pieces:
        for some in piece.tiles:
            tiles[some.height] = tiles.get(some.height, 0) + len(some.rows)
            area += some.height * int(some.padded.sum())
            columns += int(some.padded.sum())
            slots += int(some.real_rows.sum())
            rows.update(some.rows[some.rows >= 0].tolist())
    positions = lengths[0] * lengths[1]
    return HeadReport(
        heads=heads,
        density=entries / positions,
        executed_fraction=area / positions,
        route="tiles",
        cover=cover.name,
        tiles=dict(sorted(tiles.items(), reverse=True)),
        gathered_columns=columns,
        merge_share=1.0 - len(rows) / slots if slots else 0.0,
        predicted_us=model.cover_us(cover.pieces, *lengths),
        predicted_backward_us=model.cover_us(cover.pieces, *lengths, backward=True),
        dense_us=model.forward.dense(*lengths),
        dense_backward_us=model.backward.dense(*lengths),
        bound_us=model.bound_us(entries, *lengths),
        tried=cover.tried,
        reason="the cheapest of the covers tried",
    )


def with_fallback(report: HeadReport) -> HeadReport:
    """The report of dense attention instead, where the model predicts that tiles would lose.

    They lose if the forward pass, or a training step's forward and backward, would be slower.
    """
    step = report.predicted_us + report.predicted_backward_us
    dense_step = report.dense_us + report.dense_backward_us
    if report.predicted_us < report.dense_us and step < dense_step:
        return report
    what, lost, dense = "forward", report.predicted_us, report.dense_us
    if report.predicted_us < report.dense_us:
        what, lost, dense = "forward and backward", step, dense_step
    return dataclasses.replace(
        report,
        executed_fraction=1.0,
        route="dense",
        cover="all scores, no mask" if report.density == 1.0 else "all scores, masked",
        tiles={},
        gathered_columns=0,
        merge_share=0.0,
        predicted_us=report.dense_us,
        predicted_backward_us=report.dense_backward_us,
        tried=((report.cover, report.predicted_us), *report.tried),
        reason=f"sparsity does not pay here: the best tiles ({report.cover}) would execute "
        f"{report.executed_fraction:.1%} of the scores and take {lost:.4g} us {what}, "
        f"dense attention {dense:.4g} us",
    )
