"""Having MKL use AVX-512 on AMD processors, as it does by itself on Intel's.

MKL asks who made the processor, not what it can do, and takes AVX2 code on AMD, so torch's matrix
products and dense attention take up to twice as long there as they could. A library that is loaded
before it and answers in its place changes that: the fair rival of kernels that use AVX-512.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_SOURCE = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"


def preload(folder: Path) -> dict[str, str]:
    """What to set in the environment of a process; `folder` holds the library meanwhile."""
    source, library = folder / "mkl512.c", folder / "mkl512.so"
    source.write_text(_SOURCE, encoding="utf-8")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    before = os.environ.get("LD_PRELOAD")
    return {"LD_PRELOAD": f"{library}:{before}" if before else str(library)}
