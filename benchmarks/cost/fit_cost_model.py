"""Fit the cost model's constants for the CPU to measurements of its backend for tiles.

    python -m benchmarks.cost.fit_cost_model            # measure, fit, check, write constants.json
    python -m benchmarks.cost.fit_cost_model --dry-run  # measure, fit and check only
    python -m benchmarks.cost.fit_cost_model --quick    # one round only: to try the script
    python -m benchmarks.cost.fit_cost_model --threads 1  # on a busy machine

Each row is one mask in given tiles, or dense, with D of 32, 64 or 128, one thread or two, fp32,
forward and backward. Times are the least of several rounds over all rows: with one thread the CPU
time of that thread, which other work on the machine disturbs little; with two the time that
passes, so let the machine be idle. (With --threads 1 alone, what threads share is taken from the
backend's code: all that depends on the tiles, but the adding up of dK and dV.) Constants are
fitted to the least absolute relative errors, none of them negative. Then masks that the fit has
not seen check it (`benchmarks.cost.cost_check`): how far predictions are off, how often the choice
between tiles and dense was right, and what the wrong choices cost.

Rows and provenance go to benchmarks/results/fit_cost_model.csv and cost_check.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cost.cost_check import check
from benchmarks.cost.fitting import MeasuredCall, as_json, dense_counts, fit_constants
from benchmarks.cost.timed_calls import (
    BACKEND,
    HEADS,
    ROUNDS,
    TARGET,
    THREADS,
    forward_and_backward,
    least,
    write_csv,
)
from benchmarks.harness.named_masks import learned_looking
from benchmarks.harness.origin import RESULTS, origin
from sparsebert import patterns
from sparsebert.compiler.cost import constants
from sparsebert.compiler.cost.model import batches, cost_model
from sparsebert.estimate import ModelShape, calibrate
from sparsebert.machine import current_load
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan, compile_for_backend
from sparsebert.tiles.build import TileGroup, build_tile_set
from sparsebert.tiles.outlines import outlines_of_head

DIMS = (32, 64, 128)
BERT_BASE = ModelShape(hidden_size=768, layers=12, heads=12, intermediate_size=3072)
CONSTANTS = Path(constants.__file__).with_name("constants.json")


def gathered_blocks(length: int, rows: int, columns: int) -> AttentionMask:
    """Every `rows` rows share `columns` random columns and attend to most of them."""
    rng = np.random.default_rng(0)
    mask = np.zeros((length, length), dtype=bool)
    for first in range(0, length, rows):
        chosen = rng.choice(length, columns, replace=False)
        mask[first : first + rows, chosen] = rng.random((rows, columns)) < 0.7
    return AttentionMask.from_dense(mask)


@functools.cache
def tile_plans() -> list[tuple[str, AttentionPlan]]:
    """All plans of tiles."""
    return list(_tile_plans())


def _tile_plans() -> Iterator[tuple[str, AttentionPlan]]:
    """Plans of many shapes: one tile shape, several, rows in several tiles, different heads."""
    for length, rows, columns in (
        (64, 16, 16), (128, 16, 32), (128, 64, 64), (256, 16, 64), (256, 64, 128), (512, 16, 128),
        (512, 32, 64), (512, 128, 256), (1024, 16, 64), (1024, 4, 64), (1024, 32, 256),
        (1024, 64, 32), (1024, 128, 512), (1024, 16, 512),
    ):  # fmt: skip
        mask = gathered_blocks(length, rows, columns)
        yield f"blocks {rows} x {columns}", in_order(mask, max(16, rows), rows)
    for length, height in itertools.product((128, 256, 512, 1024), (16, 64)):
        mask = patterns.longformer(length)
        yield f"longformer, {height} rows", in_order(mask, height, height)
    for length in (128, 256, 512, 1024):
        for mask in (
            patterns.strided(length, 16),
            patterns.log_sparse(length),
            patterns.bigbird(length),
            patterns.neighborhood_2d(length // 16, 16),
        ):
            name = f"{mask.provenance['pattern']}, compiled"
            yield name, in_tiles(mask)
    for length in (128, 256, 512):
        heads = [learned_looking(length, seed) for seed in range(HEADS)]
        mask = AttentionMask.stack_heads(heads)
        yield f"learned-looking, {HEADS} heads", in_tiles(mask)
        heads = [patterns.sliding_window(length, 2 + width) for width in range(HEADS)]
        mask = AttentionMask.stack_heads(heads)
        yield f"windows, {HEADS} heads", in_tiles(mask)


def mixed_plans() -> Iterator[tuple[str, AttentionPlan]]:
    """Plans with half of the heads in tiles and half dense."""
    for length in (128, 512):
        heads = [patterns.sliding_window(length, 2 + width) for width in range(HEADS)]
        plan = in_tiles(AttentionMask.stack_heads(heads))
        dense_heads = np.arange(HEADS) % 2 == 1
        yield f"windows, half of {HEADS} heads dense", changed(plan, dense_heads=dense_heads)


def dense_masks() -> Iterator[tuple[str, AttentionMask]]:
    """Masks of one head, of twelve, and none."""
    for length in (64, 128, 256, 512, 1024, 2048):
        yield "one mask", patterns.longformer(length)
        if length <= 1024:
            yield "no mask", patterns.dense(length)
            heads = [learned_looking(length, seed) for seed in range(HEADS)]
            yield f"{HEADS} masks", AttentionMask.stack_heads(heads)


def in_tiles(mask: AttentionMask) -> AttentionPlan:
    """A plan that runs no head dense."""
    return compile_for_backend(mask, BACKEND, target=TARGET, objective="area")


def in_order(mask: AttentionMask, height: int, rows: int) -> AttentionPlan:
    """A plan in tiles of one height with `rows` rows each, rows in order."""
    slots = np.full((-(-mask.q_len // rows), height), -1, dtype=np.int32)
    every = np.full(len(slots) * rows, -1, dtype=np.int32)
    every[: mask.q_len] = np.arange(mask.q_len)
    slots[:, :rows] = every.reshape(-1, rows)
    group = TileGroup(0, mask.bits[0, 0], slots)
    tiles = build_tile_set([group], 1, mask.q_len, mask.kv_len)
    plan = in_tiles(mask)
    return changed(plan, tiles=tiles)


def changed(plan: AttentionPlan, **fields: Any) -> AttentionPlan:
    """The plan with other fields of its schedule."""
    return AttentionPlan(dataclasses.replace(plan.schedule, **fields))


def tile_counts(plan: AttentionPlan) -> dict[str, float]:
    """What a call's tiles count up to, over all sets of tiles."""
    heads = np.flatnonzero(~plan.dense_heads)
    found = [outlines_of_head(plan.tiles, int(head)) for head in heads]
    together = [tiles for head in found for tiles in head]
    shapes, widths = batches(together)
    rows = np.concatenate([tiles.real_rows for tiles in together])
    width = np.concatenate(widths)
    merged, level = 0, 0
    for head in found:
        used = np.concatenate([tiles.rows[tiles.rows >= 0] for tiles in head])
        more = np.maximum(np.bincount(used) - 1, 0)
        merged, level = merged + int(more.sum()), max(level, int(more.max()))
    return {
        "call": 1, "shape": shapes, "level": level, "tile": len(rows), "row": int(rows.sum()),
        "column": int(width.sum()), "entry": int((rows * width).sum()), "merge": merged,
    }  # fmt: skip


