"""Fit the cost model's constants for the CPU to measurements of the torch executor.

    python -m benchmarks.fit_cost_model            # measure, fit, and write cost_model.json
    python -m benchmarks.fit_cost_model --dry-run  # measure and fit only

Each row is one mask in tiles of one height, or dense, at B = 1, H = 12, D = 64, fp32, forward and
backward. Times are the least of several rounds over all rows, in CPU time of a single thread, so
that other work on the machine disturbs them little; the model only compares routes, and these
scale alike with threads. Constants are fitted by least squares of the relative error, none of
them negative.
Rows and provenance go to benchmarks/results/fit_cost_model.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import sparsebert
from benchmarks.measure import RESULTS, provenance
from sparsebert import patterns
from sparsebert.compiler import compile_plan, cost
from sparsebert.compiler.account import tiles_of_head
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from sparsebert.tiles import TileGroup, TileSet, build_tile_set

HEADS, DIM, ROUNDS, REPEATS = 12, 64, 5, 2
TERMS = ("call", "shape", "tile", "row", "column", "entry", "merge")
DENSE_TERMS = ("dense_call", "dense_entry")
MODEL = Path(cost.__file__).with_name("cost_model.json")


def gathered_blocks(length: int, rows: int, columns: int) -> AttentionMask:
    """Every `rows` rows share `columns` random columns and attend to most of them."""
    rng = np.random.default_rng(0)
    mask = np.zeros((length, length), dtype=bool)
    for first in range(0, length, rows):
        chosen = rng.choice(length, columns, replace=False)
        mask[first : first + rows, chosen] = rng.random((rows, columns)) < 0.7
    return AttentionMask.from_dense(mask)


def plans() -> Iterator[tuple[str, AttentionPlan]]:
    """Plans of many shapes: one tile shape, several, and rows in several tiles."""
    for length, rows, columns in (
        (64, 16, 16), (64, 64, 48), (128, 16, 16), (128, 16, 32), (128, 32, 64), (128, 64, 64),
        (128, 128, 96), (256, 16, 32), (256, 16, 64), (256, 64, 128), (512, 16, 16),
        (512, 16, 128), (512, 32, 64), (512, 64, 64), (512, 128, 256), (1024, 16, 64),
        (1024, 32, 256), (1024, 64, 32), (1024, 64, 256), (1024, 128, 128), (1024, 128, 512),
        (1024, 16, 256), (1024, 4, 64), (1024, 8, 32), (1024, 16, 512), (1024, 32, 640),
        (2048, 16, 640), (2048, 64, 1024),
    ):  # fmt: skip
        mask = gathered_blocks(length, rows, columns)
        yield f"blocks {rows} x {columns}", _in_order(mask, max(16, rows), rows)
    for length in (128, 256, 512, 1024):
        for name in ("star", "longformer", "sliding_window"):
            mask = patterns.build(name, length)
            for height in (16, 64):
                yield f"{name}, {height} rows", _in_order(mask, height, height)
        for mask in (
            patterns.strided(length, 16),
            patterns.log_sparse(length),
            patterns.bigbird(length),
            patterns.neighborhood_2d(length // 16, 16),
            patterns.causal(length),
        ):
            name = f"{mask.provenance['pattern']}, compiled"
            yield name, compile_plan(mask, objective="area", target="cpu")


def _in_order(mask: AttentionMask, height: int, rows: int) -> AttentionPlan:
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


def features(tiles: TileSet) -> list[float]:
    """What the model counts, in the order of `TERMS`, per head."""
    found = tiles_of_head(tiles, 0)
    rows = np.concatenate([t.real_rows for t in found])
    width = np.concatenate([t.padded for t in found])
    covered = np.unique(np.concatenate([t.rows[t.rows >= 0] for t in found]))
    shapes = cost.count_shapes(found)
    merged = rows.sum() - len(covered)
    columns = width.sum()
    return [1.0, shapes, len(rows), rows.sum(), columns, (rows * width).sum(), merged]


def calls(plan: AttentionPlan, backend: str) -> tuple[Callable[[], object], ...]:
    """The forward and the backward pass of a call, to be timed."""
    q, k, v, grad = torch.randn(4, 1, plan.q_len, HEADS, DIM).transpose(2, 3).unbind(0)
    q, k, v = (x.requires_grad_() for x in (q, k, v))

    def forward() -> torch.Tensor:
        return sparsebert.sparse_attention(q, k, v, plan, backend=backend)

    o = forward()
    return forward, lambda: torch.autograd.grad(o, (q, k, v), grad, retain_graph=True)


def least(call: Callable[[], object]) -> float:
    """Least CPU time of this thread, in microseconds."""
    call()
    times = []
    for _ in range(REPEATS):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times) * 1e6


def fit(matrix: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative constants with the least relative error, and the relative errors."""
    scaled = matrix / times[:, None]
    used = np.ones(matrix.shape[1], dtype=bool)
    while True:
        constants = np.zeros(matrix.shape[1])
        constants[used] = np.linalg.lstsq(scaled[:, used], np.ones(len(times)), rcond=None)[0]
        if (constants >= 0).all():
            return constants, scaled @ constants - 1.0
        used[constants.argmin()] = False


