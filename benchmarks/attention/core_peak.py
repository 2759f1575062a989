"""What one core can do at most, measured by a small C++ program (`core_peak.cpp`).

torch's matrix product is no measure of it: on AMD it takes narrower vectors than the processor
has. Without a compiler there is no peak, and rows leave its columns empty.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import tempfile
from pathlib import Path

from benchmarks.harness.mkl import compile_library
from sparsebert.kernels.cpu.build import FOLDER, UNITS, BuildError, Compiler
from sparsebert.kernels.cpu.library import load

SOURCE = Path(__file__).with_suffix(".cpp")


@dataclasses.dataclass(frozen=True)
class CorePeak:
    """Of one core, with the instruction set of the native kernels in use.

    Attributes:
        fma_gflop_s: fp32 multiply-adds, 10^9 flop a second.
        bf16_gflop_s: dot products of bf16 pairs; the same as fp32's where there are none.
        exp_ns: nanoseconds of one of the kernels' 2^x, in a vector of them.
        l2_gb_s: reading from the second cache, 10^9 bytes a second.
    """

    fma_gflop_s: float
    bf16_gflop_s: float
    exp_ns: float
    l2_gb_s: float

    def gflop_s(self, dtype: str) -> float:
        """By the name of a dtype of q, k and v; what is widened is multiplied in fp32."""
        return self.bf16_gflop_s if dtype == "bfloat16" else self.fma_gflop_s


@functools.cache
def measure() -> CorePeak | None:
    """Compile and run it; None where the native kernels or a compiler are missing."""
    native = load()
    if not native.isa:
        return None
    isa = native.isa
    try:
        units = {unit.isa: unit for unit in UNITS.get(Compiler.find().architecture, ())}
        flags = units[isa].flags if isa in units else ()
        if "bf16" in native.features and f"{isa}_bf16" in units:
            flags = units[f"{isa}_bf16"].flags
        with tempfile.TemporaryDirectory(prefix="sparsebert-peak-") as folder:
            path = compile_library(
                SOURCE.read_text(encoding="utf-8"),
                Path(folder) / "peak.so",
                (f"-DSB_ISA={isa}", f"-I{FOLDER}", *flags),
            )
            library = ctypes.CDLL(str(path))
            found = []
            for name in ("core_fma", "core_bf16", "core_exp2", "core_l2"):
                function = getattr(library, name)
                function.restype = ctypes.c_double
                found.append(float(function()))
    except (BuildError, OSError):
        return None
    fma, bf16, exp, l2 = found
    return CorePeak(fma, max(fma, bf16), exp, l2)
