"""Fit the cost model's constants for the CPU to measurements of the torch executor.

    python -m benchmarks.cost.fit_cost_model            # measure, fit, check, write constants.json
    python -m benchmarks.cost.fit_cost_model --dry-run  # measure, fit and check only
    python -m benchmarks.cost.fit_cost_model --quick    # one round only: to try the script
    python -m benchmarks.cost.fit_cost_model --threads 1  # on a busy machine

Each row is one mask in given tiles, or dense, with D of 32, 64 or 128, one thread or two, fp32,
forward and backward. Times are the least of several rounds over all rows: with one thread the CPU
time of that thread, which other work on the machine disturbs little; with two the time that
passes, so let the machine be idle. (With --threads 1 alone, what threads share is taken from the
executor's code: all that depends on the tiles, but the adding up of dK and dV.) Constants are
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
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

import sparsebert
from benchmarks.harness.named_masks import learned_looking
from benchmarks.harness.origin import RESULTS, origin
from benchmarks.harness.rows import RowFile
from sparsebert import patterns
from sparsebert.compiler.compile import compile_plan
from sparsebert.compiler.cost import constants
from sparsebert.compiler.cost.model import batches, cost_model
from sparsebert.compiler.routes import tiles_of_head
from sparsebert.estimate import ModelShape, calibrate
from sparsebert.machine import current_load
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from sparsebert.tiles.build import TileGroup, build_tile_set
from sparsebert.tiles.format import HEIGHTS

HEADS, DIMS, ROUNDS = 12, (32, 64, 128), 5
THREADS = (1, 2)
SPELL = 0.02
"""Seconds for which a call is repeated in a round."""

MARGINS = (1.05, 1.5)
"""Least and largest margin by which tiles must be predicted to win."""

BERT_BASE = ModelShape(hidden_size=768, layers=12, heads=12, intermediate_size=3072)
MODEL = Path(constants.__file__).with_name("constants.json")
BACKEND, TARGET = "torch", "cpu"

Terms = tuple[tuple[str, str, int], ...]
SERIAL, PARALLEL = 0, 1
TILE_TERMS = (
    ("call", "once", SERIAL),
    ("shape", "once", SERIAL),
    ("level", "once", SERIAL),
    ("tile", "copy", PARALLEL),
    ("row", "once", PARALLEL),
    ("row", "dim", PARALLEL),
    ("column", "once", SERIAL),
    ("column", "once", PARALLEL),
    ("column", "dim", SERIAL),
    ("column", "dim", PARALLEL),
    ("entry", "once", PARALLEL),
    ("entry", "copy", PARALLEL),
    ("entry", "dim", PARALLEL),
    ("merge", "once", PARALLEL),
    ("merge", "dim", PARALLEL),
)
"""What the time of tiles is made of: the term, which part of it, and whether threads divide it."""

DENSE_TERMS = (
    ("dense_call", "once", SERIAL),
    ("dense_entry", "copy", PARALLEL),
    ("dense_entry", "dim", PARALLEL),
    ("mask_entry", "once", PARALLEL),
    ("mask_entry", "copy", PARALLEL),
)
COUNTS = tuple(dict.fromkeys(name for name, _, _ in (*TILE_TERMS, *DENSE_TERMS)))


@dataclasses.dataclass
class Row:
    """A case, what it executes, and what it took: forward and backward, microseconds a call."""

    route: str
    mask: str
    length: int
    head_dim: int
    threads: int
    copies: int
    tile_sets: int
    counts: dict[str, float]
    calls: tuple[Callable[[], object], ...]
    best: np.ndarray

    def features(self, terms: Terms) -> list[float]:
        """What each constant is multiplied by."""
        sharing = self.copies / self.tile_sets
        times = {"once": 1.0, "copy": sharing, "dim": sharing * self.head_dim}
        return [
            self.counts.get(name, 0.0) * times[part] / (self.threads if divided == PARALLEL else 1)
            for name, part, divided in terms
        ]


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
            yield name, compile_plan(mask, objective="area", target="cpu")
    for length in (128, 256, 512):
        heads = [learned_looking(length, seed) for seed in range(HEADS)]
        mask = AttentionMask.stack_heads(heads)
        yield f"learned-looking, {HEADS} heads", compile_plan(mask, objective="area", target="cpu")
        heads = [patterns.sliding_window(length, 2 + width) for width in range(HEADS)]
        mask = AttentionMask.stack_heads(heads)
        yield f"windows, {HEADS} heads", compile_plan(mask, objective="area", target="cpu")


def mixed_plans() -> Iterator[tuple[str, AttentionPlan]]:
    """Plans with half of the heads in tiles and half dense."""
    for length in (128, 512):
        heads = [patterns.sliding_window(length, 2 + width) for width in range(HEADS)]
        plan = compile_plan(AttentionMask.stack_heads(heads), objective="area", target="cpu")
        dense_heads = np.arange(HEADS) % 2 == 1
        yield f"windows, half of {HEADS} heads dense", AttentionPlan.create(
            plan.mask, plan.head_map, dense_heads, plan.tiles,
            target="cpu", objective="area", report=plan.report,
        )  # fmt: skip


def dense_masks() -> Iterator[tuple[str, AttentionMask]]:
    """Masks of one head, of twelve, and none."""
    for length in (64, 128, 256, 512, 1024, 2048):
        yield "one mask", patterns.longformer(length)
        if length <= 1024:
            yield "no mask", patterns.dense(length)
            heads = [learned_looking(length, seed) for seed in range(HEADS)]
            yield f"{HEADS} masks", AttentionMask.stack_heads(heads)


def in_order(mask: AttentionMask, height: int, rows: int) -> AttentionPlan:
    """A plan in tiles of one height with `rows` rows each, rows in order."""
    slots = np.full((-(-mask.q_len // rows), height), -1, dtype=np.int32)
    every = np.full(len(slots) * rows, -1, dtype=np.int32)
    every[: mask.q_len] = np.arange(mask.q_len)
    slots[:, :rows] = every.reshape(-1, rows)
    group = TileGroup(0, mask.bits[0, 0], slots)
    tiles = build_tile_set([group], 1, mask.q_len, mask.kv_len)
    plan = compile_plan(mask, objective="area", target="cpu")
    return AttentionPlan.create(
        mask, plan.head_map, plan.dense_heads, tiles,
        target="cpu", objective="area", report=plan.report,
    )  # fmt: skip


def tile_counts(plan: AttentionPlan) -> dict[str, float]:
    """What a call's tiles count up to, over all sets of tiles."""
    heads = np.flatnonzero(~plan.dense_heads)
    found = [tiles_of_head(plan.tiles, int(head)) for head in heads]
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


