"""What the compilers make of the Triton kernels, for GPUs that need not be at hand.

    python -m benchmarks.kernels.codegen_report                       # D = 64 in bf16 on sm_90
    python -m benchmarks.kernels.codegen_report --arch sm90 --head-dim 128 --dtype fp32
    python -m benchmarks.kernels.codegen_report --survey              # everything, 20 minutes

For each specialisation: registers and spilled bytes of a thread, shared memory of a block, how
many programs a multiprocessor runs at once, tensor-core instructions and asynchronous copies in
the code; and of each main loop (the loop over columns that every row attends to, and the one with
the bit test) the instructions per 1,000 entries of the score matrix, spills, barriers of a step,
and the groups of copies that are in flight while it multiplies: with 0 it waits for every gather.
"serial" marks a loop in which ptxas waits for every single wgmma, "hazard" registers that are
written while a wgmma reads them. Specialisations come plain, with key mask, and with key mask and
dropout. Tile heights with the same launch configuration differ in one constant and are one row,
compiled for the tallest.

The Triton in use compiles. Another version needs no other environment, but for its interpreter:

    pip install --no-deps --target build/triton-3.6.0 triton==3.6.0
    PYTHONPATH=build/triton-3.6.0 python -m benchmarks.kernels.codegen_report

(Its cuobjdump is as old as it is: that of 3.6.0 does not read sm_103 and sm_121, and its ptxas
knows no sm_110.)

The survey goes to benchmarks/results/kernels_survey.csv, one row at a time, and holds the rows of
several Tritons: started again, it compiles only what is not there, or what was compiled from other
kernels; rows of another Triton stay as they are. With `--minutes` it stops in time; what it did
not come to is a row that says so.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported: the interpreter cannot compile

import torch
import triton

from benchmarks.harness.options import duration, positive
from benchmarks.harness.origin import RESULTS, origin
from benchmarks.harness.rows import RowFile
from benchmarks.kernels.band import DTYPES
from benchmarks.kernels.compiled_rows import is_bad, kernels_fingerprint
from sparsebert.kernels import codegen
from sparsebert.kernels.codegen import Code, Loop, Specialisation
from sparsebert.kernels.configs import TILE_KERNELS
from sparsebert.tiles.format import HEIGHTS

SURVEY = RESULTS / "kernels_survey.csv"
SURVEYED = (
    (("sm90",), (64, 128), ("bf16",)),
    (("sm80", "sm100", "gfx942"), (64,), ("bf16",)),
    (("sm90",), (64, 128), ("fp32",)),
    (("sm86", "sm89", "sm120", "gfx1100", "gfx1201"), (64,), ("bf16",)),
    (("sm103", "sm110", "sm121"), (64,), ("bf16",)),
    (("sm80", "sm100", "gfx942"), (128,), ("bf16",)),
    (("sm90",), (256, 32), ("bf16", "fp32")),
    (("sm80", "sm100", "sm120", "gfx942"), (64, 128, 256), ("fp32",)),
    (("sm86", "sm120"), (128,), ("bf16",)),
    (("sm80", "sm120", "gfx942"), (256, 32), ("bf16",)),
)
"""What the survey compiles, first things first: architectures, head dimensions and dtypes."""
NEEDS_NEWER = ("sm103", "sm110", "sm121")
"""Architectures that the tools of Triton 3.6 do not know."""
NOT_COMPILED = "not compiled: out of time"


def representative() -> list[Specialisation]:
    """A few that together touch every kernel, architecture, height and feature; for the tests."""
    return [
        Specialisation("forward", "sm90", 64),
        Specialisation("forward", "sm90", 16),
        Specialisation("forward", "sm80", 32, head_dim=40, dtype=torch.float16),
        Specialisation("forward", "sm90", 32, dtype=torch.float32),
        Specialisation("forward", "sm100", 64),
        Specialisation("forward", "gfx942", 64),
        Specialisation("dq", "sm90", 64),
        Specialisation("dq", "sm80", 16, has_dropout=True),
        Specialisation("dkdv", "sm90", 64),
        Specialisation("dkdv", "sm90", 16, has_key_mask=True, has_dropout=True),
        Specialisation("dkdv", "sm80", 16, head_dim=128, dtype=torch.float32),
        Specialisation("merge", "sm90", 16),
    ]


def selection(
    archs: list[str] | tuple[str, ...],
    head_dims: list[int] | tuple[int, ...],
    dtypes: list[str] | tuple[str, ...],
) -> list[Specialisation]:
    """All kernels and launch configurations: plain, with key mask, with key mask and dropout."""
    found = {}
    features = ((False, False), (True, False), (True, True))
    for head_dim, arch, dtype, kernel, given, height in itertools.product(
        head_dims, archs, dtypes, TILE_KERNELS, features, HEIGHTS
    ):
        spec = Specialisation(kernel, arch, height, head_dim, DTYPES[dtype], *given)
        found[dataclasses.replace(spec, height=0, config=spec.launch)] = spec
    return list(found.values())


def surveyed() -> list[Specialisation]:
    """What the survey compiles with the Triton in use."""
    is_old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)
    return [
        spec
        for archs, head_dims, dtypes in SURVEYED
        for spec in selection(archs, head_dims, dtypes)
        if not (is_old and spec.arch in NEEDS_NEWER)
    ]


def heights_of(spec: Specialisation) -> list[int]:
    """The tile heights that are launched like this one."""
    heights = [h for h in HEIGHTS if dataclasses.replace(spec, height=h).launch == spec.launch]
    return heights if spec.kernel in TILE_KERNELS else [spec.height]


def identity(spec: Specialisation) -> dict[str, Any]:
    """The columns of a row that say what was compiled."""
    return {
        "kernel": spec.kernel,
        "arch": spec.arch,
        "rows": " ".join(str(height) for height in heights_of(spec)),
        "head_dim": spec.head_dim,
        "dtype": str(spec.dtype).removeprefix("torch."),
        "key_mask": spec.has_key_mask,
        "dropout": spec.has_dropout,
        **dataclasses.asdict(spec.launch),
        "precision": spec.precision if spec.dtype == torch.float32 else "",
    }


def as_row(spec: Specialisation) -> dict[str, Any]:
    """Compile one specialisation; the row of the table, or the error in its place."""
    row = identity(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code = codegen.compile_code(spec)
        except Exception as error:  # the compiler's own errors have no common class
            return row | {"error": f"{type(error).__name__}: {error}"[:300]}
    return row | {
        "registers": code.registers,
        "spill_bytes": code.spill_bytes,
        "loop_spills": code.loop_spills,
        "shared_bytes": code.shared_bytes,
        "programs": code.programs_per_sm,
        "instructions": code.instructions,
        "tensor_core": code.tensor_core,
        "async_copies": code.async_copies,
        "per_1000": _of_loops(code, lambda loop: round(loop.per_1000)),
        "in_flight": _of_loops(code, lambda loop: loop.copies_in_flight),
        "barriers": _of_loops(code, lambda loop: loop.barriers),
        "serial": any(loop.serialised for loop in code.loops),
        "hazards": code.hazards,
        "error": "",
    }


def _of_loops(code: Code, number: Callable[[Loop], int | None]) -> str:
    """A number of each main loop: full columns / with the bit test."""
    numbers = map(number, code.loops)
    return " / ".join("-" if value is None else str(value) for value in numbers)


def as_line(row: dict[str, Any]) -> str:
    """One line of the printed table."""
    features = "".join(
        letter for letter, on in (("k", row["key_mask"]), ("d", row["dropout"])) if on
    )
    name = f"{row['kernel']:8}{row['arch']:7}{row['rows']:>13}{row['head_dim']:5}  "
    name += f"{row['dtype']:9}{features:3}{row['block_m']:4}"
    name += f"{row['block_n']:5}{row['num_warps']:3}{row['num_stages']:3}"
    name += f"{row.get('maxnreg') or '':>5} {row['precision']:7}"
    if row["error"]:
        return f"{name}  {row['error'].splitlines()[0]}"
    return (
        f"{name}{row['registers']:5}{row['spill_bytes']:7}{row['loop_spills']:5}"
        f"{row['shared_bytes']:8}{row['programs'] or '':>4}{row['tensor_core']:5}"
        f"{row['async_copies']:5}  {row['per_1000']:12}{row['in_flight']:7}{row['barriers']:7}"
        f"{'  serial' * row['serial']}{'  hazard' * bool(row['hazards'])}{'  BAD' * is_bad(row)}"
    )


HEADER = (
    "                                       key mask, dropout / program: rows, columns, warps,"
    " stages, most registers, precision of products; per multiprocessor; loops: full / bits\n"
    "kernel  arch      tile rows    D  dtype    kd   m    n  w  s  max         regs  spill loop"
    "  shared /sm   tc   cp  per 1,000   flight barriers"
)


def compile_all(specs: list[Specialisation], jobs: int, end: float = math.inf) -> Any:
    """Rows, in order, as they are compiled; in processes that let others go first."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        jobs, mp_context=context, initializer=os.nice, initargs=(5,)
    ) as pool:
        futures = [pool.submit(as_row, spec) for spec in specs]
        for spec, future in zip(specs, futures, strict=True):
            if time.monotonic() > end:
                future.cancel()
            if future.cancelled():
                yield identity(spec) | dict.fromkeys(_COUNTS, "") | {"error": NOT_COMPILED}
            else:
                yield future.result()


