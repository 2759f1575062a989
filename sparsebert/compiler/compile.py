"""compile_plan: from a mask to a plan."""

from __future__ import annotations

import collections
import dataclasses
import threading

import numpy as np

from sparsebert.compiler import bits
from sparsebert.compiler.account import (
    Mask,
    report_dense,
    report_tiles,
    tiles_of_head,
    with_fallback,
)
from sparsebert.compiler.cost import CostModel, cost_model, is_target, machine_target
from sparsebert.compiler.cover import Cover, best_cover
from sparsebert.compiler.pieces import all_tiles
from sparsebert.compiler.pricing import Area, Pricing, Time
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from sparsebert.report import HeadReport, PlanReport
from sparsebert.tiles import TileGroup, TileSet, build_tile_set, crop_tiles, without_heads

_OBJECTIVES = ("time", "area")
_CACHE_SIZE = 64

_cache: collections.OrderedDict[tuple[str, str, str], AttentionPlan] = collections.OrderedDict()
_cache_lock = threading.Lock()


def compile_plan(
    mask: AttentionMask, *, target: str | None = None, objective: str = "time"
) -> AttentionPlan:
    """Compile the mask of one layer into a plan for `sparse_attention`.

    Args:
        mask: an `AttentionMask` with one layer, [1, H, N, M].
        target: the machine to plan for: "cpu", "sm80", "sm90", "sm100", "gfx942", ...;
            None means the machine at hand.
        objective: "time" follows the cost model and falls back to dense attention where sparsity
            would lose; "area" minimises the executed area and never falls back.

    Plans of recent masks are remembered, by content, so compiling twice costs nothing. Raises
    TypeError and ValueError for what is not such a mask, target or objective.

    >>> import sparsebert as sb
    >>> plan = sb.compile_plan(sb.patterns.sliding_window(256, window=8), target="cpu")
    >>> plan.dense().equal(sb.patterns.sliding_window(256, window=8).dense()[0])
    True
    """
    if not isinstance(mask, AttentionMask):
        raise TypeError(
            f"compile_plan: mask must be an AttentionMask, got {type(mask).__name__}; "
            "build one with AttentionMask.from_dense(bool_tensor)"
        )
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
            "leave it out for the machine at hand"
        )
    target = machine_target() if target is None else target
    model = cost_model(target)

    key = (mask.fingerprint, target, objective)
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    plan = _compile(mask, model, target, objective)
    with _cache_lock:
        _cache[key] = plan
        while len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
    return plan


def _compile(mask: AttentionMask, model: CostModel, target: str, objective: str) -> AttentionPlan:
    lengths = mask.q_len, mask.kv_len
    head_map = _head_map(mask)
    heads = []
    for head in range(int(head_map.max()) + 1):
        members = tuple(np.flatnonzero(head_map == head).tolist())
        packed = mask.bits[0, members[0]]
        heads.append(_compile_head(packed, _about(mask, members), model, objective))
    dense_heads = np.array([report.route == "dense" for _, report in heads])
    tiled = {head: cover for head, (cover, _) in enumerate(heads) if not dense_heads[head]}
    tiles = _build_tiles(tiled, len(heads), *lengths)
    report = PlanReport(
        *lengths, mask.num_heads, target, objective, model.source, tuple(r for _, r in heads)
    )
    return AttentionPlan.create(
        mask, head_map, dense_heads, tiles, target=target, objective=objective, report=report
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
    model = cost_model(plan.target)
    tiles = crop_tiles(plan.tiles, mask.q_len, mask.kv_len)
    dense_heads, reports = plan.dense_heads.copy(), []
    for head, was in enumerate(plan.report.per_head):
        about = _about(mask, was.heads)
        if dense_heads[head]:
            report = report_dense(about, (), f"cropped; {was.reason}", model)
        else:
            rest = tiles_of_head(tiles, head)
            report = report_tiles(about, rest, was.cover, (), f"cropped; {was.reason}", model)
            if plan.objective == "time":
                report = with_fallback(report, about, model)
            dense_heads[head] = report.route == "dense"
        reports.append(report)
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
    pricing = _pricing(cost_model(plan.target), plan.objective, *lengths)
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
