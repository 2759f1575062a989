"""Build the CPU kernels' self-test, in C++, and run it: ``python -m tests.native.run_selftest``.

It needs a C++ compiler and builds a library of its own, so that it can be made with sanitizers,
and for other processors:

    --sanitize address undefined
    --sanitize thread
    --cxx clang++
    --cxx aarch64-linux-gnu-g++ --runner "qemu-aarch64 -L /usr/aarch64-linux-gnu"
    --cases 10000 --seed 7 --all-floats
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sparsebert.cli.options import positive
from sparsebert.kernels.cpu import build

SOURCES = Path(__file__).parent / "selftest"
_OPTIMISED = ("-O2",)
_SANITIZED = ("-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")


def compile_selftest(
    library: Path, folder: Path, cxx: str | None = None, sanitize: Sequence[str] = ()
) -> Path:
    """The self-test of a library, built as the library was; raises BuildError."""
    compiler = build.Compiler.find(cxx)
    made = folder / "selftest"
    flags = [*_OPTIMISED]
    if sanitize:
        shared = ["-shared-libsan"] if "clang" in compiler.name else []
        flags = [*_SANITIZED, f"-fsanitize={','.join(sanitize)}", *shared]
    flags += ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{build.FOLDER}"]
    source, found = SOURCES / "selftest.cpp", f"-Wl,-rpath,{library.parent}"
    _run([*compiler.command, *flags, str(source), "-o", str(made), str(library), found])
    return made


def compile_elementary_test(isa: str, folder: Path, cxx: str | None = None) -> Path:
    """The test of exp2 and conversions of an instruction set; raises BuildError."""
    compiler = build.Compiler.find(cxx)
    (unit,) = (x for x in build.UNITS[compiler.architecture] if x.isa == isa)
    made = folder / f"elementary_test_{isa}"
    flags = [*build.COMMON_FLAGS, *unit.flags, f"-DSB_ISA={isa}", f"-I{build.FOLDER}"]
    _run([*compiler.command, *flags, str(SOURCES / "elementary_test.cpp"), "-o", str(made)])
    return made


def isas_of(selftest: Path, runner: Sequence[str] = ()) -> list[str]:
    """The instruction sets that the library has and the processor can run, best first."""
    return _run([*runner, str(selftest), "--list"]).split()


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = "\n".join((done.stdout + done.stderr).splitlines()[:30])
        raise build.BuildError(f"{shlex.join(command)} failed ({done.returncode}):\n{told}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 if a result is wrong or something cannot be built."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cxx", help="compiler (default: CXX, else g++ or clang++)")
    parser.add_argument("--isas", nargs="+", default=[], help="only these instruction sets")
    parser.add_argument("--sanitize", nargs="+", default=[], choices=build.SANITIZERS)
    parser.add_argument("--runner", default="", help="what runs programs for another processor")
    parser.add_argument("--cases", type=positive, default=300, help="for each instruction set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all-floats", action="store_true", help="for exp2; minutes")
    given = parser.parse_args(argv)
    runner = shlex.split(given.runner)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="sparsebert-selftest-") as name:
        folder = Path(name)
        try:
            built = build.build(
                folder / build.LIBRARY, cxx=given.cxx, isas=given.isas, sanitize=given.sanitize,
                strict=not given.sanitize,  # whose code sets off false alarms
            )  # fmt: skip
            print(f"sparsebert: self-test: {built}", flush=True)
            selftest = compile_selftest(built.path, folder, given.cxx, given.sanitize)
            for isa in isas_of(selftest, runner):
                options = ["--isa", isa, "--cases", str(given.cases), "--seed", str(given.seed)]
                failed += subprocess.call([*runner, str(selftest), *options]) != 0
                if not given.sanitize:
                    test = compile_elementary_test(isa, folder, given.cxx)
                    every = "1" if given.all_floats else "1009"
                    failed += subprocess.call([*runner, str(test), every]) != 0
        except build.BuildError as error:
            print(f"sparsebert: self-test: {error}", file=sys.stderr)
            return 1
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
