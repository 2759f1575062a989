"""Run tests on native libraries that are built to notice errors: part of `make check-native`.

AddressSanitizer and UndefinedBehaviorSanitizer watch memory and arithmetic of the kernels. They
are loaded before Python, for the interpreter is not built for them, and Python's own small blocks
come from malloc, so that a kernel that leaves a buffer is seen. Leaks are not looked for: torch
and Python leave 11 MB at their end, and the kernels' memory is torch's.

ThreadSanitizer watches what threads share. torch's pool is not built for it either, so it cannot
see how that waits for its threads, and would call every result a race. So calls get a pool of
their own here, `joined_threads.cpp`: the same parts of the work, on threads that are started and
joined for each call.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from sparsebert.kernels.cpu import library
from tests import ROOT
from tests.native.environments import checkout

BUILD = "kernels/cpu/build.py"
POOL = "joined_threads"
CONTRACT = "tests/attention/test_sparse_attention.py::test_contract"
SIZES = ("1-8", "63-128", "65-80", "130-32")  # N and D
TESTS = (
    "tests/backends/test_native.py",
    *(
        f"{CONTRACT}[{size}-{dtype}-cpu]"
        for size in SIZES
        for dtype in ("float32", "bfloat16", "float16")
    ),
)
"""The native backend's own, and the contract of all; by each instruction set of the processor."""


class Run(NamedTuple):
    """Sanitizers that work together: how the library is built, what is loaded before Python."""

    name: str
    sanitizers: tuple[str, ...]
    runtimes: tuple[str, ...]
    settings: dict[str, str]
    threads: int
    every_isa: bool


RUNS = (
    Run(
        "AddressSanitizer and UndefinedBehaviorSanitizer",
        ("address", "undefined"),
        ("libasan.so", "libubsan.so"),
        {
            "ASAN_OPTIONS": "detect_leaks=0:log_path={report}",
            "UBSAN_OPTIONS": "print_stacktrace=1:log_path={report}",
            "PYTHONMALLOC": "malloc",
        },
        threads=2,
        every_isa=True,
    ),
    Run(
        "ThreadSanitizer",
        ("thread",),
        ("libtsan.so",),
        {"TSAN_OPTIONS": "log_path={report}"},
        threads=1,
        every_isa=False,
    ),
)


def runtime(cxx: str, name: str) -> str:
    """The path of a sanitizer's library; "" if the compiler has none."""
    told = subprocess.run([cxx, f"-print-file-name={name}"], capture_output=True, text=True)
    path = told.stdout.strip()
    return path if Path(path).is_absolute() else ""


def passes(run: Run, cxx: str, tests: list[str], isas: tuple[str, ...]) -> bool:
    """Whether the tests pass in a copy of the checkout with such a library, without a report."""
    with tempfile.TemporaryDirectory(prefix="sparsebert-sanitizers-") as name:
        folder = checkout(Path(name) / "checkout", toy=False)
        shutil.copytree(ROOT / "tests", folder / "tests")
        command = [sys.executable, BUILD, "--cxx", cxx, "--sanitize", *run.sanitizers]
        if subprocess.run(command, cwd=folder).returncode:
            return False
        settings = {
            "LD_PRELOAD": " ".join(runtime(cxx, name) for name in run.runtimes),
            "OMP_NUM_THREADS": str(run.threads),
            "OMP_WAIT_POLICY": "passive",
            **{key: value.format(report=folder / "report") for key, value in run.settings.items()},
        }
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        if "thread" in run.sanitizers:
            source = folder / "tests" / "native" / f"{POOL}.cpp"
            flags = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fsanitize=thread"]
            made = source.with_name(f"lib{POOL}.so")
            subprocess.run([cxx, *flags, "-o", str(made), str(source)], check=True)
            pytest += ["-p", f"tests.native.{POOL}"]
        passed = True
        for isa in isas if run.every_isa else isas[:1]:
            print(f"==> {isa}", flush=True)
            environment = {**os.environ, **settings, library.VARIABLE: isa}
            done = subprocess.run([*pytest, *tests], cwd=folder, env=environment)
            passed = passed and done.returncode == 0
        reports = sorted(folder.glob("report.*"))
        for report in reports:
            print(report.read_text(encoding="utf-8", errors="replace")[:10_000])
    return passed and not reports


def main() -> None:
    """Each run in turn; ends with an error if one of them fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cxx", default="g++", help="a GCC with its sanitizers (default: g++)")
    parser.add_argument("tests", nargs="*", default=list(TESTS), help="what pytest runs")
    given = parser.parse_args()
    found = library.load()
    if found.library is None:
        sys.exit(f"the native CPU kernels cannot be used: {found.reason}")
    failed = []
    for run in RUNS:
        print(f"==> {run.name}", flush=True)
        missing = [name for name in run.runtimes if not runtime(given.cxx, name)]
        if missing:
            print(f"==> left out: {given.cxx} has no {missing[0]}")
        elif not passes(run, given.cxx, given.tests, found.isas):
            failed.append(run.name)
    if failed:
        sys.exit(f"==> {' and '.join(failed)}: found something, or a test failed")
    print("==> sanitizers found nothing")


if __name__ == "__main__":
    main()
