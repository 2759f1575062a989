"""What the kernels should take on an H100 or H200: a model, of which nothing was measured.

    python -m benchmarks.predictions.timing_model          # the table
    python -m benchmarks.predictions.timing_model --write  # and gpu_predictions.csv, of every step

It predicts each kernel over the paper's patterns (12 heads, D = 64, bf16, 32,768 tokens) as they
are compiled for sm_90, from three kinds of input that stand apart: machines and rivals
(`gpu_machines.py`: data sheets and assumptions), what the compilers made of the kernels
(`kernel_counts.py`, counted), and how kernels and launches run (`launch_model.py`). The rows of
`gpu_predictions.csv` have the names of `gpu_check`'s timings, so that measured times can be set
beside them: one row for each step of the kernels, case and kernel, and for whole passes. The rows
of rivals are assumptions.

The first two steps run the tiles that were compiled before (`call_model.BEFORE`); the others those
of the compiler at hand.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Mapping

import numpy as np

from benchmarks.attention.cases import BERT_BASE, BOTH, FORWARD, PAPER, TOKENS
from benchmarks.attention.rivals import FLEX as FLEX_NAME
from benchmarks.attention.rivals import OURS
from benchmarks.harness import named_masks
from benchmarks.harness.origin import RESULTS
from benchmarks.harness.rows import Row, RowFile
from benchmarks.predictions.call_model import (
    Pass,
    Side,
    backward_seconds,
    call_of,
    forward_seconds,
    kernel_times,
    side_of,
    tiles_before,
)
from benchmarks.predictions.gpu_machines import DENSE, FLEX, MACHINES, Rival
from benchmarks.predictions.kernel_counts import VERSIONS, counts_by_step
from sparsebert.plan import compile_plan

LENGTHS = (512, 1024, 2048, 4096)
OLD_TILES = 2
"""The first steps run the tiles that were compiled before."""

PATH = RESULTS / "gpu_predictions.csv"
COLUMNS = (
    "step", "contender", "mask", "batch", "n", "heads", "dim", "dtype", "direction", "kernel",
    "launches", *(f"us_{name}" for name in MACHINES), "limit",
)  # fmt: skip
_BACKWARD = "backward"


@functools.cache
def new_sides(mask: str, n: int, chained: bool) -> tuple[Side, Side]:
    """Both sides of the plan that today's compiler makes, run in tiles whatever it prefers."""
    schedule = compile_plan(named_masks.build(mask, n, BERT_BASE.heads), target="sm90").schedule
    every = np.ones(1, dtype=bool)
    queries, keys = (
        side_of(tiles, chained=chained)
        for tiles in (schedule.queries(every), schedule.keys(every))
    )
    return queries, keys


@functools.cache
def _old_sides() -> dict[tuple[str, int], tuple[Side, Side]]:
    return {(mask, n): sides for mask, n, sides in tiles_before()}


@functools.cache
def flex_share(mask: str, n: int) -> float:
    """Share of the scores in 128 x 128 blocks that are not empty."""
    return named_masks.block_fraction(named_masks.build(mask, n, BERT_BASE.heads), 128)