def survey(
    path: pathlib.Path, specs: list[Specialisation], jobs: int, end: float
) -> list[dict[str, Any]]:
    """Bring the file up to date for this Triton and print what was new; its rows of this Triton.

    Rows of other versions stay.
    """
    made_from = {"kernels": kernels_fingerprint(), "triton": triton.__version__}
    where = origin()
    made_by = {name: where[name] for name in _RUN}
    columns = [*identity(specs[0]), *_COUNTS, *made_from, *made_by]
    file = RowFile(path, columns, made_by="python -m benchmarks.kernels.codegen_report --survey")
    old = file.read() if path.exists() else []
    others = [row for row in old if row["triton"] != made_from["triton"]]
    known = {_key(row): row for row in old if row["error"] != NOT_COMPILED}
    wanted = [identity(spec) | made_from for spec in specs]
    missing = [s for s, row in zip(specs, wanted, strict=True) if _key(row) not in known]
    for row in compile_all(missing, jobs, end):
        print(as_line(row), flush=True)
        row |= made_from | made_by
        known[_key(row)] = row
        file.append([row])
    rows = [known[_key(row)] for row in wanted]
    by_version = sorted([*others, *rows], key=lambda row: str(row["triton"]))
    file.write(by_version)  # in order, without what is old
    return rows


