"""Compile here what a GPU's first run launches, into one file that travels with the checkout.

    python -m benchmarks.gpu.build_cache               # what is checked, timed, swept first
    python -m benchmarks.gpu.build_cache --everything  # the wide matrix of cases, too

`make gpu-cache` calls it with the Triton of the GPU machine. Writes build/gpu_cache/, which git
ignores: the compiled forms, and a stamp of the checkout (`checkout_stamp`). What an earlier call
compiled is kept in build/triton-sm90/ and not compiled again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported: compiled, not interpreted

import triton

from benchmarks.gpu import compile_cache, specialisations
from benchmarks.gpu.specialisations import KernelCall
from benchmarks.harness import checkout_stamp, workers
from benchmarks.harness.options import positive
from benchmarks.harness.origin import CARRIED, RESULTS, ROOT

WANTED = "3.6.0"
"""The Triton of torch 2.11."""
_MADE = ROOT / "build" / "triton-sm90"
_MOST_BYTES = 50 * 2**20
_CALL_SECONDS = 600.0


def compile_call(call: KernelCall) -> dict[str, str]:
    """Compile what a call launches; the keys, as `compile_cache.keys_asked_for` has them."""
    specialisations.use_stub_driver()
    with compile_cache.keys_asked_for() as found:
        specialisations.run(call)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Compile and pack; the exit status is 1 if something does not compile, 2 without Triton."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.build_cache",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.add_argument("--jobs", type=positive, default=2, help="processes")
    parser.add_argument("--everything", action="store_true", help="the wide matrix, too")
    options = parser.parse_args(arguments)
    if triton.__version__ != WANTED:
        print(f"build_cache: needs Triton {WANTED}, found {triton.__version__}; make gpu-cache")
        return 2
    os.environ["TRITON_CACHE_DIR"] = str(_MADE)  # the processes inherit it
    needed = specialisations.first_run()
    calls = needed + (specialisations.wide_matrix() if options.everything else [])
    rests: dict[str, str] = {}
    first: set[str] = set()
    failed = 0
    start = time.monotonic()
    results = workers.results_of(
        compile_call, calls, options.jobs, end=start + 86400.0, limit=_CALL_SECONDS
    )
    for number, (call, found) in enumerate(results, 1):
        if isinstance(found, workers.Failure):
            failed += 1
            print(f"FAILED: {call}: {found.why}", flush=True)
        else:
            rests |= found
            first.update(found if call in needed else ())
        if number % 50 == 0 or number == len(calls):
            spent = time.monotonic() - start
            print(f"{number} of {len(calls)} calls, {len(rests)} forms, {spent:.0f} s", flush=True)
    count = compile_cache.pack(_MADE, rests, compile_cache.ARCHIVE, first=first)
    size = compile_cache.ARCHIVE.stat().st_size
    print(f"{count} forms, {size / 2**20:.1f} MiB, in {compile_cache.ARCHIVE}")
    print(checkout_stamp.write(CARRIED, ROOT, RESULTS.relative_to(ROOT).as_posix()))
    if size > _MOST_BYTES:
        print(f"build_cache: more than {_MOST_BYTES >> 20} MiB; leave out --everything")
    return 1 if failed or size > _MOST_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
