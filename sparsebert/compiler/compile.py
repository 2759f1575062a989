"""compile_plan: from a mask to a plan."""

from __future__ import annotations

import collections
import threading

import numpy as np

from sparsebert.compiler import bits as packed
from sparsebert.compiler.cost import CostModel, cost_model, machine_target
from sparsebert.compiler.cover import Cover, best_cover
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from sparsebert.report import HeadReport, PlanReport
from sparsebert.tiles import TileGroup, TileSet, build_tile_set

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
    head_bits, head_map = _distinct_heads(mask)
    dense_us = model.dense_us(mask.q_len, mask.kv_len)
    covers = [best_cover(bits, model, objective) for bits in head_bits]
    dense_heads = np.array([objective == "time" and c.predicted_us >= dense_us for c in covers])
    tiled = {head: covers[head] for head in np.flatnonzero(~dense_heads).tolist()}
    tiles = _build_tiles(head_bits, tiled, mask.q_len, mask.kv_len)
    entries = mask.q_len * mask.kv_len
    reports = []
    for head, cover in enumerate(covers):
        heads = tuple(np.flatnonzero(head_map == head).tolist())
        density = float(packed.count(head_bits[head]).sum() / entries)
        report = _report_head(cover, heads, density, entries, dense_us, bool(dense_heads[head]))
        reports.append(report)
    report = PlanReport(
        mask.q_len, mask.kv_len, mask.num_heads, target, objective, model.source, tuple(reports)
    )
    return AttentionPlan.create(
        mask, head_map, dense_heads, tiles, target=target, objective=objective, report=report
    )


def _distinct_heads(mask: AttentionMask) -> tuple[list[np.ndarray], np.ndarray]:
    """The different bit matrices among the heads, and which of them each head has."""
    seen: dict[bytes, int] = {}
    head_map = [seen.setdefault(bits.tobytes(), len(seen)) for bits in mask.bits[0]]
    distinct = [mask.bits[0, head_map.index(head)] for head in range(len(seen))]
    return distinct, np.array(head_map)


def _report_head(
    cover: Cover,
    heads: tuple[int, ...],
    density: float,
    entries: int,
    dense_us: float,
    is_dense: bool,
) -> HeadReport:
    comparison = f"{cover.predicted_us:.1f} us in tiles ({cover.name}), {dense_us:.1f} us dense"
    if is_dense:
        return HeadReport(
            heads=heads,
            density=density,
            executed_fraction=1.0,
            route="dense",
            cover="all scores, no mask" if density == 1.0 else "all scores, masked",
            tiles={},
            gathered_columns=0,
            predicted_us=dense_us,
            dense_us=dense_us,
            reason=f"sparsity would lose: {comparison}",
        )
    return HeadReport(
        heads=heads,
        density=density,
        executed_fraction=cover.area / entries,
        route="tiles",
        cover=cover.name,
        tiles=cover.tiles,
        gathered_columns=cover.columns,
        predicted_us=cover.predicted_us,
        dense_us=dense_us,
        reason=comparison,
    )


def compile_tiles(plan: AttentionPlan, *, transposed: bool = False) -> TileSet:
    """Tiles of all heads of a plan's mask, those that it would run dense included.

    With `transposed` they are tiles of the transposed mask: key rows, gathered queries.
    """
    model = cost_model(plan.target)
    q_len, kv_len = plan.q_len, plan.kv_len
    head_bits, _ = _distinct_heads(plan.mask)
    if transposed:
        head_bits = [packed.transpose(bits, kv_len) for bits in head_bits]
        q_len, kv_len = kv_len, q_len
    covers = {head: best_cover(bits, model, plan.objective) for head, bits in enumerate(head_bits)}
    return _build_tiles(head_bits, covers, q_len, kv_len)


def _build_tiles(
    head_bits: list[np.ndarray], covers: dict[int, Cover], q_len: int, kv_len: int
) -> TileSet:
    groups = [
        TileGroup(head, head_bits[head], rows)
        for head, cover in covers.items()
        for rows in cover.rows
    ]
    return build_tile_set(groups, len(head_bits), q_len, kv_len)