def calls_to_measure(head_dim: int, threads: int) -> Iterator[MeasuredCall]:
    """All cases of one head size and number of threads."""

    def call(
        route: str, name: str, plan: AttentionPlan, backend: str, counts: dict[str, float]
    ) -> MeasuredCall:
        sets = plan.num_heads if plan.head_map.any() else 1
        timed = forward_and_backward(plan, backend, head_dim)
        best = np.full(2, np.inf)
        return MeasuredCall(
            route, name, plan.q_len, head_dim, threads, HEADS, sets, counts, timed, best
        )  # fmt: skip

    for name, plan in tile_plans():
        yield call("tiles", name, plan, BACKEND, tile_counts(plan))
    for name, plan in mixed_plans():
        dense = dense_counts(plan.q_len, int(plan.dense_heads.sum()), masked=True)
        yield call("mixed", name, plan, "auto", {**tile_counts(plan), **dense})
    for name, mask in dense_masks():
        plan = in_tiles(mask)
        sets = mask.num_heads
        counts = dense_counts(mask.q_len, sets, masked=name != "no mask")
        yield call("dense", name, plan, "dense", counts)


def measure(rounds: int, thread_counts: Sequence[int]) -> list[MeasuredCall]:
    """All calls, measured with each number of threads in turn."""
    measured = []
    for head_dim in DIMS:
        calls = [call for n in thread_counts for call in calls_to_measure(head_dim, n)]
        for done in range(rounds):
            for call in calls:
                torch.set_num_threads(call.threads)
                call.best = np.minimum(call.best, [least(timed) for timed in call.passes])
            print(f"D = {head_dim}: round {done + 1} of {rounds}", flush=True)
        # Without the passes, which hold the tensors.
        measured += [dataclasses.replace(call, passes=()) for call in calls]
    return measured


