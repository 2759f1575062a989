"""compute-sanitizer over one small case of the kernels, which this module runs as a program."""

from __future__ import annotations

import shutil
import sys

from benchmarks.harness.origin import ROOT
from benchmarks.harness.rows import Row
from benchmarks.harness.sessions import run_group

FINDINGS = 99
"""The sanitizer's exit status for errors that it found; its own failures have others."""


def sanitize(tool: str, seconds: float) -> Row:
    """Only what the sanitizer finds is red; that it is missing, slow or broken is not."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"passed": None, "why": "compute-sanitizer is not installed"}
    command = [program, "--tool", tool, "--error-exitcode", str(FINDINGS), sys.executable]
    command += ["-m", "benchmarks.gpu.gpu_sanitizer"]
    # torch's allocator takes large blocks, within which nothing is out of bounds.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    status, said = run_group(command, seconds, cwd=ROOT, environment=alone)
    if status is None:
        return {"passed": None, "why": f"took more than {seconds:.0f} s"}
    if status == FINDINGS and "Internal Sanitizer Error" not in said:
        return {"passed": False, "why": said[-400:]}
    if status != 0:
        return {"passed": None, "why": f"it does not run here, status {status}: {said[-300:]}"}
    return {"passed": True}


def main() -> int:
    """One small case, forward and backward, on the GPU."""
    from benchmarks.gpu.gpu_cases import BAND, PLAIN, KernelCase
    from benchmarks.gpu.gpu_correctness import check_row

    case = KernelCase("64", BAND, 130, 64, "bfloat16", PLAIN, parts=2)
    return 0 if check_row(case)["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
