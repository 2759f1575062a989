"""compile_plan: from a mask to a plan."""

from __future__ import annotations

import collections
import threading

import numpy as np

from sparsebert.compiler import bits
from sparsebert.compiler.account import report_head, with_fallback
from sparsebert.compiler.cost import CostModel, cost_model, machine_target
from sparsebert.compiler.cover import Cover, best_cover
from sparsebert.compiler.pricing import Area, Pricing, Time
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
    lengths = mask.q_len, mask.kv_len
    head_bits, head_map = _distinct_heads(mask)
    heads = [
        _compile_head(
            packed, tuple(np.flatnonzero(head_map == head).tolist()), model, objective, lengths
        )
        for head, packed in enumerate(head_bits)
    ]
    dense_heads = np.array([report.route == "dense" for _, report in heads])
    tiled = {head: cover for head, (cover, _) in enumerate(heads) if not dense_heads[head]}
    tiles = _build_tiles(tiled, len(head_bits), *lengths)
    report = PlanReport(
        *lengths, mask.num_heads, target, objective, model.source, tuple(r for _, r in heads)
    )
    return AttentionPlan.create(
        mask, head_map, dense_heads, tiles, target=target, objective=objective, report=report
    )


def _compile_head(
    packed: np.ndarray,
    heads: tuple[int, ...],
    model: CostModel,
    objective: str,
    lengths: tuple[int, int],
) -> tuple[Cover, HeadReport]:
    """The cover of one distinct head, and its report, which says on which route it runs."""
    cover = best_cover(packed, lengths[1], _pricing(model, objective, lengths))
    entries = int(np.bitwise_count(packed).sum(dtype=np.int64))
    report = report_head(cover, heads, entries, model, lengths)
    if objective == "time":
        report = with_fallback(report)
    return cover, report


def _pricing(model: CostModel, objective: str, lengths: tuple[int, int]) -> Pricing:
    return Area() if objective == "area" else Time(model, *lengths)


def _distinct_heads(mask: AttentionMask) -> tuple[list[np.ndarray], np.ndarray]:
    """The different bit matrices among the heads, and which of them each head has."""
    seen: dict[bytes, int] = {}
    head_map = [seen.setdefault(packed.tobytes(), len(seen)) for packed in mask.bits[0]]
    distinct = [mask.bits[0, head_map.index(head)] for head in range(len(seen))]
    return distinct, np.array(head_map)


def compile_tiles(plan: AttentionPlan, *, transposed: bool = False) -> TileSet:
    """Tiles of all heads of a plan's mask, those that it would run dense included.

    With `transposed` they are tiles of the transposed mask: key rows, gathered queries.
    """
    lengths = plan.q_len, plan.kv_len
    head_bits, _ = _distinct_heads(plan.mask)
    if transposed:
        head_bits = [bits.transpose(packed, lengths[1]) for packed in head_bits]
        lengths = lengths[1], lengths[0]
    pricing = _pricing(cost_model(plan.target), plan.objective, lengths)
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
