"""Check the cost model on masks that the fit has not seen: predictions, and the choice they make.

    python -m benchmarks.cost.cost_check     # with the constants in constants.json

For each mask, head size and number of threads: what the plan chose, what it and the two routes
took, and what was predicted. A choice is right if no route is faster by more than `TOLERANCE`.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

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
from benchmarks.harness.named_masks import learned_looking, permuted_blocks
from benchmarks.harness.origin import RESULTS
from sparsebert import patterns
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan, compile_for_backend

DIMS = (32, 64, 96)
TOLERANCE = 1.05
ROUTES = ("auto", "torch", "dense")


def masks() -> Iterator[tuple[str, AttentionMask]]:
    """Lengths, patterns and seeds that are not among the fitted ones."""
    for length in (192, 400, 768):
        heads = [learned_looking(length, 50 + seed) for seed in range(HEADS)]
        yield "learned-looking, 12 heads", AttentionMask.stack_heads(heads)
        yield "learned-looking", learned_looking(length, 99)
        yield "strided", patterns.strided(length, math.isqrt(length))
        yield "star", patterns.star(length)
        yield "longformer(8, 2)", patterns.longformer(length, 8, 2)
        yield "dilated_window(8, 4)", patterns.dilated_window(length, 8, 4)
        yield "permuted blocks", permuted_blocks(length, 32)
        yield "random 10 %", patterns.random(length, 0.1)
        half = [patterns.sliding_window(length, 8), patterns.random(length, 0.2)]
        yield "windows and random heads", AttentionMask.stack_heads(half * (HEADS // 2))


def measure_case(
    name: str, plan: AttentionPlan, head_dim: int, threads: int, rounds: int
) -> dict[str, object]:
    """One row: times in microseconds a call, of the forward pass and of both passes."""
    timed = {route: forward_and_backward(plan, route, head_dim) for route in ROUTES}
    best = {route: np.full(2, np.inf) for route in ROUTES}
    for _ in range(rounds):
        for route in ROUTES:
            found = [least(call) for call in timed[route]]
            best[route] = np.minimum(best[route], found)
    report = plan.explain()
    tiled = [head for head in report.per_head if head.route == "tiles"]
    choice = "dense" if not tiled else "tiles" if len(tiled) == len(report.per_head) else "both"
    row: dict[str, object] = {
        "mask": name, "N": plan.q_len, "D": head_dim, "threads used": threads, "choice": choice,
        "predicted_us": f"{report.predicted_us * report.copies:.1f}",
        "predicted_dense_us": f"{report.dense_us * report.copies:.1f}",
    }  # fmt: skip
    for route, label in zip(ROUTES, ("plan", "tiles", "dense"), strict=True):
        row[f"{label}_us"] = f"{best[route][0]:.1f}"
        row[f"{label}_step_us"] = f"{best[route].sum():.1f}"
    return row


def check(rounds: int, thread_counts: Sequence[int]) -> list[dict[str, object]]:
    """Measure all cases, print how well the model did, and return the rows."""
    rows = []
    for head_dim, threads, (name, mask) in itertools.product(DIMS, thread_counts, masks()):
        torch.set_num_threads(threads)
        plan = compile_for_backend(mask, BACKEND, target=TARGET, head_dim=head_dim, copies=HEADS)
        rows.append(measure_case(name, plan, head_dim, threads, rounds))
    summarise(rows)
    return rows


def summarise(rows: list[dict[str, object]]) -> None:
    """Print errors of the predictions, and how often the choice was right."""

    def column(name: str) -> np.ndarray:
        return np.array([float(str(row[name])) for row in rows])

    tiled = np.array([row["choice"] != "dense" for row in rows])
    for label, errors in (
        ("tiles", (column("predicted_us") / column("plan_us") - 1.0)[tiled]),
        ("dense", column("predicted_dense_us") / column("dense_us") - 1.0),
    ):
        if len(errors):
            middle, most = np.quantile(np.abs(errors), [0.5, 0.9])
            print(f"unseen masks, {label}: error, median {middle:.0%}, 90 % below {most:.0%}")
    for label in ("", "step_"):
        plan, dense = column(f"plan_{label}us"), column(f"dense_{label}us")
        fastest = np.minimum(column(f"tiles_{label}us"), dense)
        # Where the plan runs dense its time is that of the dense route, but for the noise.
        taken = np.where(tiled, plan, dense)
        ratio = taken / fastest
        right = ratio <= TOLERANCE
        what = "forward" if not label else "forward + backward"
        lost = (taken > TOLERANCE * dense).sum()
        print(
            f"{what}: the right choice in {right.sum()} of {len(rows)} cases; slower than dense "
            f"in {lost}, at worst {np.max(taken / dense):.2f}x its time; a wrong choice took "
            + (f"{np.median(ratio[~right]):.2f}x (median), " if (~right).any() else "")
            + f"at worst {ratio.max():.2f}x the time of the faster route; against always dense "
            f"{np.exp(np.mean(np.log(dense / taken))):.2f}x faster (geometric mean)"
        )


def main() -> None:
    """Check the constants at hand and write the rows."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.cost.cost_check", description=(__doc__ or "").splitlines()[0]
    ).parse_args()
    write_csv(RESULTS / "cost_check.csv", check(ROUNDS, THREADS))


if __name__ == "__main__":
    main()
