"""The first phase: does the GPU answer, what is it, and which versions are here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Callable

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
        if (found := float(torch.ones(1000, device="cuda").sum())) != 1000.0:
            record.add(row | {"passed": None, "why": f"the GPU adds 1,000 ones to {found}"})
            return
        record.add(row | {"passed": True} | _card() | _nvidia_smi())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _card() -> Row:
    """What torch says of the GPU; what it cannot say is None, for a run can do without."""
    about = torch.cuda.get_device_properties(0)
    facts: dict[str, Callable[[], object]] = {
        "gpus": torch.cuda.device_count,
        "capability": lambda: f"{about.major}.{about.minor}",
        "processors": lambda: about.multi_processor_count,
        "memory_gb": lambda: round(about.total_memory / 1e9, 1),
        "free_gb": lambda: round(torch.cuda.mem_get_info(0)[0] / 1e9, 1),
        "l2_mb": lambda: round(about.L2_cache_size / 2**20, 1),
        "cuda": lambda: torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version,
    }
    return {name: _or_none(fact) for name, fact in facts.items()}


def _or_none(fact: Callable[[], object]) -> object:
    try:
        return fact()
    except Exception:  # such as a cuDNN that is not the one torch was built with
        return None


def _nvidia_smi() -> Row:
    """What the driver says of clocks and power; nothing where it cannot be asked."""
    command = ["nvidia-smi", f"--query-gpu={_NVIDIA_SMI}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=5.0, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = said.stdout.partition("\n")[0].split(", ")
    return dict(zip(_NVIDIA_SMI.split(","), values, strict=False))