def predict(step: int, mask: str, n: int, machine: str) -> dict[str, Pass]:
    """The kernels of a case at a step, by name."""
    design = VERSIONS[step][0]
    sides = _old_sides()[mask, n] if step < OLD_TILES else new_sides(mask, n, design.chained)
    chip = MACHINES[machine]
    call = call_of(chip, TOKENS // n * BERT_BASE.heads, n, n, BERT_BASE.dim)
    return kernel_times(sides, (n, n), counts_by_step()[design.name], design, chip, call)


def assumed(rival: Rival, mask: str, n: int, machine: str) -> tuple[float, float]:
    """Forward and backward seconds that a rival is taken to need."""
    share = flex_share(mask, n) if rival is FLEX else 1.0
    hbm = MACHINES[machine].hbm
    shape = n, BERT_BASE.heads, BERT_BASE.dim, share, hbm
    return rival.seconds(*shape, 0), rival.seconds(*shape, 1)


def rows() -> Iterator[Row]:
    """All rows of the file."""
    for step, (design, _) in enumerate(VERSIONS):
        for n in LENGTHS:
            for mask in PAPER:
                by_machine = {name: predict(step, mask, n, name) for name in MACHINES}
                yield from _rows_of_case(_case(design.name, OURS, mask, n), by_machine)
    for contender, rival in (("dense", DENSE), (FLEX_NAME, FLEX)):
        for n in LENGTHS:
            for mask in PAPER if rival is FLEX else ("dense",):
                case = _case("assumed", contender, mask, n)
                times = {name: assumed(rival, mask, n, name) for name in MACHINES}
                yield from _whole(case, times, "")


def _case(step: str, contender: str, mask: str, n: int) -> Row:
    return {
        "step": step, "contender": contender, "mask": mask, "batch": TOKENS // n, "n": n,
        "heads": BERT_BASE.heads, "dim": BERT_BASE.dim, "dtype": "bfloat16",
    }  # fmt: skip


def _rows_of_case(case: Row, by_machine: Mapping[str, dict[str, Pass]]) -> Iterator[Row]:
    first = next(iter(by_machine.values()))
    for kernel, passed in first.items():
        if not passed.launches:
            continue
        is_forward = kernel in ("forward", "merge")
        times = {f"us_{m}": _us(found[kernel].seconds) for m, found in by_machine.items()}
        yield case | times | {
            "direction": FORWARD if is_forward else _BACKWARD,
            "kernel": kernel, "launches": passed.launches, "limit": passed.limit,
        }  # fmt: skip
    whole = {
        m: (forward_seconds(found), backward_seconds(found)) for m, found in by_machine.items()
    }
    yield from _whole(case, whole, "all")


def _whole(case: Row, times: Mapping[str, tuple[float, float]], kernel: str) -> Iterator[Row]:
    for direction, parts in ((FORWARD, (0,)), (_BACKWARD, (1,)), (BOTH, (0, 1))):
        us = {f"us_{m}": _us(sum(both[p] for p in parts)) for m, both in times.items()}
        yield case | us | {"direction": direction, "kernel": kernel}


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


def table(machine: str) -> Iterator[str]:
    """The lines of the printed table."""
    yield (
        f"{machine}, predicted, not measured; us forward / backward, {TOKENS} tokens, "
        f"{BERT_BASE.heads} heads of {BERT_BASE.dim}, bf16"
    )
    for number, (design, _) in enumerate(VERSIONS):
        yield f"  {number}: {design.name}"
    columns = " | ".join(f"{number:>9}" for number in range(len(VERSIONS)))
    yield f"{'N':>5} {'mask':<10} | {columns} | {'dense':>9} | {'Flex':>9} | x dense   | x Flex"
    for n in LENGTHS:
        for mask in PAPER:
            steps = []
            for step in range(len(VERSIONS)):
                found = predict(step, mask, n, machine)
                steps.append((forward_seconds(found), backward_seconds(found)))
            dense, flex = (assumed(rival, mask, n, machine) for rival in (DENSE, FLEX))
            shown = [f"{f * 1e6:4.0f}/{b * 1e6:4.0f}" for f, b in (*steps, dense, flex)]
            over = [
                f"{rival[0] / steps[-1][0]:4.1f}/{rival[1] / steps[-1][1]:4.1f}"
                for rival in (dense, flex)
            ]
            yield f"{n:>5} {mask:<10} | {' | '.join(shown)} | {' | '.join(over)}"


def main() -> None:
    """Print the table; with --write also the file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predictions.timing_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--machine", choices=MACHINES, default="H100")
    parser.add_argument("--write", action="store_true", help=f"write {PATH.name}, too")
    arguments = parser.parse_args()
    for line in table(arguments.machine):
        print(line, flush=True)
    if arguments.write:
        RowFile(PATH, COLUMNS).write(rows())
        print(PATH)


if __name__ == "__main__":
    main()
