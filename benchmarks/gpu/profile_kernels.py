"""Phase of a GPU's first run: what limits the kernels, by the GPU's own counters.

    python -m benchmarks.gpu.profile_kernels --seconds 40

Nsight Compute (ncu) runs one forward and backward pass of a plan again and again, and reads for
each kernel why warps wait, what L2 served, how busy the tensor cores and how full the processors
were. Caches are empty before each kernel, and clocks are left alone. Where ncu is not installed or
may not read the counters, a row says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import triton

from benchmarks.attention.cases import BERT_BASE, BOTH, TOKENS, Case, build_mask
from benchmarks.attention.inputs import compiled_plan, tensors_of
from benchmarks.gpu import compile_cache, ncu_output
from benchmarks.gpu.gpu_record import Record
from benchmarks.harness.errors import in_words
from benchmarks.harness.options import duration
from benchmarks.harness.origin import ROOT, origin, out_folder
from benchmarks.harness.rows import Row
from sparsebert.api import sparse_attention

CASES = (("longformer", 2048), ("strided", 4096), ("star", 512))
"""Masks and lengths, in order, as many as there is time for."""

KERNELS = "|".join(compile_cache.KERNELS)
_SECTIONS = (
    "SpeedOfLight", "Occupancy", "LaunchStats", "WarpStateStats", "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
)  # fmt: skip
_METRICS = ",".join(
    (
        "lts__t_bytes.sum", "dram__bytes_read.sum", "dram__bytes_write.sum",
        "smsp__inst_executed.sum",
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    )
)  # fmt: skip
_LEAST_SECONDS = 8.0  # starting Python alone takes about that


def profile(seconds: float, record: Record, ncu: Sequence[str] | None = None) -> None:
    """Phase: a row for each kernel of each case, or one that says why there is none.

    Args:
        seconds: for everything.
        record: takes the rows; cases that it has rows of are left out.
        ncu: the command; None looks for it.
    """
    end = time.monotonic() + seconds
    row: Row = {"check": "profile", "passed": None}
    try:
        ncu = _ncu() if ncu is None else list(ncu)
        if not ncu:
            record.add(row | {"why": "ncu is not installed"})
            return
        earlier = [r for r in record.rows if r["check"] == "profile" and r["passed"] is True]
        done = {(r["mask"], r["n"]) for r in earlier}
        for mask, n in CASES:
            if (mask, n) in done:
                continue
            left = end - time.monotonic()
            of_case = row | {"mask": mask, "n": n}
            if left < _LEAST_SECONDS:
                record.add(of_case | {"why": "out of time"})
                return
            found, why = _profiled(ncu, mask, n, left)
            for kernel in found:
                record.add(of_case | kernel | {"passed": True, "why": in_short(kernel)})
            if not found:
                record.add(of_case | {"why": why})
                return  # what keeps ncu from one case keeps it from all
    except Exception as error:
        record.add(row | {"why": in_words(error)})


def in_short(kernel: Row) -> str:
    """A profiled kernel in a line."""
    parts = [kernel["kernel"]]
    if "microseconds" in kernel:
        parts.append(f"{kernel['microseconds']:.0f} us")
    for column, what in (
        ("occupancy_pct", "occupancy"), ("tensor_pct", "tensor cores"), ("l2_hit_pct", "L2 hits"),
    ):  # fmt: skip
        if column in kernel:
            parts.append(f"{what} {kernel[column]:.0f} %")
    stalls = [f"{name} {ratio:.1f}" for name, ratio in list(kernel["stalls"].items())[:3]]
    return ", ".join([*parts, *([f"waits: {', '.join(stalls)}"] if stalls else [])])


def _ncu() -> list[str]:
    """The command; empty where it is not installed."""
    places = [Path("/usr/local/cuda/bin/ncu"), *sorted(Path("/opt/nvidia").glob("*/*/ncu"))]
    found = shutil.which("ncu") or next((str(path) for path in places if path.is_file()), None)
    return [found] if found else []


def _profiled(ncu: Sequence[str], mask: str, n: int, seconds: float) -> tuple[list[Row], str]:
    """The kernels' rows, or none and the reason."""
    end = time.monotonic() + seconds
    why = ""
    for metrics in (["--metrics", _METRICS], []):  # an ncu may not know one of them
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "ncu.csv"
            command = [*ncu, "--csv", "--page", "raw", "--print-units", "base"]
            command += ["--clock-control", "none", "--profile-from-start", "off"]
            command += ["--kernel-name", f"regex:{KERNELS}", "--log-file", str(log), *metrics]
            command += [option for section in _SECTIONS for option in ("--section", section)]
            command += [sys.executable, "-m", "benchmarks.gpu.profile_kernels"]
            command += ["--one-case", mask, str(n)]
            status, said = _run(command, end - time.monotonic())
            text = log.read_text(errors="replace") if log.exists() else ""
        if status is None:
            return [], f"no result after {seconds:.0f} s"
        found = ncu_output.parse(text)
        if found:
            return found, ""
        why = ncu_output.why_nothing(text + said, status)
        if "metric" not in why:
            break
    return [], why


def _run(command: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Exit status and output; no status if it took longer, and what it started is ended."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", process_group=0,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=max(0.1, seconds))
        return process.returncode, said
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_case(mask: str, n: int) -> None:
    """One pass of a plan between the marks that ncu profiles, after two to warm up."""
    case = Case(
        "profile", BERT_BASE.name, TOKENS // n, BERT_BASE.heads, n, BERT_BASE.dim, mask, BOTH,
        "bfloat16",
    )  # fmt: skip
    made = build_mask(case)
    plan, _ = compiled_plan(made, "cuda", case.dim, case.heads)
    q, k, v, grad_o = tensors_of(case, "cuda")

    def call() -> None:
        o = sparse_attention(q, k, v, plan, backend="triton")
        torch.autograd.grad(o, (q, k, v), grad_o)

    for _ in range(2):
        call()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def main() -> int:
    """Profile; the exit status is 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.profile_kernels",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.add_argument("--seconds", type=duration, default=40.0)
    parser.add_argument("--one-case", nargs=2, metavar=("MASK", "N"), help="what ncu runs")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("profile_kernels: no CUDA device")
        return 2
    if options.one_case:
        run_case(options.one_case[0], int(options.one_case[1]))
        return 0
    where = {**origin(), "triton": triton.__version__}
    profile(options.seconds, Record(out_folder() / "profile.jsonl", where, phase="profile"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
