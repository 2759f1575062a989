"""What each step of work on the kernels made of their code: a table that grows by a step.

    python -m benchmarks.kernels.kernel_steps --step "carried columns"   # count, and the page
    python -m benchmarks.kernels.kernel_steps                            # the page alone

Forward, dQ and dK/dV on sm_90 with D = 64 in bf16, tiles of 16, 32 and 64 rows, without and with a
key mask, as this checkout compiles and launches them with the Triton in use; for another Triton
run it again (`benchmarks.kernels.codegen_report` says how). A step that is counted again replaces
its rows of that Triton.

Instructions per 1,000 scores, groups of copies in flight and barriers are of the loop over columns
that every row attends to / of the one with the bit test. In flight 0: each step of the loop waits
for its gather. "Programs" run on a multiprocessor at once, by registers, shared memory and warps.
Where wgmma is serial, ptxas waits for every single product. A hazard is a register that is written
while a wgmma reads it. Nothing in this table was timed;
"predicted us" is what the timing model makes of the same code, over a Longformer mask of 2,048
tokens in tiles of that height (`step_prediction.py`).

Results: benchmarks/results/kernel_steps.csv and .md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys

from benchmarks.harness.markdown import table
from benchmarks.harness.options import positive
from benchmarks.harness.origin import origin
from benchmarks.harness.rows import Row, RowFile
from benchmarks.kernels.compiled_rows import kernels_fingerprint
from benchmarks.predictions.kernel_counts import STEPS
from benchmarks.predictions.step_prediction import predicted_us
from sparsebert.kernels.configs import TILE_KERNELS

HEIGHTS = (64, 32, 16)

_KEY = ("step", "kernel", "rows", "key_mask", "triton")
_COLUMNS = (
    *("step", "kernel", "rows", "key_mask"),
    *("block_m", "block_n", "num_warps", "num_stages", "maxnreg", "triton"),
    *("per_1000", "instructions", "registers", "spill_bytes", "loop_spills", "shared_bytes"),
    *("programs", "in_flight", "barriers", "serial", "hazards", "predicted_us", "error"),
    *("kernels", "commit", "tree", "date"),
)
_MADE_BY = "python -m benchmarks.kernels.kernel_steps"


def count(step: str, jobs: int) -> list[Row]:
    """Compile them all; their rows."""
    # Not above: it imports Triton without its interpreter, which the page's tests want.
    from benchmarks.kernels import codegen_report as report

    specs = [
        report.Specialisation(kernel, "sm90", height, has_key_mask=given)
        for kernel, height, given in itertools.product(TILE_KERNELS, HEIGHTS, (False, True))
    ]
    where = origin("cpu")
    made_from = {name: where[name] for name in ("commit", "tree", "date")}
    made_from |= {"kernels": kernels_fingerprint(), "triton": report.triton.__version__}
    return [
        {**dict.fromkeys(_COLUMNS, ""), **row, **made_from, "step": step, "rows": spec.height}
        for spec, row in zip(specs, report.compile_all(specs, jobs), strict=True)
    ]


def with_step(old: list[Row], new: list[Row]) -> list[Row]:
    """All rows, those of `new` in the place of rows for the same; steps in order of arrival."""
    rows = {_key(row): row for row in (*old, *new)}
    steps = list(dict.fromkeys(str(row["step"]) for row in (*old, *new)))
    return sorted(rows.values(), key=lambda row: steps.index(str(row["step"])))


def page(rows: list[Row]) -> str:
    """The Markdown page: for each kernel, height and Triton, step after step."""
    order = {name: place for place, name in enumerate(TILE_KERNELS)}
    cases = sorted(
        {(row["kernel"], row["rows"], row["key_mask"], row["triton"]) for row in rows},
        key=lambda case: (order[case[0]], -int(case[1]), case[2], case[3]),
    )
    body = [
        _line(row)
        for case in cases
        for row in rows
        if (row["kernel"], row["rows"], row["key_mask"], row["triton"]) == case
    ]
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].partition("\n\nResults")[0]
    lines = ["# The kernels' code, step by step", "", f"Made by `{_MADE_BY}`.", "", about, ""]
    return "\n".join([*lines, *table(_HEADER, body)]) + "\n"


_HEADER = (
    *("kernel", "rows", "key mask", "Triton", "step", "program", "per 1,000 scores"),
    *("instructions", "registers", "spills in loops", "programs", "in flight", "barriers"),
    *("serial", "hazards", "predicted us"),
)


def _line(row: Row) -> list[str]:
    most = f", at most {row['maxnreg']} registers" if row["maxnreg"] else ""
    warps = f"{row['num_warps']} warp{'s' * (row['num_warps'] != '1')}"
    program = f"{row['block_m']} x {row['block_n']}, {warps}, {row['num_stages']} stages{most}"
    what = (row["kernel"], row["rows"], "yes" if row["key_mask"] == "True" else "")
    counts = ("per_1000", "instructions", "registers", "loop_spills", "programs", "in_flight")
    if row["error"]:
        return [*what, row["triton"], row["step"], program, row["error"], *[""] * 9]
    return [
        *what,
        *(row["triton"], row["step"], program),
        *(row[name] for name in counts),
        row["barriers"],
        "yes" if row["serial"] == "True" else "",
        *(row["hazards"], row["predicted_us"]),
    ]


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in _KEY)


def main(arguments: list[str] | None = None) -> int:
    """Count a step if one is named, and write the page."""
    parser = argparse.ArgumentParser(prog=_MADE_BY, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--step", help="its name, a few words")
    parser.add_argument("--jobs", type=positive, default=max(1, (os.cpu_count() or 2) // 2))
    options = parser.parse_args(arguments)
    if options.step is not None and not options.step.strip():
        parser.error("--step: expected a few words that name the step")
    file = RowFile(STEPS, _COLUMNS, made_by=_MADE_BY)
    if options.step:
        new = [{name: row[name] for name in _COLUMNS} for row in count(options.step, options.jobs)]
        file.write(with_step(file.read() if STEPS.exists() else [], new))
    file.write(row | {"predicted_us": predicted_us(row)} for row in file.read())
    STEPS.with_suffix(".md").write_text(page(file.read()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
