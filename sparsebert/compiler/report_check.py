"""Proving that a stored report is about the plan that it stands beside, and holds what it may."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from sparsebert.compiler.cost.constants import isas, tile_backend, tile_backends
from sparsebert.compiler.cost.targets import is_target
from sparsebert.compiler.pricing import OBJECTIVES
from sparsebert.compiler.report import HeadReport, PlanReport
from sparsebert.masks import AttentionMask
from sparsebert.tiles.format import HEIGHTS, TileSet


def check_report(
    report: PlanReport,
    target: object,
    objective: object,
    mask: AttentionMask,
    dense_heads: np.ndarray,
    tiles: TileSet,
) -> None:
    """Raise ValueError unless all fields have their types and ranges, and fit mask and tiles.

    What can be counted is counted again; predicted times must be times.
    """
    _check_types(report)
    _require(is_target(target) and report.target == target, "target")
    _require(objective in OBJECTIVES and report.objective == objective, "objective")
    _require(report.backend in tile_backends(report.target), "backend")
    known = isas(report.target, report.backend)
    _require(report.isa in known if known else report.isa == "", "instruction set")
    backend = tile_backend(report.target, report.backend, report.isa)
    runs = not len(tiles.entry_cols) or backend.singles
    runs &= bool((tiles.height == min(HEIGHTS)).all()) or not backend.singles
    _require(runs, "backend, which does not run such tiles")
    sizes = (report.q_len, report.kv_len, report.num_heads)
    _require(sizes == (mask.q_len, mask.kv_len, mask.num_heads), "size of the mask")
    *numbers, source = report.factors
    _require(all(_is_amount(each) and each > 0 for each in numbers), "factors")
    _require(type(source) is str, "source of its factors")
    _require(report.head_dim >= 1, "head_dim")
    _require(report.threads == 1 or (report.threads > 1 and target == "cpu"), "threads")
    _require(report.copies >= mask.num_heads, "copies")
    for number, head in enumerate(report.per_head):
        _check_types(head)
        columns = tiles.padded_width if backend.padded else tiles.width.astype(np.int64)
        _check_head(head, mask, bool(dense_heads[number]), tiles, number, columns)


def _check_head(
    head: HeadReport,
    mask: AttentionMask,
    is_dense: bool,
    tiles: TileSet,
    number: int,
    columns: np.ndarray,
) -> None:
    own = tiles.head == number
    positions = mask.q_len * mask.kv_len
    entries = int(np.bitwise_count(mask.bits[0, head.heads[0]]).sum(dtype=np.int64))
    heights, columns = tiles.height[own].astype(np.int64), columns[own]
    edges = tiles.entry_start[[number * mask.q_len, (number + 1) * mask.q_len]]
    singles = int(edges[1] - edges[0])
    counts = dict(zip(*(x.tolist() for x in np.unique(heights, return_counts=True)), strict=True))
    executed = 1.0 if is_dense else (int((heights * columns).sum()) + singles) / positions
    _require(head.route == ("dense" if is_dense else "tiles"), "route")
    _require(head.density == entries / positions, "density")
    _require(head.executed_fraction == executed, "executed fraction")
    _require(head.tiles == counts, "tile counts")
    _require(head.gathered_columns == int(columns.sum()), "gathered columns")
    _require(head.single_entries == singles, "single entries")
    _require(head.merge_share <= 1.0, "merge share")
    for name, cost in head.tried:
        _require(type(name) is str and _is_amount(cost), "covers tried")


def _check_types(report: PlanReport | HeadReport) -> None:
    """Numbers are finite and not negative, text is text."""
    for field in dataclasses.fields(report):
        value: Any = getattr(report, field.name)
        if field.type == "int":
            _require(type(value) is int and value >= 0, field.name)
        elif field.type == "float":
            _require(_is_amount(value), field.name)
        elif field.type == "str":
            _require(type(value) is str, field.name)


def _is_amount(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return math.isfinite(value) and value >= 0


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"its report has a wrong {what}")