def main() -> None:
    """Measure, fit, check, report, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost.fit_cost_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="do not write constants.json")
    parser.add_argument("--quick", action="store_true", help="one round only")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=THREADS, help="numbers of threads to measure"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the rows")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rounds = 1 if arguments.quick else ROUNDS
    threads = tuple(arguments.threads)
    load = current_load()
    print(load, flush=True)
    if load.busy and max(threads) > 1 and not (arguments.quick or arguments.dry_run):
        parser.error(
            "the machine is busy: with more than one thread its other work would be fitted, too; "
            "wait until it is idle, or take --threads 1 or --dry-run"
        )
    measured = measure(rounds, threads)
    # Changed in place, so that the check below, in this process, goes by the new constants.
    stored = constants.stored()
    parts = {name: stored[name][TARGET] for name in ("machines", "dense")}
    parts["tiles"] = stored["tiles"][BACKEND][TARGET]
    update(parts, measured, threads)
    cost_model.cache_clear()
    write_csv(arguments.out / "fit_cost_model.csv", [call.as_row() for call in measured])
    print(as_json(parts))
    del measured
    write_csv(arguments.out / "cost_check.csv", check(rounds, threads))
    if not arguments.dry_run:
        CONSTANTS.write_text(as_json(stored) + "\n", encoding="utf-8")


def update(
    parts: dict[str, dict[str, Any]], measured: list[MeasuredCall], threads: tuple[int, ...]
) -> None:
    """Fit, say how well, and put the constants and their source into the parts of the file."""
    passes, parts["tiles"]["margin"] = fit_constants(measured)
    for which, found in passes.items():
        for name, terms in found.terms.items():
            parts[name][which] = terms
        for route, errors in sorted(found.errors.items()):
            middle, most = np.quantile(np.abs(errors), [0.5, 0.9])
            print(f"{which}, {route}: relative error, median {middle:.0%}, 90 % below {most:.0%}")
    where = ", ".join(f"{name} {value}" for name, value in origin().items())
    parts["tiles"]["source"] = parts["dense"]["source"] = (
        f"fitted by benchmarks/cost/fit_cost_model.py, fp32, D = {DIMS}, threads {threads}: "
        f"{where}"
    )
    torch.set_num_threads(1)
    parts["machines"]["linear_flops"] = float(f"{calibrate(BERT_BASE).linear_flops:.3g}")
    parts["machines"]["linear_source"] = (
        f"measured by benchmarks/cost/fit_cost_model.py with one thread, fp32, times the threads: "
        f"{origin()['processor']}"
    )


if __name__ == "__main__":
    main()
