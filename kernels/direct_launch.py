"""Launch a kernel with little Python: Triton's own way once, then its compiled form directly."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel

from .configs import LaunchConfig

Grid = tuple[int, int, int]

LARGEST_GRID: Grid = (2**31 - 1, 65535, 65535)

DIRECT_LAUNCH = os.environ.get("SPARSEBERT_DIRECT_LAUNCH", "1") != "0"
"""Whether compiled forms are started directly; else every launch is Triton's own.

Set `SPARSEBERT_DIRECT_LAUNCH=0` before the first import to switch it off. What it saves is host
time, which shows where a GPU is done before the next launch; on no GPU was that timed yet. Medians
of `python -m benchmarks.kernels.host_time`, with a stub in place of the CUDA driver, Triton 3.9,
q [1, 4, 512, 64] in bf16, in microseconds a call:

    tile heights    forward: direct / Triton's    backward: direct / Triton's
    one                        19 / 36                       52 / 94
    two                        27 / 58                       68 / 142

What it costs: this file; and that it knows from Triton's source what a compiled form depends on,
and how one is started (`CompiledKernel.__getitem__`), which a new Triton may change.
tests/kernels/test_launch.py holds both settings to the same launches.
"""


class Launcher:
    """Launches one kernel whose parameters are pointers, then numbers, then constants.

    Triton's launch takes most of its time to find out which compiled form the arguments want. On
    NVIDIA GPUs and for kernels that specialise on no integer (`do_not_specialize`) that depends
    on the device, the constants, the dtypes, whether all pointers are aligned to 16 bytes, and
    whether all integers fit 32 bits. Where both hold, the form that the first launch found is
    kept and started directly from then on; any other launch is Triton's own.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: dict[tuple[Any, ...], CompiledKernel] = {}
        names = list(kernel.arg_names)
        self._constants = [name for name in names if name.isupper()]
        self._pointers = [name for name in names if name.endswith("_ptr")]
        self._numbers = names[len(self._pointers) : len(names) - len(self._constants)]
        assert [*self._pointers, *self._numbers, *self._constants] == names

    def __call__(self, grid: Grid, arguments: dict[str, Any], config: LaunchConfig) -> None:
        """Launch a grid of programs; `arguments` may hold more than the kernel takes."""
        if any(size > most for size, most in zip(grid, LARGEST_GRID, strict=True)):
            raise ValueError(
                f"sparse_attention: q, with its batch, heads and length, takes a grid of "
                f"{' x '.join(map(str, grid))} programs of a kernel, and a GPU launches at most "
                f"{' x '.join(map(str, LARGEST_GRID))} at once; split the batch or the heads"
            )
        first = arguments[self._pointers[0]]
        if first.is_cuda and first.get_device() != torch.cuda.current_device():
            with torch.cuda.device(first.device):  # Triton launches on the current one
                self._launch(grid, arguments, config)
        else:
            self._launch(grid, arguments, config)

    def _launch(self, grid: Grid, arguments: dict[str, Any], config: LaunchConfig) -> None:
        pointers = [arguments[name] for name in self._pointers]
        numbers = [arguments[name] for name in self._numbers]
        constants = [arguments[name] for name in self._constants]
        key = None
        if self._can_launch_directly:
            key = _specialisation_key(pointers, numbers, (*constants, config))
            if key in self.compiled and not self.kernel.pre_run_hooks:
                self.compiled[key][grid](*pointers, *numbers, *constants)
                return
        compiled = self.kernel[grid](
            *pointers,
            *numbers,
            **dict(zip(self._constants, constants, strict=True)),
            enable_fp_fusion=True,
            **config.options,
        )
        if key is not None and isinstance(compiled, CompiledKernel):
            self.compiled[key] = compiled

    @functools.cached_property
    def _can_launch_directly(self) -> bool:
        """Whether `DIRECT_LAUNCH` is on and the class's conditions hold.

        No interpreter, no AMD GPU (where the code depends on how much memory is behind a pointer,
        too), no parameter that is specialised.
        """
        if not DIRECT_LAUNCH or not isinstance(self.kernel, triton.JITFunction):
            return False
        floats = {"scale", "keep_scale"}
        specialised = [
            p.name
            for p in self.kernel.params
            if not (p.is_constexpr or p.do_not_specialize or p.name in self._pointers)
        ]
        is_cuda = triton.runtime.driver.active.get_current_target().backend == "cuda"
        return is_cuda and floats.issuperset(specialised)


def _specialisation_key(
    pointers: list[torch.Tensor | None], numbers: list[Any], constants: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """What the compiled form of a launch depends on; None where it is Triton's to say."""
    dtypes = []
    addresses = 0
    for x in pointers:
        if x is None:
            dtypes.append(None)
        else:
            dtypes.append(x.dtype)
            addresses |= x.data_ptr()
    if addresses % 16 or max(numbers) >= 2**31 or min(numbers) < -(2**31):
        return None
    first = pointers[0]
    assert first is not None
    return (first.device, *constants, *dtypes, *map(type, numbers))
