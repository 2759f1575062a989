"""MKL, which multiplies torch's matrices on x86: as shipped, or made to use AVX-512 on AMD.

MKL asks who made the processor, not what it can do, and takes AVX2 code on those of AMD. A
function of its own, `mkl_serv_intel_cpu_true`, says so; a library that is loaded before torch and
has one of that name which always says yes makes it take AVX-512. That has to be there when a
process starts, so what is measured that way runs in a process of its own. (What
MKL_ENABLE_INSTRUCTIONS says makes no difference on AMD.)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.harness.origin import ROOT
from sparsebert.kernels.cpu.build import BuildError, Compiler

STOCK, AVX512 = "stock", "avx512"
MODES = (STOCK, AVX512)
WORDS = {STOCK: "MKL as shipped", AVX512: "MKL made to use AVX-512"}
_STARTED = "SPARSEBERT_BENCHMARKS_MKL"  # set in a process that was started for its mode
_FUNCTION = "mkl_serv_intel_cpu_true"
_SOURCE = f'extern "C" int {_FUNCTION}() {{ return 1; }}\n'


def active() -> str:
    """The mode of this process."""
    return AVX512 if hasattr(ctypes.CDLL(None), _FUNCTION) else STOCK


def in_words(threads: str, mode: str, *more: str) -> str:
    """A setting of a run: "2 threads, MKL as shipped"."""
    words = (f"{threads} thread{'s' * (threads != '1')}", WORDS.get(mode, ""), *more)
    return ", ".join(filter(None, words))


def is_child() -> bool:
    """This process was made by `run_again`."""
    return _STARTED in os.environ


def run_again(module: str, arguments: Sequence[str], mode: str) -> int:
    """Run a command of the benchmarks in a process of this mode; its exit status.

    Raises BuildError if there is no compiler for what it takes, or this is such a process itself:
    then the system has not loaded the library.
    """
    if is_child():
        raise BuildError("this system loads no library before others (LD_PRELOAD)")
    command = [sys.executable, "-m", module, *arguments, "--mkl", mode]
    with environment(mode) as variables:
        there = {**variables, _STARTED: mode}
        return subprocess.run(command, cwd=ROOT, env=there, check=False).returncode


@contextlib.contextmanager
def environment(mode: str) -> Iterator[Mapping[str, str]]:
    """The environment that a process of this mode has to start with, as long as it is entered.

    Raises sparsebert.kernels.cpu.build.BuildError if there is no compiler for the library.
    """
    others = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    if mode == STOCK:
        yield others
        return
    with tempfile.TemporaryDirectory(prefix="sparsebert-mkl-") as folder:
        library = compile_library(_SOURCE, Path(folder) / "intel.so")
        yield {**others, "LD_PRELOAD": str(library)}


def compile_library(source: str, library: Path, flags: tuple[str, ...] = ()) -> Path:
    """Compile C++ into a shared library; raises BuildError."""
    file = library.with_suffix(".cpp")
    file.write_text(source, encoding="utf-8")
    command = [*Compiler.find().command, "-O3", "-fPIC", "-std=c++17", "-shared", *flags]
    done = subprocess.run(
        [*command, "-o", str(library), str(file)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BuildError(f"{command[0]} failed ({done.returncode}): {done.stderr[:300]}")
    return library
