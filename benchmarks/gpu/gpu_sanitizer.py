"""compute-sanitizer over one small call of the kernels, which this module runs as a program."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from benchmarks.gpu.compile_cache import KERNELS
from benchmarks.harness.origin import ROOT
from benchmarks.harness.rows import Row
from benchmarks.harness.sessions import run_group

FINDINGS = 99
"""The sanitizer's exit status for errors that it found; its own failures have others."""
_PLACE = Path("/usr/local/cuda/bin/compute-sanitizer")
# Calls of the driver that fail are none of ours: torch makes such on purpose. To look into torch's
# own kernels, too, takes longer than there is; an old sanitizer may not know how to choose some.
_NOT_THE_DRIVER = ("--report-api-errors", "no")
_OURS_ALONE = tuple(
    word for kernel in KERNELS for word in ("--kernel-name", f"kernel_substring={kernel}")
)


def sanitize(tool: str, seconds: float) -> Row:
    """Only what the sanitizer finds is red; that it is missing, slow or broken is not."""
    end = time.monotonic() + seconds
    program = shutil.which("compute-sanitizer") or (str(_PLACE) if _PLACE.is_file() else None)
    if program is None:
        return {"passed": None, "why": "compute-sanitizer is not installed"}
    status, said = None, ""
    for kernels in (_OURS_ALONE, ()):
        command = [program, "--tool", tool, "--error-exitcode", str(FINDINGS)]
        command += [*_NOT_THE_DRIVER, *kernels]
        command += [sys.executable, "-m", "benchmarks.gpu.gpu_sanitizer"]
        # torch's allocator takes large blocks, within which nothing is out of bounds.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        status, said = run_group(command, end - time.monotonic(), cwd=ROOT, environment=alone)
        if status in (None, 0, FINDINGS):
            break
    if status is None:
        return {"passed": None, "why": f"took more than {seconds:.0f} s"}
    if status == FINDINGS and "Internal Sanitizer Error" not in said:
        return {"passed": False, "why": said[-400:]}
    if status != 0:
        return {"passed": None, "why": f"it does not run here, status {status}: {said[-300:]}"}
    return {"passed": True}


def run_kernels(device: str = "cuda") -> None:
    """Every kernel once: tiles of 64 rows that are chained, and such that are merged.

    Nothing is compared, for the sanitizer makes each of torch's kernels slow to load.
    """
    import torch

    from benchmarks.kernels import calls
    from benchmarks.kernels.band import band_program

    q, k, v, grad_o = torch.randn(4, 1, 130, 2, 64).bfloat16().to(device).transpose(2, 3)
    for parts in (2, 3):
        program = band_program(130, (64,), half_width=40, parts=parts).to(device)
        rest = (None, None, program, 0.125, 0.0)
        o, lse = calls.forward(q, k, v, *rest)
        calls.backward(grad_o, None, q, k, v, o, lse, *rest)
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    run_kernels()
