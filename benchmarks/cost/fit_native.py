"""Fit the cost model's constants for the CPU kernels, and dense attention beside them.

    python -m benchmarks.cost.fit_native             # measure, fit, write constants.json
    python -m benchmarks.cost.fit_native --dry-run   # measure and fit only
    python -m benchmarks.cost.fit_native --rounds 1 --threads 1 --dry-run  # to try the script
    python -m benchmarks.cost.fit_native --fit-only  # to the committed rows

Each instruction set that the machine has is measured in a process of its own: the covers of
`native_covers` and dense attention, with D of 32, 64 and 128, one thread or two, fp32, forward
(without gradients) and backward. Times are the least of several rounds over all calls: with one
thread the CPU time of that thread, which other work on the machine disturbs little; with two the
time that passes, so let the machine be idle.

Dense attention is measured once for each set, as it is where that set is the best there is: beside
"avx512" MKL is told to use AVX-512 on AMD, too, as it does by itself on Intel; beside the others
torch is told to use no more than AVX2. So a plan that is made by the constants alone takes dense
attention for as fast as it can be. What it is as shipped on AMD is measured beside it, and where
calibration (`sparsebert.calibration`) is on, plans go by that.

Rows and provenance go to benchmarks/results/fit_native.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparsebert
from benchmarks.cost.fitting import (
    NATIVE_COUNTS,
    NATIVE_TERMS,
    FittedPass,
    MeasuredCall,
    as_json,
    dense_counts,
    fit_constants,
)
from benchmarks.cost.native_covers import (
    BACKEND,
    HEADS,
    HEIGHT,
    TARGET,
    Covered,
    compiled,
    covers,
)
from benchmarks.cost.timed_calls import THREADS, least
from benchmarks.harness import mkl
from benchmarks.harness.named_masks import learned_looking
from benchmarks.harness.options import positive
from benchmarks.harness.origin import COLUMNS, RESULTS, origin
from benchmarks.harness.rows import RowFile
from sparsebert import calibration, patterns
from sparsebert.compiler.cost import constants
from sparsebert.compiler.cost.model import cost_model
from sparsebert.kernels.cpu import library
from sparsebert.machine import current_load
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan

CONSTANTS = Path(constants.__file__).with_name("constants.json")
ROWS = RESULTS / "fit_native.csv"
DIMS = (32, 64, 128)
MARGINS = {"avx512": 0.9, "avx2": 0.9}
"""Where full tiles take no longer than dense attention, forward and backward, dense attention is
no safer a choice: it has to take the mask, too, and the plan's way to it costs 10 us. Else 1."""
ROUNDS = 4
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
AS_SHIPPED, AVX512, AVX2 = "as shipped", "avx512", "avx2"
"""What torch and MKL use for dense attention."""
CALIBRATION = "calibration"
"""The route of rows that hold what the calls of a calibration take."""

Passes = tuple[Callable[[], object], ...]


def passes_of(plan: AttentionPlan, backend: str, head_dim: int) -> Passes:
    """The forward pass without gradients, and the backward pass of a call, to be timed."""
    q, k, v, grad = _tensors(plan.q_len, head_dim)

    def forward() -> torch.Tensor:
        return sparsebert.sparse_attention(q, k, v, plan, backend=backend)

    x, y, z = (each.detach().requires_grad_() for each in (q, k, v))
    o = sparsebert.sparse_attention(x, y, z, plan, backend=backend)
    return forward, lambda: torch.autograd.grad(o, (x, y, z), grad, retain_graph=True)


@functools.lru_cache(maxsize=64)
def _tensors(length: int, head_dim: int) -> tuple[torch.Tensor, ...]:
    """q, k, v and the gradient of o, in the memory order of models."""
    return torch.randn(4, 1, length, HEADS, head_dim).transpose(2, 3).unbind(0)


def tile_calls(found: list[Covered], head_dim: int) -> Iterator[MeasuredCall]:
    """Calls of the CPU kernels; the counts are those of the forward pass."""
    for covered in found:
        timed = passes_of(covered.plan, BACKEND, head_dim)
        yield _call("tiles", covered.name, covered.plan, head_dim, covered.counts(head_dim), timed)


