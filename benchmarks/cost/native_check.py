"""Check the plans for the CPU kernels on masks that the fit has not seen.

    python -m benchmarks.cost.native_check                 # by the constants alone
    python -m benchmarks.cost.native_check --calibrated    # by this machine's calibration
    python -m benchmarks.cost.native_check --threads 1     # on a busy machine

For each mask what its plan takes beside what was predicted, and beside torch's attention with the
mask and without any, as shipped and, on AMD, with MKL told to use AVX-512
(`benchmarks.harness.mkl`), in a process each. A plan should have 0.95 times their speed or more.
Some calls have a padded batch besides: a key mask that hides the last fifth.

Forward passes, fp32, B = 1, H = 12. Times are the least of rounds over all routes of a case. Rows
and provenance go to benchmarks/results/native_check.csv.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

import sparsebert
from benchmarks.cost.native_covers import BACKEND
from benchmarks.cost.timed_calls import THREADS, least
from benchmarks.harness import mkl
from benchmarks.harness.named_masks import learned_looking
from benchmarks.harness.options import positive
from benchmarks.harness.origin import RESULTS, origin
from benchmarks.harness.rows import RowFile
from sparsebert import patterns
from sparsebert.calibration import VARIABLE
from sparsebert.compiler.report import PlanReport
from sparsebert.masks import AttentionMask

HEADS, ROUNDS = 12, 3
OUT = RESULTS / "native_check.csv"
LEAST_RATIO = 0.95
"""The plan's speed over the fastest of torch's attentions should be no less."""

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9)
LENGTHS = (32, 50, 96, 200, 384, 768)
LONG = (1536, 4096)


def cases() -> Iterator[tuple[str, AttentionMask, int, bool]]:
    """Name, mask, D and whether the call is padded: other lengths and seeds than in the fit."""
    for length in (*LENGTHS, *LONG):
        for density in (0.02, 0.3, 0.6) if length in LONG else DENSITIES:
            for dim in (64,) if length > LENGTHS[-3] else (32, 64, 128):
                mask = patterns.random(length, density, seed=11)
                yield f"random {density:g}", mask, dim, False
        yield "no diagonal", patterns.dense(length).without_diagonal(), 64, False
        yield "causal", patterns.causal(length), 64, False
        for share in (32, 8, 3):
            yield f"band {share}", patterns.sliding_window(length, length // share), 64, False
        named = {
            "star": patterns.star(length),
            "longformer": patterns.longformer(length, max(5, length // 64), 2),
            "strided": patterns.strided(length, math.isqrt(length)),
            "log_sparse": patterns.log_sparse(length),
            "bigbird": patterns.bigbird(length, max(1, length // 256), 2, max(2, length // 256)),
            "learned-looking": learned_looking(length, 77),
        }
        for name, mask in named.items():
            yield name, mask, 64, False
        if length <= LENGTHS[-1]:
            for name in ("longformer", "learned-looking"):
                yield name, named[name], 64, True
            yield "random 0.5", patterns.random(length, 0.5, seed=3), 64, True
            heads = [learned_looking(length, 100 + seed) for seed in range(HEADS)]
            yield f"learned-looking, {HEADS} heads", AttentionMask.stack_heads(heads), 64, False


def measure_case(
    name: str, mask: AttentionMask, head_dim: int, padded: bool, threads: int
) -> dict[str, object]:
    """One row."""
    plan = sparsebert.compile_plan(mask, target="cpu", head_dim=head_dim, copies=HEADS)
    q, k, v = torch.randn(3, 1, mask.q_len, HEADS, head_dim).transpose(2, 3).unbind(0)
    key_mask = None
    every = mask.dense()
    if padded:
        key_mask = torch.arange(mask.kv_len)[None] < mask.kv_len * 4 // 5
        every = every & key_mask[:, None, None, :]
    routes: dict[str, Callable[[], object]] = {
        "plan": lambda: sparsebert.sparse_attention(q, k, v, plan, key_mask=key_mask),
        "tiles": lambda: sparsebert.sparse_attention(
            q, k, v, plan, key_mask=key_mask, backend=BACKEND
        ),
        "masked": lambda: scaled_dot_product_attention(q, k, v, attn_mask=every),
        "dense": lambda: scaled_dot_product_attention(q, k, v),
    }
    best = dict.fromkeys(routes, math.inf)
    for _ in range(ROUNDS):
        for route, call in routes.items():
            best[route] = min(best[route], least(call))
    report = plan.explain()
    return {
        "mask": name, "N": mask.q_len, "D": head_dim, "threads used": threads,
        "padded": "yes" if padded else "no", "density": f"{report.density:.4f}",
        "choice": "dense" if plan.dense_heads.all() else "tiles",
        "predicted_us": f"{report.predicted_us * report.copies:.1f}",
        "predicted_tiles_us": f"{_tiles_us(report) * report.copies:.1f}",
        "predicted_dense_us": f"{report.dense_us * report.copies:.1f}",
        **{f"{route}_us": f"{us:.1f}" for route, us in best.items()},
    }  # fmt: skip


def _tiles_us(report: PlanReport) -> float:
    """The forward time that is predicted for the tiles, of all heads where all are alike."""
    (head, *_) = report.per_head
    return head.tried[0][1] if head.route == "dense" and head.tried else report.predicted_us


def worker(mode: str, threads: Sequence[int], out: Path) -> None:
    """All cases in this process."""
    torch.manual_seed(0)
    rows: list[dict[str, object]] = []
    with torch.no_grad():
        for name, mask, head_dim, padded in cases():
            for count in threads:
                torch.set_num_threads(count)
                rows.append({"MKL": mode, **measure_case(name, mask, head_dim, padded, count)})
    RowFile(out, rows[0]).write(rows)


def summarise(rows: Sequence[dict[str, Any]]) -> None:
    """Print how far predictions are off, and where a plan loses to torch's attention."""

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name]) for row in rows])

    taken = column("plan_us")
    tiled = np.array([row["choice"] == "tiles" and row["padded"] == "no" for row in rows])
    errors = np.abs(column("predicted_us") / taken - 1.0)
    for label, chosen in (("tiles", tiled), ("dense", ~tiled)):
        if chosen.any():
            middle, most = np.quantile(errors[chosen], [0.5, 0.9])
            print(
                f"{label}: {chosen.sum()} cases, off by {middle:.0%} (median), 90 % < {most:.0%}"
            )
    rivals = np.minimum(column("dense_us"), column("masked_us"))
    for label, other in (("with the mask", column("masked_us")), ("at its best", rivals)):
        ratio = other / taken
        print(
            f"torch's attention {label} over the plan: {np.exp(np.log(ratio).mean()):.2f}x "
            f"(geometric mean), at worst {ratio.min():.2f}x; below {LEAST_RATIO} in "
            f"{(ratio < LEAST_RATIO).sum()} of {len(rows)}"
        )
        for index in np.argsort(ratio)[: min(25, int((ratio < LEAST_RATIO).sum()))]:
            row = rows[index]
            told = (row[name] for name in ("MKL", "mask", "N", "D", "threads used", "choice"))
            print(f"  {ratio[index]:.2f}x", *told, "padded" if row["padded"] == "yes" else "")


def main() -> None:
    """Measure both kinds of rivals, report, and write the rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost.native_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--calibrated", action="store_true", help="plans go by calibration")
    parser.add_argument(
        "--threads", type=positive, nargs="+", default=THREADS, help="default: 1 2"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="file of the rows")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        mode, out = arguments.worker
        worker(mode, arguments.threads, Path(out))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.csv"
        for mode in mkl.MODES:
            command = [sys.executable, "-m", "benchmarks.cost.native_check", "--worker", mode]
            command += [str(out), "--threads", *map(str, arguments.threads)]
            with mkl.environment(mode) as variables:
                environment = {**variables, VARIABLE: "1" if arguments.calibrated else "0"}
                subprocess.run(command, env=environment, check=True)
            rows += RowFile(out, ["MKL"]).read()
            print(f"{mkl.WORDS[mode]}:")
            summarise([row for row in rows if row["MKL"] == mode])
    about = origin("cpu")
    RowFile(arguments.out, rows[0], origin=about).write(rows)


if __name__ == "__main__":
    main()
