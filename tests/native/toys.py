"""Small libraries with the interface of the real one, for those who build, load and install it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sparsebert.kernels.cpu import build, library

DRIVER = """\
#include "abi.h"
#include <vector>
extern "C" {
int64_t sparsebert_cpu_version(void) { return SPARSEBERT_CPU_VERSION; }
const char* sparsebert_cpu_build(void) { return SB_BUILD; }
const char* sparsebert_cpu_isas(void) { return "generic"; }
int64_t sparsebert_cpu_use(const char* isa) { return isa[0] != 'g'; }
const char* sparsebert_cpu_features(void) { return ""; }
int64_t sparsebert_cpu_scratch(const struct SbCall*, int64_t) { return 0; }
int64_t sparsebert_cpu_forward(const struct SbCall* call) {
  std::vector<float> x(call->D, 1.0f);  // its functions must stay inside
  return (int64_t)x[0];
}
int64_t sparsebert_cpu_backward(const struct SbCall*) { return 0; }
int64_t internal(void) { return 1; }
}
"""
ATTENTION = """\
namespace sb::SB_ISA {
float sum(const float* x) { return x[0] + x[1]; }
}
"""
_C = """\
#include <stdint.h>
int64_t sparsebert_cpu_version(void) { return VERSION; }
const char* sparsebert_cpu_build(void) { return "sources=SOURCES; compiler=cc 1"; }
const char* sparsebert_cpu_isas(void) { return "ISAS"; }
int64_t sparsebert_cpu_use(const char* isa) { return 0; }
const char* sparsebert_cpu_features(void) { return "bf16"; }
int64_t sparsebert_cpu_scratch(const void* call, int64_t backward) { return 0; }
int64_t sparsebert_cpu_forward(const void* call) { return 0; }
int64_t LAST(const void* call) { return 0; }
"""


def compiler() -> tuple[str, ...]:
    """The C++ compiler's command; skips the test where there is none."""
    try:
        return build.Compiler.find().command
    except build.BuildError as error:
        pytest.skip(f"needs a C++ compiler: {error}")


def sources(folder: Path) -> Path:
    """A folder with a driver and an attention that compile in an instant."""
    folder.mkdir(parents=True, exist_ok=True)
    abi = (build.FOLDER / "abi.h").read_text(encoding="utf-8")
    for name, text in (("driver.cpp", DRIVER), ("attention.cpp", ATTENTION), ("abi.h", abi)):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def toy(
    path: Path,
    *,
    version: int = library.VERSION,
    sources: str = "0123456789abcdef",
    isas: str = "avx2 generic",
    last: str = "sparsebert_cpu_backward",
) -> Path:
    """A whole library that says this of itself, whose last function has that name."""
    text = _C.replace("VERSION", str(version)).replace("SOURCES", sources)
    source, made = path.with_suffix(".c"), path.with_suffix(".unsealed")
    source.write_text(text.replace("ISAS", isas).replace("LAST", last), encoding="utf-8")
    command = [*compiler(), "-x", "c", "-shared", "-fPIC", "-o", str(made), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(build.sealed(made.read_bytes()))
    source.unlink()
    return path