def dense_counts(length: int, heads: int, *, masked: bool) -> dict[str, float]:
    """What dense attention counts up to for so many masks."""
    entries = float(length**2 * heads)
    return {"dense_call": 1, "dense_entry": entries, "mask_entry": entries if masked else 0}


def rows_to_measure(head_dim: int, threads: int) -> Iterator[Row]:
    """All cases of one head size and number of threads."""

    def row(
        route: str, name: str, plan: AttentionPlan, backend: str, counts: dict[str, float]
    ) -> Row:
        sets = plan.num_heads if plan.head_map.any() else 1
        timed = calls(plan, backend, head_dim)
        best = np.full(2, np.inf)
        return Row(
            route, name, plan.q_len, head_dim, threads, HEADS, sets, counts, timed, best
        )  # fmt: skip

    for name, plan in tile_plans():
        yield row("tiles", name, plan, "torch", tile_counts(plan))
    for name, plan in mixed_plans():
        dense = dense_counts(plan.q_len, int(plan.dense_heads.sum()), masked=True)
        yield row("mixed", name, plan, "auto", {**tile_counts(plan), **dense})
    for name, mask in dense_masks():
        plan = compile_plan(mask, target="cpu", objective="area")
        sets = mask.num_heads
        counts = dense_counts(mask.q_len, sets, masked=name != "no mask")
        yield row("dense", name, plan, "dense", counts)


