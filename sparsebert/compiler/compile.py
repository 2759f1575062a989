"""compile_plan: from a mask to a plan."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from sparsebert.compiler.cost.model import DEFAULT_HEAD_DIM, CostModel, usual_copies
from sparsebert.compiler.cost.targets import about_targets, is_target, machine_target
from sparsebert.compiler.cover_search import Cover
from sparsebert.compiler.covers import Aim, Calls, tiles_of
from sparsebert.compiler.pieces import all_tiles
from sparsebert.compiler.report import HeadReport, PlanReport
from sparsebert.compiler.routes import (
    Mask,
    report_dense,
    report_tiles,
    settle,
    tiles_of_head,
    with_fallback,
)
from sparsebert.masks import AttentionMask
from sparsebert.masks.mask_input import refused
from sparsebert.memory import Shelf
from sparsebert.plan import AttentionPlan
from sparsebert.support import checks
from sparsebert.tiles.assemble import without_heads
from sparsebert.tiles.crop import crop_tiles
from sparsebert.tiles.format import TileSet

_OBJECTIVES = ("time", "area")

_plans: Shelf[AttentionPlan] = Shelf(AttentionPlan.buffers)
"""Plans by mask and aim."""


def compile_plan(
    mask: AttentionMask,
    *,
    target: str | None = None,
    objective: str = "time",
    head_dim: int = DEFAULT_HEAD_DIM,
    threads: int | None = None,
    copies: int | None = None,
) -> AttentionPlan:
    """Compile the mask of one layer into a plan for `sparse_attention`.

    Args:
        mask: an `AttentionMask` with one layer, [1, H, N, M].
        target: the machine to plan for: "cpu", "sm80", "sm90", "sm100", "gfx942", ...;
            None means the machine at hand.
        objective: "time" follows the cost model and falls back to dense attention where sparsity
            would lose; "area" minimises the executed area and never falls back.
        head_dim: D of the calls to come.
        threads: CPU threads of the calls to come; None means torch.get_num_threads().
        copies: batch x heads of the calls to come. None means one batch on a CPU and 8 on a GPU,
            of the mask's heads, or of 12 for a mask of one head. A small batch is the careful
            choice: what comes once a call then weighs most.

    The last three shape the choices of objective "time" only; a plan runs calls of any size.
    Plans of recent masks are remembered, by content, so compiling twice costs nothing. Raises
    TypeError and ValueError for what is not such a mask, target or objective.

    >>> import sparsebert as sb
    >>> plan = sb.compile_plan(sb.patterns.sliding_window(256, window=8), target="cpu")
    >>> plan.dense().equal(sb.patterns.sliding_window(256, window=8).dense()[0])
    True
    """
    if not isinstance(mask, AttentionMask):
        wanted, write = "an AttentionMask", "AttentionMask.from_dense({})"
        raise refused("compile_plan", "mask", wanted, mask, write)
    if mask.num_layers != 1:
        raise ValueError(
            f"compile_plan: mask has {mask.num_layers} layers, but a plan runs one; "
            "compile each, compile_plan(mask.layer(i))"
        )
    if objective not in _OBJECTIVES:
        raise ValueError(
            f"compile_plan: objective must be one of {_OBJECTIVES}, got {objective!r}"
        )
    if target is not None and not is_target(target):
        raise ValueError(
            f"compile_plan: target must be 'cpu', 'sm90', 'gfx942' or the like, got {target!r}; "
            f"leave it out for the machine at hand; {about_targets(target)}"
        )
    target = machine_target() if target is None else target
    name, heads = "compile_plan", mask.num_heads
    calls = (
        checks.integer(name, "head_dim", head_dim, 1),
        checks.integer(name, "threads", torch.get_num_threads() if threads is None else threads, 1)
        if target == "cpu"
        else 1,
        usual_copies(target, heads)
        if copies is None
        else checks.integer(name, "copies (batch x heads)", copies, heads),
    )
    # Equal bits over other positions make a plan that is cropped in another way.
    key = (mask.fingerprint, mask.positions, target, objective, *calls)
    plan = _plans.get(key)
    if plan is None:
        plan = _compile(mask, target, objective, calls)
        _plans.put(key, plan)
    return plan


def _compile(mask: AttentionMask, target: str, objective: str, calls: Calls) -> AttentionPlan:
    lengths = mask.q_len, mask.kv_len
    head_map = _head_map(mask)
    distinct = range(int(head_map.max()) + 1)
    aim = Aim(target, objective, calls, len(head_map) if len(distinct) > 1 else 1)
    model = aim.model
    abouts = [_about(mask, tuple(np.flatnonzero(head_map == u).tolist())) for u in distinct]
    covers = aim.search([mask.bits[0, about.heads[0]] for about in abouts], *lengths)
    reports = [
        _report_head(cover, about, model, objective)
        for cover, about in zip(covers, abouts, strict=True)
    ]
    if objective == "time":
        reports = settle(reports, [all_tiles(c.pieces) for c in covers], abouts, model)
    dense_heads = np.array([report.route == "dense" for report in reports])
    tiled = {head: cover for head, cover in enumerate(covers) if not dense_heads[head]}
    tiles = tiles_of(tiled, len(covers), *lengths)
    account = PlanReport(
        *lengths,
        mask.num_heads,
        target,
        objective,
        model.source,
        tuple(reports),
        head_dim=model.head_dim,
        threads=model.threads,
        copies=model.copies,
    )
    return AttentionPlan.create(
        mask, head_map, dense_heads, tiles, target=target, objective=objective, report=account
    )


def _report_head(cover: Cover, mask: Mask, model: CostModel, objective: str) -> HeadReport:
    """The report of one distinct head, which says on which route it runs."""
    tiles = all_tiles(cover.pieces)
    reason = f"least {'area' if objective == 'area' else 'forward time'} of the covers tried"
    report = report_tiles(mask, tiles, cover.name, cover.tried, reason, model)
    return with_fallback(report, mask, model) if objective == "time" else report


def crop_plan(plan: AttentionPlan, mask: AttentionMask) -> AttentionPlan:
    """The plan of `mask`, the top-left part of the plan's mask; see `AttentionPlan.crop`."""
    model = plan.covers.aim.model
    tiles = crop_tiles(plan.tiles, mask.q_len, mask.kv_len)
    reports, abouts = [], []
    for head, was in enumerate(plan.report.per_head):
        about = _about(mask, was.heads)
        if plan.dense_heads[head]:
            report = report_dense(about, (), f"cropped; {was.reason}", model)
        else:
            rest = tiles_of_head(tiles, head)
            report = report_tiles(about, rest, was.cover, (), f"cropped; {was.reason}", model)
            if plan.objective == "time":
                report = with_fallback(report, about, model)
        abouts.append(about)
        reports.append(report)
    if plan.objective == "time":
        each = [tiles_of_head(tiles, head) for head in range(len(reports))]
        reports = settle(reports, each, abouts, model)
    dense_heads = np.array([report.route == "dense" for report in reports])
    if (dense_heads > plan.dense_heads).any():
        tiles = without_heads(tiles, dense_heads)
    cropped = AttentionPlan.create(
        mask,
        plan.head_map,
        dense_heads,
        tiles,
        target=plan.target,
        objective=plan.objective,
        report=dataclasses.replace(
            plan.report, q_len=mask.q_len, kv_len=mask.kv_len, per_head=tuple(reports)
        ),
        whole=plan.covers,
    )
    return cropped.to(plan.device)


def _about(mask: AttentionMask, heads: tuple[int, ...]) -> Mask:
    entries = int(np.bitwise_count(mask.bits[0, heads[0]]).sum(dtype=np.int64))
    return Mask(heads, entries, mask.q_len, mask.kv_len)


def _head_map(mask: AttentionMask) -> np.ndarray:
    """Which of the distinct bit matrices each head has, int64 [H], in order of appearance."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(packed.tobytes(), len(seen)) for packed in mask.bits[0]])


def compile_tiles(plan: AttentionPlan, *, transposed: bool = False) -> TileSet:
    """Tiles of all heads of a plan's mask, those that it would run dense included.

    With `transposed` they are tiles of the transposed mask: key rows, gathered queries.
    """
    return plan.covers.transposed if transposed else plan.covers.every