def main() -> None:
    """Measure, fit, report, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="do not write cost_model.json")
    dry_run = parser.parse_args().dry_run
    torch.set_num_threads(1)
    torch.manual_seed(0)

    described, timed = [], []
    for name, plan in plans():
        described.append(("tiles", name, plan.q_len, *features(plan.tiles)))
        timed.append(calls(plan, "torch"))
    for length in (64, 128, 256, 512, 1024, 2048):
        plan = compile_plan(patterns.longformer(length), target="cpu", objective="area")
        described.append(("dense", "dense", length, *[0.0] * len(TERMS)))
        timed.append(calls(plan, "dense"))
    best = np.full((len(timed), 2), np.inf)
    for done in range(ROUNDS):
        found = [[least(call) / HEADS for call in pair] for pair in timed]
        best = np.minimum(best, found)
        print(f"round {done + 1} of {ROUNDS}", flush=True)
    rows = [(*what, *times) for what, times in zip(described, best.tolist(), strict=True)]

    constants: dict[str, dict[str, object]] = {}
    for column, which in ((-2, "forward"), (-1, "backward")):
        tiled = np.array([row[3:] for row in rows if row[0] == "tiles"], dtype=np.float64)
        fitted, errors = fit(tiled[:, : len(TERMS)], tiled[:, column])
        constants[which] = dict(zip(TERMS, fitted, strict=True))
        dense = [(1.0, row[2] ** 2, row[column]) for row in rows if row[0] == "dense"]
        array = np.array(dense, dtype=np.float64)
        dense_fitted, dense_errors = fit(array[:, :2], array[:, 2])
        constants[which] |= dict(zip(DENSE_TERMS, dense_fitted, strict=True))
        for label, error in (("tiles", errors), ("dense", dense_errors)):
            low, high = np.quantile(np.abs(error), [0.5, 0.9])
            print(f"{which}, {label}: relative error, median {low:.0%}, 90 % below {high:.0%}")
    print(json.dumps(constants, indent=2))
    where = provenance()
    with (RESULTS / "fit_cost_model.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("route", "mask", "N", *TERMS, "forward_us", "backward_us", *where))
        writer.writerows((*_rounded(row), *where.values()) for row in rows)
    if not dry_run:
        write(constants, where)


def _rounded(row: tuple[object, ...]) -> list[object]:
    return [round(x, 1) if isinstance(x, float) else x for x in row]


def write(constants: dict[str, dict[str, object]], where: dict[str, str]) -> None:
    """Replace the CPU's constants in cost_model.json."""
    models = json.loads(MODEL.read_text())
    source = ", ".join(f"{name} {value}" for name, value in where.items())
    models["cpu"]["source"] = f"fitted by benchmarks/fit_cost_model.py, fp32, D = 64: {source}"
    for which, fitted in constants.items():
        values = {name: float(f"{value:.3g}") for name, value in fitted.items()}
        values["entry"] = dict.fromkeys(models["cpu"][which]["entry"], values["entry"])
        models["cpu"][which] |= values
    MODEL.write_text(json.dumps(models, indent=2) + "\n")


if __name__ == "__main__":
    main()