def calls(plan: AttentionPlan, backend: str, head_dim: int) -> tuple[Callable[[], object], ...]:
    """The forward and the backward pass of a call, to be timed."""
    q, k, v, grad = torch.randn(4, 1, plan.q_len, HEADS, head_dim).transpose(2, 3).unbind(0)
    q, k, v = (x.requires_grad_() for x in (q, k, v))

    def forward() -> torch.Tensor:
        return sparsebert.sparse_attention(q, k, v, plan, backend=backend)

    o = forward()
    return forward, lambda: torch.autograd.grad(o, (q, k, v), grad, retain_graph=True)


def least(call: Callable[[], object]) -> float:
    """Least time of a call in microseconds: CPU time of this thread if it is the only one."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: list[float] = []
    while sum(times) < SPELL:
        start = clock()
        call()
        times.append(clock() - start)
    return min(times) * 1e6


def measure(rounds: int, thread_counts: Sequence[int]) -> list[Row]:
    """All rows, measured with each number of threads in turn."""
    measured = []
    for head_dim in DIMS:
        rows = [row for n in thread_counts for row in rows_to_measure(head_dim, n)]
        for done in range(rounds):
            for row in rows:
                torch.set_num_threads(row.threads)
                row.best = np.minimum(row.best, [least(call) for call in row.calls])
            print(f"D = {head_dim}: round {done + 1} of {rounds}", flush=True)
        # Without the calls, which hold the tensors.
        measured += [dataclasses.replace(row, calls=()) for row in rows]
    return measured


def fit(matrix: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Non-negative constants with the least sum of absolute relative errors.

    Absolute, not squared, so that a call which was disturbed each time does not bend the others.
    """
    scaled = matrix / times[:, None]
    norm = np.linalg.norm(scaled, axis=0)
    norm[norm == 0.0] = 1.0
    scaled = scaled / norm
    weight = np.ones(len(times))
    for _ in range(30):  # least squares, reweighted
        constants, _ = nnls(scaled * weight[:, None], weight)
        weight = 1.0 / np.sqrt(np.maximum(np.abs(scaled @ constants - 1.0), 0.02))
    found: np.ndarray = constants / norm
    return found


