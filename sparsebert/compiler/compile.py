"""compile_plan: from a mask to a plan."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Hashable

import numpy as np
import torch

from sparsebert import checks
from sparsebert.compiler import bits
from sparsebert.compiler.account import (
    Mask,
    report_dense,
    report_tiles,
    settle,
    tiles_of_head,
    with_fallback,
)
from sparsebert.compiler.cost import (
    DEFAULT_HEAD_DIM,
    CostModel,
    cost_model,
    is_target,
    machine_target,
    usual_copies,
)
from sparsebert.compiler.cover import Cover, best_cover
from sparsebert.compiler.pieces import all_tiles
from sparsebert.compiler.pricing import Area, Pricing, Time
from sparsebert.compiler.targets import about_targets
from sparsebert.mask_input import refused
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from sparsebert.report import HeadReport, PlanReport
from sparsebert.tiles import TileGroup, TileSet, build_tile_set, crop_tiles, without_heads

_OBJECTIVES = ("time", "area")
_CACHE_SIZE = 64

Calls = tuple[int, int, int]
"""The calls that a plan is for: D, threads, batch x heads."""

_cache: collections.OrderedDict[Hashable, AttentionPlan] = collections.OrderedDict()
_cache_lock = threading.Lock()


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
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    plan = _compile(mask, target, objective, calls)
    with _cache_lock:
        _cache[key] = plan
        while len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
    return plan


def _model(target: str, calls: Calls, head_map: np.ndarray) -> CostModel:
    """The cost model for calls of this kind with a mask of these heads."""
    head_dim, threads, copies = calls
    tile_sets = len(head_map) if head_map.any() else 1
    return cost_model(
        target, head_dim=head_dim, threads=threads, copies=copies, tile_sets=tile_sets
    )


def _model_of(plan: AttentionPlan) -> CostModel:
    """The cost model that the plan was compiled with."""
    was = plan.report
    return _model(plan.target, (was.head_dim, was.threads, was.copies), plan.head_map)


def _compile(mask: AttentionMask, target: str, objective: str, calls: Calls) -> AttentionPlan:
    lengths = mask.q_len, mask.kv_len
    head_map = _head_map(mask)
    model = _model(target, calls, head_map)
    covers, reports, abouts = [], [], []
    for head in range(int(head_map.max()) + 1):
        members = tuple(np.flatnonzero(head_map == head).tolist())
        packed = mask.bits[0, members[0]]
        abouts.append(_about(mask, members))
        cover, report = _compile_head(packed, abouts[-1], model, objective)
        covers.append(cover)
        reports.append(report)
    if objective == "time":
        tiles_of = [all_tiles(cover.pieces) for cover in covers]
        reports = settle(reports, tiles_of, abouts, model)
    dense_heads = np.array([report.route == "dense" for report in reports])
    tiled = {head: cover for head, cover in enumerate(covers) if not dense_heads[head]}
    tiles = _build_tiles(tiled, len(covers), *lengths)
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


def _compile_head(
    packed: np.ndarray, mask: Mask, model: CostModel, objective: str
) -> tuple[Cover, HeadReport]:
    """The cover of one distinct head, and its report, which says on which route it runs."""
    cover = best_cover(packed, mask.kv_len, _pricing(model, objective, mask.q_len, mask.kv_len))
    tiles = all_tiles(cover.pieces)
    reason = f"least {'area' if objective == 'area' else 'forward time'} of the covers tried"
    report = report_tiles(mask, tiles, cover.name, cover.tried, reason, model)
    if objective == "time":
        report = with_fallback(report, mask, model)
    return cover, report


def crop_plan(plan: AttentionPlan, mask: AttentionMask) -> AttentionPlan:
    """The plan of `mask`, the top-left part of the plan's mask; see `AttentionPlan.crop`."""
    model = _model_of(plan)
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
        tiles_of = [tiles_of_head(tiles, head) for head in range(len(reports))]
        reports = settle(reports, tiles_of, abouts, model)
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
    )
    if "transposed" in vars(plan):  # compiled already; else it is compiled if it is needed
        vars(cropped)["transposed"] = crop_tiles(plan.transposed, mask.kv_len, mask.q_len)
    return cropped.to(plan.device)


def _about(mask: AttentionMask, heads: tuple[int, ...]) -> Mask:
    entries = int(np.bitwise_count(mask.bits[0, heads[0]]).sum(dtype=np.int64))
    return Mask(heads, entries, mask.q_len, mask.kv_len)


def _pricing(model: CostModel, objective: str, q_len: int, kv_len: int) -> Pricing:
    return Area() if objective == "area" else Time(model, q_len, kv_len)


def _head_map(mask: AttentionMask) -> np.ndarray:
    """Which of the distinct bit matrices each head has, int64 [H], in order of appearance."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(packed.tobytes(), len(seen)) for packed in mask.bits[0]])


def compile_tiles(plan: AttentionPlan, *, transposed: bool = False) -> TileSet:
    """Tiles of all heads of a plan's mask, those that it would run dense included.

    With `transposed` they are tiles of the transposed mask: key rows, gathered queries.
    """
    lengths = plan.q_len, plan.kv_len
    first = [report.heads[0] for report in plan.report.per_head]
    head_bits = [plan.mask.bits[0, head] for head in first]
    if transposed:
        head_bits = [bits.transpose(packed, lengths[1]) for packed in head_bits]
        lengths = lengths[1], lengths[0]
    pricing = _pricing(_model_of(plan), plan.objective, *lengths)
    covers = [best_cover(packed, lengths[1], pricing) for packed in head_bits]
    return _build_tiles(dict(enumerate(covers)), len(head_bits), *lengths)


def _build_tiles(covers: dict[int, Cover], num_heads: int, q_len: int, kv_len: int) -> TileSet:
    groups = [
        TileGroup(head, bits.to_bytes(piece.words, kv_len), tiles.rows)
        for head, cover in covers.items()
        for piece in cover.pieces
        for tiles in piece.tiles
    ]
    return build_tile_set(groups, num_heads, q_len, kv_len)