def mixed_calls(head_dim: int) -> Iterator[MeasuredCall]:
    """Calls with half of the heads in the kernels and half dense."""
    for length in (128, 512):
        heads = [patterns.sliding_window(length, 2 + width) for width in range(HEADS)]
        covered = compiled("", AttentionMask.stack_heads(heads), np.arange(HEADS) % 2 == 1)
        counts = covered.counts(head_dim) | dense_counts(length, HEADS // 2, masked=True)
        plan = covered.plan
        timed = passes_of(plan, "auto", head_dim)
        yield _call("mixed", f"half of {HEADS} heads dense", plan, head_dim, counts, timed)


def dense_calls(head_dim: int) -> Iterator[MeasuredCall]:
    """Dense attention with a mask of one head, with twelve, and without one."""
    for length in LENGTHS:
        masks = {"one mask": patterns.longformer(length), "no mask": patterns.dense(length)}
        if length in (128, 512):
            heads = [learned_looking(length, seed) for seed in range(HEADS)]
            masks[f"{HEADS} masks"] = AttentionMask.stack_heads(heads)
        for name, mask in masks.items():
            plan = sparsebert.compile_plan(mask, target=TARGET, objective="area")
            counts = dense_counts(length, mask.num_heads, masked=name != "no mask")
            timed = passes_of(plan, "dense", head_dim)
            yield _call("dense", name, plan, head_dim, counts, timed)


def _call(
    route: str,
    name: str,
    plan: AttentionPlan,
    head_dim: int,
    counts: dict[str, float],
    timed: Passes,
) -> MeasuredCall:
    best = np.full(2, np.inf)
    sets = plan.num_heads if plan.head_map.any() else 1
    return MeasuredCall(route, name, plan.q_len, head_dim, 1, HEADS, sets, counts, timed, best)


def calibration_calls(rounds: int, thread_counts: Sequence[int]) -> Iterator[MeasuredCall]:
    """What the calls of a calibration take here, as the forward time."""
    for threads in thread_counts:
        torch.set_num_threads(threads)
        timed = calibration.timed_calls(BACKEND, threads)
        best = dict.fromkeys(timed, np.inf)
        for _ in range(rounds):
            for name, call in timed.items():
                best[name] = min(best[name], least(call.run))
        for name, us in best.items():
            times = np.array([us, 0.0])
            yield MeasuredCall(
                CALIBRATION, name, 0, calibration.DIM, threads, HEADS, 1, {}, (), times
            )


def measure(rounds: int, thread_counts: Sequence[int], *, dense_only: bool) -> list[MeasuredCall]:
    """All calls of this process's instruction set, with each number of threads in turn."""
    measured: list[MeasuredCall] = (
        [] if dense_only else list(calibration_calls(rounds, thread_counts))
    )
    found = [] if dense_only else list(covers())
    for head_dim in DIMS:
        kinds = [] if dense_only else [*tile_calls(found, head_dim), *mixed_calls(head_dim)]
        calls = [*kinds, *dense_calls(head_dim)]
        best = {n: [np.full(2, np.inf) for _ in calls] for n in thread_counts}
        for _ in range(rounds):
            for threads in thread_counts:
                torch.set_num_threads(threads)
                for call, times in zip(calls, best[threads], strict=True):
                    np.minimum(times, [least(timed) for timed in call.passes], out=times)
        _tensors.cache_clear()
        for threads, found_times in best.items():
            measured += [
                dataclasses.replace(call, threads=threads, best=times, passes=())
                for call, times in zip(calls, found_times, strict=True)
            ]
    return measured


def worker(isa: str, dense: str, rounds: int, threads: Sequence[int], out: Path) -> None:
    """Measure one instruction set and write its rows."""
    torch.manual_seed(0)
    assert library.load().isa == isa
    measured = measure(rounds, threads, dense_only=dense == AS_SHIPPED)
    rows = [{"isa": isa, "dense is": dense, **call.as_row(NATIVE_COUNTS)} for call in measured]
    RowFile(out, rows[0]).write(rows)


def run_worker(isa: str, dense: str, rounds: int, threads: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of one instruction set, measured in a process of its own."""
    mode = mkl.AVX512 if dense == AVX512 else mkl.STOCK
    with tempfile.TemporaryDirectory() as folder, mkl.environment(mode) as of_mode:
        environment = {**of_mode, library.VARIABLE: isa, calibration.VARIABLE: "0"}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment.pop(name, None)
        if dense == AVX2:
            environment["ATEN_CPU_CAPABILITY"] = "avx2"
        out = Path(folder) / "rows.csv"
        command = [sys.executable, "-m", "benchmarks.cost.fit_native", "--worker", isa, dense]
        command += [str(out), "--rounds", str(rounds), "--threads", *map(str, threads)]
        subprocess.run(command, env=environment, check=True)
        return read_rows(out)


def read_rows(path: Path = ROWS) -> list[dict[str, Any]]:
    """The rows of a file that this script wrote."""
    columns = ["isa", "dense is", *NATIVE_COUNTS, "forward_us", "backward_us"]
    return RowFile(path, columns, made_by="benchmarks.cost.fit_native").read()


def fit_rows(
    rows: list[dict[str, Any]], isa: str
) -> tuple[dict[str, FittedPass], dict[str, float]]:
    """The constants of an instruction set, and what dense attention as shipped takes of the time
    that was measured beside it, by pass: the median; {} if that was not measured.
    """
    calls = [
        MeasuredCall.from_row(row, NATIVE_COUNTS)
        for row in rows
        if row["isa"] == isa and row["dense is"] != AS_SHIPPED and row["route"] != CALIBRATION
    ]
    passes, _ = fit_constants(calls, NATIVE_TERMS, (HEIGHT,))
    of_isa = [row for row in rows if row["isa"] == isa and row["route"] == "dense"]
    beside = {_key(row): row for row in of_isa if row["dense is"] != AS_SHIPPED}
    times: dict[str, list[float]] = {}
    for row in of_isa:
        if row["dense is"] == AS_SHIPPED:
            fast = beside[_key(row)]
            for which in passes:
                name = f"{which}_us"
                times.setdefault(which, []).append(float(row[name]) / float(fast[name]))
    return passes, {which: float(np.median(found)) for which, found in times.items()}


def reference(rows: list[dict[str, Any]], isa: str) -> dict[str, float]:
    """What the calls of a calibration take over what the constants say, mean over the threads."""
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row["isa"] == isa and row["route"] == CALIBRATION:
            calls = calibration.timed_calls(BACKEND, int(row["threads used"]), isa)
            predicted = sum(calls[row["mask"]].parts.values())
            ratios.setdefault(row["mask"], []).append(float(row["forward_us"]) / predicted)
    return {name: float(f"{np.mean(found):.3g}") for name, found in ratios.items()}


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("mask", "N", "D", "threads used"))


def update(stored: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Fit, say how well, and put the constants and their source into constants.json's values."""
    entries = stored["tiles"][BACKEND][TARGET]["isa"]
    for isa in dict.fromkeys(row["isa"] for row in rows):
        passes, shipped = fit_rows(rows, isa)
        for which, found in passes.items():
            unused = {name: {"once": [0.0, 0.0]} for name in ("shape", "level")}
            entries[isa][which] = {**unused, **found.terms["tiles"], **found.terms["dense"]}
            for route, errors in sorted(found.errors.items()):
                middle, most = np.quantile(np.abs(errors), [0.5, 0.9])
                print(
                    f"{isa}, {which}, {route}: relative error, median {middle:.0%}, 90 % below "
                    f"{most:.0%}"
                )
        about = next(row for row in rows if row["isa"] == isa and row["dense is"] != AS_SHIPPED)
        where = ", ".join(f"{name} {about[name]}" for name in COLUMNS)
        threads = tuple(sorted({int(row["threads used"]) for row in rows}))
        slower = f" (as shipped {shipped['forward']:.2f} times as long)" if shipped else ""
        entries[isa]["margin"] = MARGINS.get(isa, 1.0)
        cost_model.cache_clear()  # what is predicted from here on is by the new constants
        entries[isa]["reference"] = reference(rows, isa)
        entries[isa]["source"] = (
            f"fitted by benchmarks/cost/fit_native.py, {isa}, fp32, D = {DIMS}, "
            f"threads {threads}, "
            f"dense attention with {about['dense is'].upper()}{slower}: {where}"
        )


def main() -> None:
    """Measure, fit, report, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost.fit_native",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="do not write constants.json")
    parser.add_argument("--fit-only", action="store_true", help="fit the rows that are there")
    parser.add_argument("--rounds", type=positive, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument(
        "--threads", type=positive, nargs="+", default=THREADS, help="default: 1 2"
    )
    parser.add_argument("--isa", nargs="+", help="these instruction sets alone")
    parser.add_argument("--out", type=Path, default=ROWS, help="file of the rows")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        isa, dense, out = arguments.worker
        worker(isa, dense, arguments.rounds, arguments.threads, Path(out))
        return
    if arguments.fit_only:
        rows = read_rows(arguments.out)
    else:
        print(current_load(), flush=True)
        rows = []
        for isa in arguments.isa or library.load().isas:
            kinds = (AVX512, AS_SHIPPED) if isa == AVX512 else (AVX2,)
            for dense in kinds:
                rows += run_worker(isa, dense, arguments.rounds, arguments.threads)
                print(f"{isa}, dense attention {dense}: measured", flush=True)
        about = origin("cpu")
        rows = [{**row, **about} for row in rows]
        RowFile(arguments.out, rows[0]).write(rows)
    stored = constants.stored()
    update(stored, rows)
    if not arguments.dry_run:
        CONSTANTS.write_text(as_json(stored) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
