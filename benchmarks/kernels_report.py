"""What the compilers make of the Triton kernels, for GPUs that need not be at hand.

    python -m benchmarks.kernels_report                       # D = 64 in bf16, and what is near it
    python -m benchmarks.kernels_report --arch sm90 --head-dim 128 --dtype fp32
    python -m benchmarks.kernels_report --json report.json

For each specialisation: registers and spilled bytes of a thread, shared memory of a block,
tensor-core instructions and asynchronous copies in the code, and, on NVIDIA GPUs, the warp
instructions of each main loop per 1,000 entries of the score matrix: the loop over columns that
every row attends to, and the one with the bit test. "serial" marks a loop in which ptxas waits
for every single wgmma.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import sys
import warnings
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported: the interpreter cannot compile
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
from sparsebert.kernels.codegen import Specialisation

from sparsebert.kernels import codegen

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_HEIGHTS = (16, 32, 64, 128)
_TILE_KERNELS = ("forward", "dq", "dkdv")


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
        Specialisation("delta", "sm90", 32),
        Specialisation("merge", "sm90", 16),
    ]


def selection(archs: list[str], head_dims: list[int], dtypes: list[str]) -> list[Specialisation]:
    """All heights and kernels, without and with key mask and dropout."""
    return [
        Specialisation(kernel, arch, height, head_dim, _DTYPES[dtype], features, features)
        for arch in archs
        for dtype in dtypes
        for head_dim in head_dims
        for kernel in _TILE_KERNELS
        for height in _HEIGHTS
        for features in (False, True)
    ]


def as_row(spec: Specialisation) -> dict[str, Any]:
    """Compile one specialisation; the row of the table, or the error in its place."""
    launch = spec.launch
    row = {
        "kernel": spec.kernel,
        "arch": spec.arch,
        "height": spec.height,
        "head_dim": spec.head_dim,
        "dtype": str(spec.dtype).removeprefix("torch."),
        "key_mask": spec.has_key_mask,
        "dropout": spec.has_dropout,
        **dataclasses.asdict(launch),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code = codegen.compile_code(spec)
        except Exception as error:  # the compiler's own errors have no common class
            return row | {"error": f"{type(error).__name__}: {error}"[:300]}
    return row | {
        "registers": code.registers,
        "spill_bytes": code.spill_bytes,
        "shared_bytes": code.shared_bytes,
        "tensor_core": code.tensor_core,
        "async_copies": code.async_copies,
        "per_1000": [round(loop.per_1000) for loop in code.loops],
        "serial": any(loop.serialised for loop in code.loops),
    }


def as_line(row: dict[str, Any]) -> str:
    """One line of the printed table."""
    features = "".join(
        letter for letter, on in (("k", row["key_mask"]), ("d", row["dropout"])) if on
    )
    name = f"{row['kernel']:8}{row['arch']:8}{row['height']:4}{row['head_dim']:5}  "
    name += f"{row['dtype']:9}{features:3}"
    name += f"{row['block_n']:5}{row['num_warps']:3}{row['num_stages']:3}"
    if "error" in row:
        return f"{name}  {row['error'].splitlines()[0]}"
    loops = " / ".join(str(count) for count in row["per_1000"])
    return (
        f"{name}{row['registers'] or 0:6}{row['spill_bytes'] or 0:7}{row['shared_bytes']:8}"
        f"{row['tensor_core']:5}{row['async_copies']:5}  {loops}{'  serial' * row['serial']}"
    )


HEADER = (
    "kernel  arch      rows   D  dtype    key mask, dropout / columns, warps, stages\n"
    "                                   col  w  s  regs  spill  shared   tc  cp   "
    "warp instructions per 1,000 scores: full / bits"
)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the exit status says whether everything compiled without spilling."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["sm90"], choices=list(codegen.TARGETS))
    parser.add_argument("--head-dim", nargs="+", type=int, default=[64])
    parser.add_argument("--dtype", nargs="+", default=["bf16"], choices=list(_DTYPES))
    parser.add_argument("--representative", action="store_true", help="the few the tests check")
    parser.add_argument("--json", type=pathlib.Path, help="also write the rows to this file")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    options = parser.parse_args(arguments)
    specs = representative()
    if not options.representative:
        specs = selection(options.arch, options.head_dim, options.dtype)
    print(HEADER)
    rows = []
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        for row in pool.map(as_row, specs):
            print(as_line(row), flush=True)
            rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    bad = [row for row in rows if "error" in row or row["spill_bytes"]]
    print(f"{len(rows)} specialisations, {len(bad)} of them fail to compile or spill")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
