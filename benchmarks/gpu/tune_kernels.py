"""Find the fastest launch configurations of the Triton kernels on this machine's GPU.

    python -m benchmarks.gpu.tune_kernels --list               # what would be tried; no GPU
    python -m benchmarks.gpu.tune_kernels                      # bf16, D = 64, for ten minutes
    python -m benchmarks.gpu.tune_kernels --head-dim 64 128 --dtype bf16 fp32 --minutes 60

For each kernel, tile height, head size, dtype, without and with key mask and dropout: starts from
the shipped configuration, tries its neighbours (rows, columns or warps halved or doubled, a stage
more or less, another limit of registers), and goes on from the best until no neighbour is better.
A candidate is timed only if its results are within the error bounds of `gpu_check`; one that does
not compile, does not fit or is wrong is a row that says so. Rows go to `$OUT/tune_kernels.jsonl`
or benchmarks/results/; what to put into `MEASURED` in kernels/configs.py is printed at the end. A
time limit is kept by not starting more. `sweep` compares a few candidates on real plans.

Times are of the whole forward or backward pass, on a band mask in tiles of that one height, in
which the kernel is all or most of the work.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import triton

import sparsebert as sb
from benchmarks.gpu.gpu_cases import DROPOUT, KEY_MASK, PLAIN
from benchmarks.gpu.gpu_correctness import check_case
from benchmarks.harness import gpu_timing
from benchmarks.harness.errors import in_words
from benchmarks.harness.options import duration, positive
from benchmarks.harness.origin import origin, out_folder
from benchmarks.harness.rows import RowFile
from benchmarks.kernels import calls
from benchmarks.kernels.band import DTYPES, band, band_program
from sparsebert.kernels import configs
from sparsebert.kernels.architecture import architecture
from sparsebert.kernels.configs import (
    TILE_KERNELS,
    LaunchConfig,
    block_d,
    launch_config,
    shared_limit,
)
from sparsebert.tiles.format import HEIGHTS

_REGISTERS = (None, 96, 128, 168)
"""Limits that let 5, 4 or 3 programs of four warps run on an NVIDIA multiprocessor at once."""
WORTH = 1.03
"""A configuration replaces the shipped one if it is this many times faster."""
WRONG = "wrong"
"""Begins what is said of a configuration whose results are out of bounds."""

Measure = Callable[["LaunchEntry", LaunchConfig], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class LaunchEntry:
    """One entry of the launch table."""

    kernel: str
    arch: str
    height: int
    head_dim: int
    dtype: torch.dtype
    has_key_mask: bool
    has_dropout: bool

    @property
    def key(self) -> tuple[str, str, int, int, int, bool, bool]:
        """Its key in `configs.MEASURED`."""
        width, itemsize = block_d(self.head_dim), self.dtype.itemsize
        features = (self.has_key_mask, self.has_dropout)
        return (self.kernel, self.arch, self.height, width, itemsize, *features)

    @property
    def shipped(self) -> LaunchConfig:
        """Its present configuration."""
        return launch_config(
            self.kernel, self.arch, self.height, self.head_dim, self.dtype.itemsize,
            self.has_key_mask, self.has_dropout,
        )  # fmt: skip

    @property
    def row(self) -> dict[str, Any]:
        """The entry as columns."""
        return dataclasses.asdict(self) | {"dtype": str(self.dtype).removeprefix("torch.")}


def cases(
    arch: str, kernels: list[str], heights: list[int], head_dims: list[int], dtypes: list[str]
) -> list[LaunchEntry]:
    """All combinations, those without key mask and dropout first."""
    return [
        LaunchEntry(kernel, arch, height, head_dim, DTYPES[dtype], has_key_mask, has_dropout)
        for has_dropout in (False, True)
        for has_key_mask in (False, True)
        for dtype in dtypes
        for head_dim in head_dims
        for kernel in kernels
        for height in heights
    ]


def neighbours(case: LaunchEntry, config: LaunchConfig) -> list[LaunchConfig]:
    """Configurations one step away that the kernels can run and the GPU may have room for."""
    steps = {
        "block_m": (config.block_m // 2, config.block_m * 2),
        "block_n": (config.block_n // 2, config.block_n * 2),
        "num_warps": (config.num_warps // 2, config.num_warps * 2),
        "num_stages": (config.num_stages - 1, config.num_stages + 1),
        "maxnreg": _REGISTERS if case.arch.startswith("sm") else (),
    }
    changed = [
        dataclasses.replace(config, **{name: value})
        for name, values in steps.items()
        for value in values
    ]
    # And with rows and warps changed together, so that a warp keeps its share.
    changed += [
        dataclasses.replace(config, block_m=rows, num_warps=warps)
        for rows, warps in zip(steps["block_m"], steps["num_warps"], strict=True)
    ]
    return [c for c in dict.fromkeys(changed) if c != config and _is_possible(case, c)]


def _is_possible(case: LaunchEntry, config: LaunchConfig) -> bool:
    gathered = 2 * config.block_n * block_d(case.head_dim) * case.dtype.itemsize
    return (
        16 <= config.block_m <= case.height
        and 32 <= config.block_n <= 128
        and 1 <= config.num_warps <= 8
        and 1 <= config.num_stages <= 4
        and gathered * max(1, config.num_stages - 1) <= shared_limit(case.arch)
    )


def search(
    case: LaunchEntry, measure: Measure, has_time: Callable[[], bool]
) -> list[dict[str, Any]]:
    """Go downhill from the shipped configuration; all that was tried, as rows."""
    rows: dict[LaunchConfig, dict[str, Any]] = {}

    def milliseconds(config: LaunchConfig) -> float:
        if config not in rows:
            if not has_time():
                return float("inf")
            rows[config] = measure(case, config)
        return float(rows[config].get("ms_50", "inf"))

    best = case.shipped
    while True:
        faster = min([best, *neighbours(case, best)], key=milliseconds)
        if faster == best:
            break
        best = faster
    return [
        {**case.row, **dataclasses.asdict(config), **row, "shipped": config == case.shipped}
        for config, row in rows.items()
    ]


def winner(rows: list[dict[str, Any]]) -> LaunchConfig | None:
    """The fastest, if it beats the shipped one by `WORTH`."""
    timed = [row for row in rows if "ms_50" in row]
    if not timed:
        return None
    best = min(timed, key=lambda row: row["ms_50"])
    shipped = [row["ms_50"] for row in timed if row["shipped"]]
    if shipped and shipped[0] < WORTH * best["ms_50"]:
        return None
    return config_of(best)


def config_of(row: Mapping[str, Any]) -> LaunchConfig:
    """The configuration of a row."""
    return LaunchConfig(**{f.name: row[f.name] for f in dataclasses.fields(LaunchConfig)})


@contextlib.contextmanager
def launched_with(case: LaunchEntry, config: LaunchConfig) -> Iterator[None]:
    """Let the kernels take this configuration."""
    before = configs.MEASURED.get(case.key)
    configs.MEASURED[case.key] = config
    launch_config.cache_clear()
    try:
        yield
    finally:
        del configs.MEASURED[case.key]
        if before:
            configs.MEASURED[case.key] = before
        launch_config.cache_clear()


def on_gpu(case: LaunchEntry, config: LaunchConfig) -> dict[str, Any]:
    """Check a configuration on a small shape, then time it on a large one."""
    wrong = why_not(case, config)
    if wrong:
        return {"why": wrong}
    try:
        with launched_with(case, config):
            return gpu_timing.alone(_large_call(case))
    except Exception as error:  # the compiler's own errors have no common class
        return {"why": in_words(error)}


def why_not(case: LaunchEntry, config: LaunchConfig, device: str = "cuda") -> str:
    """Why a configuration must not be timed: what is wrong with its results; "" if it may be."""
    mask = sb.AttentionMask.from_dense(torch.from_numpy(band(300, 40)))
    features = [DROPOUT] if case.has_dropout else []
    features += [KEY_MASK] if case.has_key_mask else []
    try:
        with launched_with(case, config):
            for parts in (1, 2):  # rows that are final, and rows that tiles share
                checked = check_case(
                    mask, case.head_dim, case.dtype, ", ".join(features) or PLAIN, device,
                    work=band_program(300, (case.height,), half_width=40, parts=parts),
                )  # fmt: skip
                if not checked["passed"]:
                    return f"{WRONG}: {checked['why']}"
    except Exception as error:  # the compiler's own errors have no common class
        return in_words(error)
    return ""


def _large_call(case: LaunchEntry) -> Callable[[], object]:
    """The pass that the kernel belongs to: B = 8, H = 12, N = 2048, 257 keys a query."""
    q, k, v = (
        torch.randn(8, 2048, 12, case.head_dim, device="cuda", dtype=case.dtype).transpose(1, 2)
        for _ in range(3)
    )
    program = band_program(2048, (case.height,), half_width=128).to("cuda")
    p = 0.1 if case.has_dropout else 0.0
    seed = torch.tensor([1], device="cuda") if p else None
    key_mask = calls.hiding_some(8, 2048, "cuda") if case.has_key_mask else None
    rest = (key_mask, seed, program, case.head_dim**-0.5, p)
    if case.kernel == "forward":
        return lambda: calls.forward(q, k, v, *rest)
    o, lse = calls.forward(q, k, v, *rest)
    return lambda: calls.backward(o, None, q, k, v, o, lse, *rest)


def main() -> int:
    """List or tune; the exit status is 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.tune_kernels",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.add_argument("--list", action="store_true", help="print what would be tried first")
    parser.add_argument("--arch", help="with --list: for which GPU (default: this one, or sm90)")
    parser.add_argument("--kernel", nargs="+", default=list(TILE_KERNELS), choices=TILE_KERNELS)
    parser.add_argument("--height", nargs="+", type=int, default=list(HEIGHTS), choices=HEIGHTS)
    parser.add_argument("--head-dim", nargs="+", type=positive, default=[64])
    parser.add_argument("--dtype", nargs="+", default=["bf16"], choices=list(DTYPES))
    parser.add_argument("--minutes", type=duration, default=10.0)
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    arch = options.arch or (architecture(torch.device("cuda", 0)) if has_gpu else "sm90")
    todo = cases(arch, options.kernel, options.height, options.head_dim, options.dtype)
    if options.list:
        for case in todo:
            print(f"{case.key}: {case.shipped}")
            for config in neighbours(case, case.shipped):
                print(f"    {config}")
        return 0
    if not has_gpu:
        print("tune_kernels: no CUDA or ROCm device; --list shows what would be tried")
        return 2
    end = time.monotonic() + 60 * options.minutes
    where = {**origin(), "triton": triton.__version__}
    file = RowFile(out_folder() / "tune_kernels.jsonl", origin=where)
    count, found = 0, {}
    for case in todo:
        tried = search(case, on_gpu, lambda: time.monotonic() < end)
        rows = tried or [{"case": str(case.key), "why": "not tried: out of time"}]
        file.append(rows)
        count += len(rows)
        best = winner(tried)
        print(f"{case.key}: {len(tried)} tried, {best or 'nothing better'}", flush=True)
        if best:
            found[case.key] = best
    print(f"{count} rows in {file.path}; for MEASURED in kernels/configs.py:")
    for key, config in found.items():
        print(f"    {key}: {config},")
    return 0


if __name__ == "__main__":
    sys.exit(main())
