"""The route of each head, in tiles or dense: what it executes, what that should cost, and why."""

from __future__ import annotations

import dataclasses

import numpy as np

from sparsebert.compiler.cost.model import CostModel, batches
from sparsebert.compiler.report import HeadReport
from sparsebert.masks import AttentionMask
from sparsebert.tiles.outlines import Singles, TileOutlines


@dataclasses.dataclass(frozen=True)
class HeadMask:
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

    @classmethod
    def of(cls, mask: AttentionMask, heads: tuple[int, ...]) -> HeadMask:
        """Some heads of a mask of one layer, all alike."""
        entries = int(np.bitwise_count(mask.bits[0, heads[0]]).sum(dtype=np.int64))
        return cls(heads, entries, mask.q_len, mask.kv_len)


def report_tiles(
    mask: HeadMask,
    cover: list[TileOutlines],
    singles: Singles,
    name: str,
    tried: tuple[tuple[str, float], ...],
    reason: str,
    model: CostModel,
) -> HeadReport:
    """Describe a head that runs in tiles, with single entries beside them where there are any."""
    lengths = mask.q_len, mask.kv_len
    positions = mask.q_len * mask.kv_len
    masked = mask.entries < positions
    counts: dict[int, int] = {}
    for tiles in sorted(cover, key=lambda tiles: -tiles.height):
        counts[tiles.height] = counts.get(tiles.height, 0) + len(tiles.rows)
    rows = [tiles.rows[tiles.rows >= 0] for tiles in cover]
    slots = sum(map(len, rows))
    covered = len(np.unique(np.concatenate(rows))) if rows else 0
    columns = [int(model.columns(tiles).sum()) for tiles in cover]
    executed = sum(tiles.height * count for tiles, count in zip(cover, columns, strict=True))
    return HeadReport(
        heads=mask.heads,
        density=mask.entries / positions,
        executed_fraction=(executed + singles.entries) / positions,
        route="tiles",
        cover=name,
        tiles=counts,
        gathered_columns=sum(columns),
        merge_share=1.0 - covered / slots if slots else 0.0,
        predicted_us=model.cover_us(cover, *lengths, singles=singles),
        predicted_backward_us=model.cover_us(cover, *lengths, singles=singles, backward=True),
        dense_us=model.forward.dense(*lengths, masked=masked),
        dense_backward_us=model.backward.dense(*lengths, masked=masked),
        bound_us=model.bound_us(mask.entries, *lengths),
        tried=tried,
        reason=reason,
        single_entries=singles.entries,
    )


def report_dense(
    mask: HeadMask, tried: tuple[tuple[str, float], ...], reason: str, model: CostModel
) -> HeadReport:
    """Describe a head that runs dense."""
    lengths = mask.q_len, mask.kv_len
    masked = mask.entries < mask.q_len * mask.kv_len
    forward = model.forward.dense(*lengths, masked=masked)
    backward = model.backward.dense(*lengths, masked=masked)
    return HeadReport(
        heads=mask.heads,
        density=mask.entries / (mask.q_len * mask.kv_len),
        executed_fraction=1.0,
        route="dense",
        cover="all scores, masked" if masked else "all scores, no mask",
        tiles={},
        gathered_columns=0,
        merge_share=0.0,
        predicted_us=forward,
        predicted_backward_us=backward,
        dense_us=forward,
        dense_backward_us=backward,
        bound_us=model.bound_us(mask.entries, *lengths),
        tried=tried,
        reason=reason,
    )


def dense_unless_tiles_win(report: HeadReport, mask: HeadMask, model: CostModel) -> HeadReport:
    """The report of dense attention instead, unless the model predicts that tiles win clearly.

    They must win in the forward pass, and in a training step's forward and backward, by more than
    the model's usual error.
    """
    step = report.predicted_us + report.predicted_backward_us
    dense_step = report.dense_us + report.dense_backward_us
    if model.wins(report.predicted_us, report.dense_us) and model.wins(step, dense_step):
        return report
    what, time, dense = "forward", report.predicted_us, report.dense_us
    if model.wins(report.predicted_us, report.dense_us):
        what, time, dense = "forward and backward", step, dense_step
    executed = f"the best tiles ({report.cover}) would execute {report.executed_fraction:.1%}"
    reason = (
        f"sparsity does not pay here: {executed} of the scores and take {time:.4g} us {what}, "
        f"dense attention {dense:.4g} us"
    )
    if model.margin > 1.0:
        reason += f"; less than a factor of {model.margin:.3g} is within the model's error"
    return report_dense(mask, ((report.cover, report.predicted_us), *report.tried), reason, model)


def decide_together(
    reports: list[HeadReport],
    covers: list[list[TileOutlines]],
    masks: list[HeadMask],
    model: CostModel,
) -> list[HeadReport]:
    """The reports with what heads cost each other; all of them dense if that decides it.

    A head by itself is priced as if all heads of the call ran in tiles of its shapes. Heads of
    other shapes add batches, or launches, and dense heads beside those in tiles make a call run in
    two parts.
    """
    in_tiles = [index for index, report in enumerate(reports) if report.route == "tiles"]
    if len(reports) == 1 or not in_tiles:
        return reports
    members = [len(report.heads) for report in reports]
    every, tiled = sum(members), sum(members[index] for index in in_tiles)
    priced = sum(members[index] * batches(covers[index])[0] for index in in_tiles)
    shapes = every * batches([tiles for index in in_tiles for tiles in covers[index]])[0] - priced
    of_head = {index: model.launches_of(covers[index], masks[0].q_len) for index in in_tiles}
    launches = every * len(set().union(*of_head.values()))
    launches -= sum(members[index] * len(found) for index, found in of_head.items())
    mixed_rows = masks[0].q_len * every if tiled < every else 0
    extra = {
        name: (
            (every - tiled) * cost.call
            + shapes * cost.shape
            + launches * cost.launch
            + mixed_rows * cost.mixed
        )
        / tiled
        for name, cost in (
            ("predicted_us", model.forward),
            ("predicted_backward_us", model.backward),
        )
    }
    decided = list(reports)
    for index in in_tiles:
        more = {name: getattr(reports[index], name) + us for name, us in extra.items()}
        decided[index] = dataclasses.replace(reports[index], **more)

    def total(name: str) -> float:
        each = [float(getattr(report, name)) for report in decided]
        return float(np.dot(members, each))

    forward, dense = total("predicted_us"), total("dense_us")
    step = forward + total("predicted_backward_us")
    dense_step = dense + total("dense_backward_us")
    if model.wins(forward, dense) and model.wins(step, dense_step):
        return decided
    reason = (
        f"sparsity does not pay for all heads together: with {tiled} of {every} in tiles they "
        f"would take {forward:.4g} us forward and {step:.4g} us with backward, dense attention "
        f"{dense:.4g} and {dense_step:.4g} us"
    )
    for index in in_tiles:
        was = decided[index]
        tried = ((was.cover, was.predicted_us), *was.tried)
        decided[index] = report_dense(masks[index], tried, reason, model)
    return decided
