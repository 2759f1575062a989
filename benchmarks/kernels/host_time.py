"""Python time of one call of the Triton kernels, without a GPU: the launch itself is stubbed.

    python -m benchmarks.kernels.host_time

Everything on the host's side is real: the arguments, Triton's binding and cache look-up, the
compiled kernel (for sm_90) found at the end. Only the last step, the call into the CUDA driver,
does nothing. Prints the median and the fastest of many calls in microseconds.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics

os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported: real launches, not interpreted

import torch
import triton

from benchmarks.harness.options import positive
from benchmarks.kernels.band import band_program
from sparsebert.backends.program import flatten, unflatten
from sparsebert.kernels import attention, launch
from sparsebert.kernels.program import KernelProgram
from sparsebert.kernels.stub_driver import StubDriver
from sparsebert.reporting.timing import side_by_side


def main() -> None:
    """Measure programs of one and of two tile heights, forward and backward."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.host_time", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--repeats", type=positive, default=500)
    repeats = parser.parse_args().repeats
    triton.runtime.driver.set_active(StubDriver())
    launch.architecture = lambda device: "sm90"
    q, k, v = (torch.zeros(1, 512, 4, 64, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
    options = attention.Options(0.125)
    for heights in ((64,), (64, 16)):
        program = band_program(512, heights)
        forward = functools.partial(attention.forward, q, k, v, program, options)
        o, lse = forward()
        backward = functools.partial(
            attention.backward, o, None, q, k, v, o, lse, program, options
        )
        rebuild = functools.partial(unflatten, KernelProgram, *flatten(program))
        calls = {"forward": forward, "backward": backward, "unflatten": rebuild}
        for name, times in side_by_side(calls, seconds=0.0, least=repeats).items():
            median, best = 1e3 * statistics.median(times), 1e3 * min(times)
            print(f"tiles of {heights} rows, {name:13} {median:6.1f} us, at best {best:6.1f}")


if __name__ == "__main__":
    main()