def fit_pass(
    rows: list[Row], column: int
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """The constants of one pass by the part of constants.json, and relative errors by route."""
    stored: dict[str, dict[str, dict[str, list[float]]]] = {"tiles": {}, "dense": {}}
    predicted = np.zeros(len(rows))
    for route, terms in (("tiles", TILE_TERMS), ("dense", DENSE_TERMS)):
        if len({row.threads for row in rows}) == 1:
            terms = known_split(terms, SERIAL if column else PARALLEL)
        chosen = [row for row in rows if row.route == route]
        matrix = np.array([row.features(terms) for row in chosen])
        fitted = fit(matrix, np.array([row.best[column] for row in chosen]))
        for (name, part, divided), value in zip(terms, fitted, strict=True):
            pair = stored[route].setdefault(name, {}).setdefault(part, [0.0, 0.0])
            pair[divided] = float(f"{value:.3g}")
        predicted += [fitted @ row.features(terms) for row in rows]
    times = np.array([row.best[column] for row in rows])
    route_of = np.array([row.route for row in rows])
    is_mixed = route_of == "mixed"
    moved = np.array([row.length * row.copies * row.head_dim / row.threads for row in rows])
    mixed = max(0.0, float(np.median(((times - predicted) / moved)[is_mixed])))
    stored["tiles"]["mixed"] = {"dim": [0.0, float(f"{mixed:.3g}")]}
    predicted[is_mixed] += mixed * moved[is_mixed]
    errors = {route: (predicted / times - 1.0)[route_of == route] for route in set(route_of)}
    tiles: dict[str, Any] = dict(stored["tiles"])
    tiles["entry"] = {str(height): tiles["entry"] for height in HEIGHTS}
    machine = {"floor_row": {"dim": [0.0, 0.0]}}
    return {"machines": machine, "dense": stored["dense"], "tiles": tiles}, errors


def known_split(terms: Terms, kept: int) -> Terms:
    """Terms that stand in the list as serial and as parallel only as `kept`.

    One number of threads cannot tell them apart. They are those of gathered columns: gathering is
    parallel, and in the backward pass adding up their gradients is not.
    """
    both = {term[:2] for term in terms if (*term[:2], 1 - term[2]) in terms}
    return tuple(term for term in terms if term[:2] not in both or term[2] == kept)


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Rows with provenance."""
    where = origin()
    RowFile(path, [*rows[0], *where]).write([{**row, **where} for row in rows])


def as_json(stored: dict[str, Any]) -> str:
    """constants.json's text: each term on one line."""
    text = json.dumps(stored, indent=2)
    text = re.sub(r"\[\s+(\S+),\s+(\S+)\s+\]", r"[\1, \2]", text)
    return re.sub(
        r"\{\s+(\"(?:once|copy|dim)\": [^{}]*?)\s+\}",
        lambda term: "{" + re.sub(r"\s*\n\s*", " ", term[1]) + "}",
        text,
    )


def main() -> None:
    """Measure, fit, check, report, and write."""
    from benchmarks.cost.cost_check import check

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    rows = measure(rounds, threads)

    # Changed in place, so that the check below, in this process, goes by the new constants.
    stored = constants.stored()
    parts = {name: stored[name][TARGET] for name in ("machines", "dense")}
    parts["tiles"] = tiles = stored["tiles"][BACKEND][TARGET]
    of_tiles = []
    for column, which in ((0, "forward"), (1, "backward")):
        fitted, found = fit_pass(rows, column)
        for name, terms in fitted.items():
            parts[name][which] = terms
        for route, errors in sorted(found.items()):
            middle, most = np.quantile(np.abs(errors), [0.5, 0.9])
            print(f"{which}, {route}: relative error, median {middle:.0%}, 90 % below {most:.0%}")
        of_tiles.append(np.abs(found["tiles"]))
    margin = 1.0 + float(np.quantile(np.concatenate(of_tiles), 0.8))
    tiles["margin"] = float(f"{min(max(margin, MARGINS[0]), MARGINS[1]):.3g}")
    where = ", ".join(f"{name} {value}" for name, value in origin().items())
    tiles["source"] = parts["dense"]["source"] = (
        f"fitted by benchmarks/cost/fit_cost_model.py, fp32, D = {DIMS}, threads {threads}: "
        f"{where}"
    )
    cost_model.cache_clear()
    torch.set_num_threads(1)
    machine = parts["machines"]
    machine["linear_flops"] = float(f"{calibrate(BERT_BASE).linear_flops:.3g}")
    machine["linear_source"] = (
        f"measured by benchmarks/cost/fit_cost_model.py with one thread, fp32, times the threads: "
        f"{origin()['processor']}"
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = [
        {
            "route": row.route, "mask": row.mask, "N": row.length, "D": row.head_dim,
            "threads used": row.threads, "copies": row.copies, "tile_sets": row.tile_sets,
            **{name: f"{row.counts.get(name, 0):g}" for name in COUNTS},
            "forward_us": f"{row.best[0]:.1f}", "backward_us": f"{row.best[1]:.1f}",
        }
        for row in rows
    ]  # fmt: skip
    write_csv(arguments.out / "fit_cost_model.csv", table)
    print(as_json(parts))
    del rows
    write_csv(arguments.out / "cost_check.csv", check(rounds, threads))
    if not arguments.dry_run:
        MODEL.write_text(as_json(stored) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
