"""The first phase: does the GPU answer, what is it, and which versions are here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess

import torch

from benchmarks.gpu.gpu_record import Record
from benchmarks.harness.origin import origin
from benchmarks.harness.rows import Row

_PACKAGES = (
    "triton", "numpy", "transformers", "safetensors", "pytest", "pytest-xdist", "hypothesis",
)  # fmt: skip
_TOOLS = ("ncu", "nsys", "compute-sanitizer", "ptxas", "cuobjdump", "git", "gcc")
_NVIDIA_SMI = (
    "driver_version,compute_mode,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
)


def machine(seconds: float, record: Record) -> None:
    """One row, whose provenance goes into all others; passed is None where there is no GPU."""
    row: Row = {
        "check": "machine",
        **origin("cpu" if record.device == "cpu" else None),
        "triton": _version("triton"),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "tools": {name: shutil.which(name) for name in _TOOLS},
    }
    if record.device == "cpu":
        record.add(row | {"passed": True})
    elif not torch.cuda.is_available():
        record.add(row | {"passed": None, "why": "no CUDA or ROCm device"})
    else:
        record.add(row | {"passed": True} | _card() | _nvidia_smi())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _card() -> Row:
    about = torch.cuda.get_device_properties(0)
    free, _ = torch.cuda.mem_get_info(0)
    # It answers only if it computes something, too.
    assert float(torch.ones(1000, device="cuda").sum()) == 1000.0
    return {
        "gpus": torch.cuda.device_count(),
        "capability": f"{about.major}.{about.minor}",
        "processors": about.multi_processor_count,
        "memory_gb": round(about.total_memory / 1e9, 1),
        "free_gb": round(free / 1e9, 1),
        "l2_mb": round(about.L2_cache_size / 2**20, 1),
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
    }


def _nvidia_smi() -> Row:
    """What the driver says of clocks and power; nothing where it cannot be asked."""
    command = ["nvidia-smi", f"--query-gpu={_NVIDIA_SMI}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=5.0, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    first = said.stdout.splitlines()[0].split(", ")
    return dict(zip(_NVIDIA_SMI.split(","), first, strict=False))
