"""From a mask to a schedule: search for covers, price them, decide the route of each head."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import torch

from sparsebert.compiler.aim import Aim, Calls
from sparsebert.compiler.cost.factors import AS_FITTED, Factors
from sparsebert.compiler.cost.instruction_sets import isa_for
from sparsebert.compiler.cost.model import CostModel, usual_copies
from sparsebert.compiler.cost.targets import about_targets, is_target, machine_target
from sparsebert.compiler.cover_search import Cover
from sparsebert.compiler.group_search import count_singles
from sparsebert.compiler.pieces import all_tiles
from sparsebert.compiler.pricing import OBJECTIVES
from sparsebert.compiler.report import HeadReport, PlanReport
from sparsebert.compiler.routes import (
    HeadMask,
    decide_together,
    dense_unless_tiles_win,
    report_dense,
    report_tiles,
)
from sparsebert.compiler.schedule import Schedule
from sparsebert.compiler.shared_tiles import tiles_of
from sparsebert.masks import AttentionMask
from sparsebert.masks.mask_input import refused
from sparsebert.support import checks
from sparsebert.tiles.assemble import without_heads
from sparsebert.tiles.crop import crop_tiles
from sparsebert.tiles.outlines import NO_SINGLES, outlines_of_head, singles_of_head


class Request(NamedTuple):
    """What a schedule is compiled by, checked and complete.

    Attributes:
        mask: one layer.
        target, objective, calls, backend, isa, factors: see `Aim`.
    """

    mask: AttentionMask
    target: str
    objective: str
    calls: Calls
    backend: str
    isa: str = ""
    factors: Factors = AS_FITTED

    @property
    def key(self) -> tuple[Hashable, ...]:
        """All that the schedule depends on.

        Equal bits over other positions make a schedule that is cropped in another way.
        """
        mask, others = self.mask, self[1:]
        return mask.fingerprint, mask.positions, *others


def check_target(target: str | None) -> str:
    """Refuse what is no target of `compile_plan`; None is the machine at hand."""
    if target is not None and not is_target(target):
        raise ValueError(
            f"compile_plan: target must be 'cpu', 'sm90', 'gfx942' or the like, got {target!r}; "
            f"leave it out for the machine at hand; {about_targets(target)}"
        )
    return machine_target() if target is None else target


def check_request(
    mask: AttentionMask,
    target: str,
    objective: str,
    head_dim: int,
    threads: int | None,
    copies: int | None,
    backend: str,
) -> Request:
    """Refuse what is not such a mask or objective, and fill in what is left open.

    The arguments, and the errors, are those of `compile_plan`; `backend` is what the plan is for.
    """
    if not isinstance(mask, AttentionMask):
        wanted, write = "an AttentionMask", "AttentionMask.from_dense({})"
        raise refused("compile_plan", "mask", wanted, mask, write)
    if mask.num_layers != 1:
        raise ValueError(
            f"compile_plan: mask has {mask.num_layers} layers, but a plan runs one; "
            "compile each, compile_plan(mask.layer(i))"
        )
    if objective not in OBJECTIVES:
        raise ValueError(f"compile_plan: objective must be one of {OBJECTIVES}, got {objective!r}")
    name = "compile_plan"
    head_dim = checks.integer(name, "head_dim", head_dim, 1)
    if target == "cpu" and threads is not None:
        threads = checks.integer(name, "threads", threads, 1)
    if copies is not None:
        copies = checks.integer(name, "copies (batch x heads)", copies, mask.num_heads)
    return complete(mask, target, objective, head_dim, threads, copies, backend)


def complete(
    mask: AttentionMask,
    target: str,
    objective: str,
    head_dim: int,
    threads: int | None,
    copies: int | None,
    backend: str,
    factors: Factors = AS_FITTED,
) -> Request:
    """The request, with what is left open filled in; threads count on a CPU only."""
    if target != "cpu":
        threads = 1
    elif threads is None:
        threads = torch.get_num_threads()
    if copies is None:
        copies = usual_copies(target, mask.num_heads)
    calls = head_dim, threads, copies
    return Request(mask, target, objective, calls, backend, isa_for(target, backend), factors)


def compile_schedule(request: Request) -> Schedule:
    """Cover the mask's heads with tiles, or leave them dense, as the request says."""
    mask, objective = request.mask, request.objective
    lengths = mask.q_len, mask.kv_len
    head_map = _head_map(mask)
    distinct = range(int(head_map.max()) + 1)
    tile_sets = len(head_map) if len(distinct) > 1 else 1
    aim = Aim(
        request.target,
        objective,
        request.calls,
        tile_sets,
        request.backend,
        request.isa,
        request.factors,
    )
    model = aim.model
    head_masks = [
        HeadMask.of(mask, tuple(np.flatnonzero(head_map == u).tolist())) for u in distinct
    ]
    covers = aim.search([mask.bits[0, head_mask.heads[0]] for head_mask in head_masks], *lengths)
    reports = [
        _report_head(cover, head_mask, model, objective)
        for cover, head_mask in zip(covers, head_masks, strict=True)
    ]
    if objective == "time":
        each = [all_tiles(cover.pieces) for cover in covers]
        reports = decide_together(reports, each, head_masks, model)
    dense_heads = np.array([report.route == "dense" for report in reports])
    tiled = {head: cover for head, cover in enumerate(covers) if not dense_heads[head]}
    tiles = tiles_of(tiled, len(covers), *lengths)
    report = PlanReport(
        *lengths,
        mask.num_heads,
        request.target,
        objective,
        model.source,
        tuple(reports),
        head_dim=model.head_dim,
        threads=model.threads,
        copies=model.copies,
        backend=request.backend,
        isa=request.isa,
        factors=request.factors,
    )
    return Schedule.create(mask, head_map, dense_heads, tiles, report)


