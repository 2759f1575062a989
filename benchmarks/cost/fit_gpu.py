"""Set the cost model's constants for GPUs by the timing model, since no GPU is at hand to measure.

    python -m benchmarks.cost.fit_gpu --count    # compile the kernels, keep what they take
    python -m benchmarks.cost.fit_gpu            # fit, say how well, write constants.json
    python -m benchmarks.cost.fit_gpu --dry-run  # without writing

The timing model (`benchmarks.predictions.launch_model`) predicts calls over many covers
(`benchmarks.cost.gpu_covers`) on each target, with the kernels as the compiler makes them for it,
D = 64 and 128 in bf16. What tiles and waiting cost is fitted to these predictions, to the least
relative error, and what moves through HBM and what launches take goes in as it is. Then each term
is left out in turn, and the rest fitted again: what it is worth. The backward pass is priced over
the tiles of the forward pass, as if the mask were symmetric.

Nothing of it was measured. Results: benchmarks/results/fit_gpu_counts.csv, what the kernels take,
and fit_gpu.csv, the errors against the timing model with all terms and without each.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks.cost.fit_cost_model import CONSTANTS
from benchmarks.cost.fitting import as_json
from benchmarks.cost.gpu_covers import Covered, covers
from benchmarks.harness.options import positive
from benchmarks.harness.origin import RESULTS, origin
from benchmarks.harness.rows import Row, RowFile
from benchmarks.kernels.compiled_rows import kernels_fingerprint
from benchmarks.predictions.call_model import (
    Side,
    backward_seconds,
    call_of,
    forward_seconds,
    kernel_times,
    side_of,
)
from benchmarks.predictions.gpu_machines import BY_ARCH, Machine
from benchmarks.predictions.kernel_counts import CURRENT, NOW, current_counts
from sparsebert.compiler.cost import constants
from sparsebert.compiler.cost.launches import LaunchCounts, count_launches
from sparsebert.compiler.pieces import all_tiles
from sparsebert.tiles.format import HEIGHTS

DIMS = (64, 128)
COPIES = (12, 96, 384)
STEP = 64
"""Columns of a step of the kernels, without a key mask."""

ERRORS = RESULTS / "fit_gpu.csv"
PASSES = ("forward", "backward")
KERNELS_OF_PASS = (1, 2)
LEFT_OUT = ("nothing", "whole steps", "launches", "waiting for the longest tile", "chaining")

_MOST_ROWS = 384 * 4096  # of a call, batch x heads x N
_BYTES = {"floor_row": (4.0, 12.0), "chain": (2.0, 6.0), "merge": (7.0, 21.0)}
"""Bytes for each element of a row in 16 bits, forward and backward, by term: q and o, or k and v;
the result of the first tile read again; a result in fp32, written, read and written out."""
_DENSE = (1, 3)  # launches of dense attention
_DENSE_WAITS = 2.0  # us of each until its last program is done
_FREE = ("tile", "row", "column", *map(str, HEIGHTS), "wait", "wait_column")


@dataclasses.dataclass(frozen=True)
class Cases:
    """Calls of one pass on one target, in columns, and what the timing model says.

    Attributes:
        us: predicted microseconds, float64 [C].
        copies, kv_len: of each call.
        merges: results of each that go to scratch.
        case: which call each launch belongs to, int64 [L].
        launch: its counts, int64 [L, 8], as `LaunchCounts`.
    """

    us: np.ndarray
    copies: np.ndarray
    kv_len: np.ndarray
    merges: np.ndarray
    case: np.ndarray
    launch: np.ndarray


@functools.cache
def _covered() -> list[tuple[Covered, Side, list[LaunchCounts], int]]:
    found = []
    for each in covers():
        launches, merges = count_launches(all_tiles(each.pieces), each.n, STEP)
        side = side_of(each.tiles, chained=NOW.chained)
        found.append((each, side, launches, merges))
    return found


def cases(machine: Machine, dim: int) -> tuple[Cases, Cases]:
    """All calls with heads of one size, forward and backward."""
    counts = current_counts(machine.arch, dim)
    us, copies_of, lengths, merged, case, launch = [], [], [], [], [], []
    for each, side, launches, merges in _covered():
        for copies in COPIES:
            if copies * each.n > _MOST_ROWS:
                continue
            call = call_of(machine, copies, each.n, each.n, dim)
            found = kernel_times((side, side), (each.n, each.n), counts, NOW, machine, call)
            case += [len(us)] * len(launches)
            launch += launches
            us.append((1e6 * forward_seconds(found), 1e6 * backward_seconds(found)))
            copies_of.append(copies)
            lengths.append(each.n)
            merged.append(merges)
    shared = map(np.array, (copies_of, lengths, merged, case, launch))
    times, columns = np.array(us), list(shared)
    forward, backward = (Cases(times[:, which], *columns) for which in range(2))
    return forward, backward


def known(machine: Machine, which: int) -> dict[str, float]:
    """What is not fitted: microseconds of a launch, and for each row and element of D."""
    terms = {name: 1e6 * both[which] / machine.hbm for name, both in _BYTES.items()}
    return terms | {"launch": 1e6 * machine.launch * KERNELS_OF_PASS[which]}


def predicted(
    values: dict[str, float], given: dict[str, float], calls: Cases, dim: int, without: str = ""
) -> np.ndarray:
    """Microseconds of each call by the terms of `sparsebert.compiler.cost.launches`, float64 [C].

    `without` names what is left out, of `LEFT_OUT`.
    """
    _, height, tiles, width, columns, longest, rows, chained = calls.launch.T
    if without == "whole steps":
        columns = width
    copies, kv_len = calls.copies[calls.case], calls.kv_len[calls.case]
    entry = np.array([values[str(h)] for h in HEIGHTS])[np.searchsorted(HEIGHTS, height)]
    busy = tiles * (values["tile"] + values["row"] * height)
    busy += width * values["column"] + columns * entry * height
    chain = given["chain"] if without != "chaining" else 0.0
    moved = given["floor_row"] * (rows + np.minimum(width, kv_len)) + chain * chained
    us = np.maximum(busy, moved * dim) * copies
    if without != "waiting for the longest tile":
        wait, column = values["wait"], values["wait_column"]
        beyond = wait + column * (longest - columns / tiles)
        us = np.maximum(us + beyond, wait + column * longest)
    launch = given["launch"] if without != "launches" else 0.0
    total = np.bincount(calls.case, weights=us + launch, minlength=len(calls.us))
    merge = launch * (calls.merges > 0) + given["merge"] * dim * calls.merges * calls.copies
    floor = given["floor_row"] * dim * 2 * calls.kv_len * calls.copies
    result: np.ndarray = np.maximum(total + merge, floor)
    return result


def fit(
    given: dict[str, float], calls: Cases, dim: int, without: str = ""
) -> tuple[dict[str, float], np.ndarray]:
    """The free terms by name, none negative, and the relative errors of the calls."""
    start = np.log([1e-3, 1e-5, 1e-6, 3e-6, 1.5e-6, 8e-7, 8e-7, 1.0, 0.01])

    def errors(logs: np.ndarray) -> np.ndarray:
        values = dict(zip(_FREE, np.exp(logs), strict=True))
        found: np.ndarray = np.log(predicted(values, given, calls, dim, without) / calls.us)
        return found

    best = least_squares(errors, start, loss="soft_l1", f_scale=0.1)
    values = dict(zip(_FREE, np.exp(best.x).tolist(), strict=True))
    return values, np.expm1(errors(best.x))


def constants_of(
    by_dim: dict[int, dict[str, float]], given: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """The terms of a pass as constants.json stores them: of "machines" and of "tiles"."""
    low, high = by_dim[DIMS[0]], by_dim[DIMS[1]]

    def copy(name: str) -> dict[str, list[float]]:
        dim = min(max((high[name] - low[name]) / (DIMS[1] - DIMS[0]), 0.0), low[name] / DIMS[0])
        return {"copy": _pair(low[name] - dim * DIMS[0]), "dim": _pair(dim)}

    once = {name: {"once": _pair(low[name])} for name in ("wait", "wait_column")}
    zero = {"copy": _pair(0.0)}
    tiles = {
        "call": {"once": _pair(0.0)}, "shape": {"once": _pair(0.0)}, "level": {"once": _pair(0.0)},
        "launch": {"once": _pair(given["launch"])}, **once,
        "tile": copy("tile"), "row": copy("row"), "column": copy("column"),
        "entry": {str(height): copy(str(height)) for height in HEIGHTS},
        "merge": {"dim": _pair(given["merge"])}, "chain": {"dim": _pair(given["chain"])},
        "mixed": zero,
    }  # fmt: skip
    return {"machines": {"floor_row": {"dim": _pair(given["floor_row"])}}, "tiles": tiles}


def _pair(value: float) -> list[float]:
    return [float(f"{value:.3g}") if value > 1e-15 else 0.0, 0.0]


def fit_target(machine: Machine, stored: dict[str, Any], where: str) -> Iterator[Row]:
    """Put the constants of a target into `stored`; a row of errors for each pass, D and term."""
    arch = machine.arch
    parts = {"machines": stored["machines"][arch], "tiles": stored["tiles"]["triton"][arch]}
    by_dim: tuple[dict[int, dict[str, float]], ...] = ({}, {})
    middles = []
    for dim in DIMS:
        for which, calls in enumerate(cases(machine, dim)):
            given = known(machine, which)
            for left_out in LEFT_OUT:
                values, errors = fit(given, calls, dim, left_out)
                sizes = np.abs(errors)
                yield {
                    "target": arch, "pass": PASSES[which], "D": dim, "without": left_out,
                    "calls": len(sizes), "median": f"{np.median(sizes):.3f}",
                    "90 %": f"{np.quantile(sizes, 0.9):.3f}", "worst": f"{sizes.max():.3f}",
                }  # fmt: skip
                if left_out == LEFT_OUT[0]:
                    by_dim[which][dim] = values
                    middles.append(float(np.median(sizes)))
    for which, name in enumerate(PASSES):
        for part, terms in constants_of(by_dim[which], known(machine, which)).items():
            parts[part][name] = terms
        call = _DENSE[which] * (1e6 * machine.launch + _DENSE_WAITS)
        stored["dense"][arch][name]["dense_call"] = {"once": _pair(call)}
    parts["tiles"] |= {
        "source": (
            f"predicted by the timing model, not fitted to a GPU: {machine.name}, {where}, "
            f"median error against it {max(middles):.0%} (benchmarks/cost/fit_gpu.py)"
        ),
        "step": STEP, "launches": True,
    }  # fmt: skip


def count(jobs: int) -> list[Row]:
    """Compile every kernel, height and head size for every target; rows like the survey's."""
    # Not above: it imports Triton without its interpreter.
    from benchmarks.kernels import codegen_report as report

    specs = {}
    for arch in BY_ARCH:
        for spec in report.selection([arch], DIMS, ["bf16"]):
            if not spec.has_key_mask and not spec.has_dropout:
                specs[report.identity(spec).__repr__()] = spec
    made = {"triton": report.triton.__version__, "kernels": kernels_fingerprint()}
    return [row | made for row in report.compile_all(list(specs.values()), jobs)]


def main() -> None:
    """Count or fit."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost.fit_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", action="store_true", help=f"only make {CURRENT.name}")
    parser.add_argument("--dry-run", action="store_true", help="do not write constants.json")
    parser.add_argument("--jobs", type=positive, default=1, help="processes that compile")
    arguments = parser.parse_args()
    where = {name: origin("cpu")[name] for name in ("commit", "tree", "date")}
    if arguments.count:
        rows = count(arguments.jobs)
        RowFile(CURRENT, rows[0], origin=where).write(rows)
        return
    rows = RowFile(CURRENT, ("kernel", "arch", "per_1000"), made_by=parser.prog).read()
    stored = constants.stored()
    about = f"kernels {rows[0]['kernels']}, Triton {rows[0]['triton']}"
    errors = []
    for machine in BY_ARCH.values():
        for row in fit_target(machine, stored, about):
            errors.append(row)
            print(*row.values(), sep=" | ", flush=True)
    RowFile(ERRORS, errors[0], origin=where).write(errors)
    if not arguments.dry_run:
        CONSTANTS.write_text(as_json(stored) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