_COUNTS = (
    "registers", "spill_bytes", "loop_spills", "shared_bytes", "programs", "instructions",
    "tensor_core", "async_copies", "per_1000", "in_flight", "barriers", "serial", "hazards",
    "error",
)  # fmt: skip
_RUN = ("commit", "tree", "date")


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row of the survey is known by: all but the counts and where it comes from."""
    left_out = (*_COUNTS, *_RUN)
    values = [value for name, value in row.items() if name not in left_out]
    return tuple("" if value is None else str(value) for value in values)  # as the file has them


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the exit status says whether none is bad (`is_bad`)."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.codegen_report",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.add_argument("--arch", nargs="+", default=["sm90"], choices=list(codegen.TARGETS))
    parser.add_argument("--head-dim", nargs="+", type=positive, default=[64])
    parser.add_argument("--dtype", nargs="+", default=["bf16"], choices=list(DTYPES))
    parser.add_argument("--representative", action="store_true", help="the few the tests check")
    parser.add_argument("--survey", action="store_true", help=f"all, into {SURVEY.name}")
    parser.add_argument("--minutes", type=duration, default=math.inf, help="of the survey")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    parser.add_argument("--jobs", type=positive, default=max(1, (os.cpu_count() or 2) // 2))
    options = parser.parse_args(arguments)
    print(HEADER)
    if options.survey:
        end = time.monotonic() + 60 * options.minutes
        rows = survey(SURVEY, surveyed(), options.jobs, end)
    else:
        specs = representative()
        if not options.representative:
            specs = selection(options.arch, options.head_dim, options.dtype)
        rows = []
        for row in compile_all(specs, options.jobs):
            print(as_line(row), flush=True)
            rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    bad = sum(map(is_bad, rows))
    print(
        f"Triton {triton.__version__}: {len(rows)} specialisations, {bad} of them do not compile, "
        "do not fit, spill in a loop or have a hazard"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