def _report_head(cover: Cover, mask: HeadMask, model: CostModel, objective: str) -> HeadReport:
    """The report of one distinct head, which says on which route it runs."""
    tiles = all_tiles(cover.pieces)
    singles = NO_SINGLES if cover.singles is None else count_singles(cover.singles, cover.pieces)
    reason = f"least {'area' if objective == 'area' else 'forward time'} of the covers tried"
    report = report_tiles(mask, tiles, singles, cover.name, cover.tried, reason, model)
    return dense_unless_tiles_win(report, mask, model) if objective == "time" else report


def crop_schedule(whole: Schedule, mask: AttentionMask) -> Schedule:
    """The schedule of `mask`, the top-left part of the mask of `whole`, without a new search."""
    objective = whole.report.objective
    model = whole.shared_tiles.aim.model
    tiles = crop_tiles(whole.tiles, mask.q_len, mask.kv_len)
    reports, head_masks = [], []
    for head, was in enumerate(whole.report.per_head):
        head_mask = HeadMask.of(mask, was.heads)
        if whole.dense_heads[head]:
            report = report_dense(head_mask, (), f"cropped; {was.reason}", model)
        else:
            rest = outlines_of_head(tiles, head)
            singles, reason = singles_of_head(tiles, head), f"cropped; {was.reason}"
            report = report_tiles(head_mask, rest, singles, was.cover, (), reason, model)
            if objective == "time":
                report = dense_unless_tiles_win(report, head_mask, model)
        head_masks.append(head_mask)
        reports.append(report)
    if objective == "time":
        each = [outlines_of_head(tiles, head) for head in range(len(reports))]
        reports = decide_together(reports, each, head_masks, model)
    dense_heads = np.array([report.route == "dense" for report in reports])
    if (dense_heads > whole.dense_heads).any():
        tiles = without_heads(tiles, dense_heads)
    plan_report = dataclasses.replace(
        whole.report, q_len=mask.q_len, kv_len=mask.kv_len, per_head=tuple(reports)
    )
    return Schedule.create(
        mask, whole.head_map, dense_heads, tiles, plan_report, whole.shared_tiles
    )


def _head_map(mask: AttentionMask) -> np.ndarray:
    """Which of the distinct bit matrices each head has, int64 [H], in order of appearance."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(packed.tobytes(), len(seen)) for packed in mask.bits[0]])
