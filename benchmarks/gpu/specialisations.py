"""Which compiled forms of the kernels a GPU's first run launches, and how to make each compile.

A form depends on tile height, head size, dtypes, features and launch configuration, and not on the
mask or the length of a call; so a short band in tiles of one height stands for every plan. The
calls are real ones, but for the driver: nothing is launched, and no GPU is needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton

from benchmarks.gpu import gpu_cases
from benchmarks.gpu.sweep import candidates
from benchmarks.gpu.tune_kernels import LaunchEntry, launched_with
from benchmarks.kernels import calls as kernels
from benchmarks.kernels.band import band_program
from sparsebert import dropout
from sparsebert.kernels import launch
from sparsebert.kernels.configs import LaunchConfig
from sparsebert.kernels.stub_driver import StubDriver
from sparsebert.tiles.format import HEIGHTS

ARCH = "sm90"
"""What `StubDriver` is, and what a form is compiled for: H100, H200."""

_LENGTH = 144  # no multiple of the tallest tile
_FEATURES = tuple(each for each in gpu_cases.FEATURES if each != gpu_cases.LARGE)
"""Large scores are other numbers for the same forms."""
_PIECES = (1, 2, 3)
"""Tiles that share each row; what is done with a partial result is compiled in."""


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """A call whose launches are the forms of one tile height.

    Attributes:
        height, dim, dtype, features: as in `gpu_cases.KernelCase`.
        tuned: a kernel, and the configuration that it is launched with; None for the shipped ones.
    """

    height: int
    dim: int
    dtype: str
    features: str
    tuned: tuple[str, LaunchConfig] | None = None


def first_run() -> list[KernelCall]:
    """What a first run launches before its wide matrix, in the order in which it does."""
    shipped = [
        KernelCall(height, dim, dtype, features)
        for dim, dtype, features, height in itertools.product(
            (64, 128), gpu_cases.DTYPES, _FEATURES, HEIGHTS[::-1]
        )
    ]
    return [*shipped, *swept()]


def swept() -> list[KernelCall]:
    """The configurations that the sweep tries."""
    return [
        KernelCall(
            each.entry.height, each.entry.head_dim, str(each.entry.dtype).removeprefix("torch."),
            gpu_cases.PLAIN, (each.entry.kernel, each.config),
        )
        for each in candidates(ARCH)
    ]  # fmt: skip


def wide_matrix() -> list[KernelCall]:
    """What the cases of every height, head size, dtype and feature launch beyond `first_run`."""
    every = itertools.product(gpu_cases.HEAD_DIMS, gpu_cases.DTYPES, _FEATURES, HEIGHTS[::-1])
    known = set(first_run())
    found = [KernelCall(height, dim, dtype, features) for dim, dtype, features, height in every]
    return [call for call in found if call not in known]


def use_stub_driver(launcher: Callable[[Any, Any], object] | None = None) -> None:
    """From now on this process compiles for `ARCH` and launches nothing.

    Args:
        launcher: called with a form's source and metadata in place of making a launcher.
    """

    class Driver(StubDriver):
        def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
            if launcher is not None:
                launcher(source, metadata)
            return super().launcher_cls(source, metadata)

    triton.runtime.driver.set_active(Driver())
    launch.architecture = lambda device: ARCH


def run(call: KernelCall) -> None:
    """Forward and backward on the stub driver; what is not in Triton's cache is compiled."""
    features, heads = call.features, gpu_cases.HEADS
    kv_heads = heads // 2 if gpu_cases.GQA in features else heads
    dtype = getattr(torch, call.dtype)
    q, k, v, grad_o = (
        torch.zeros(gpu_cases.BATCH, _LENGTH, h, call.dim, dtype=dtype).transpose(1, 2)
        for h in (heads, kv_heads, kv_heads, heads)
    )
    has_key_mask, p = gpu_cases.KEY_MASK in features, 0.1 if gpu_cases.DROPOUT in features else 0.0
    key_mask = kernels.hiding_some(gpu_cases.BATCH, _LENGTH) if has_key_mask else None
    seed = dropout.draw_seed("cpu") if p else None
    grad_lse = torch.zeros(gpu_cases.BATCH, heads, _LENGTH) if "LSE" in features else None
    with _tuned(call):
        for pieces in _PIECES:
            program = band_program(_LENGTH, (call.height,), half_width=40, parts=pieces)
            rest = (key_mask, seed, program, call.dim**-0.5, p)
            o, lse = kernels.forward(q, k, v, *rest)
            if call.tuned is None or call.tuned[0] != "forward":
                kernels.backward(grad_o, grad_lse, q, k, v, o, lse, *rest)


def _tuned(call: KernelCall) -> contextlib.AbstractContextManager[None]:
    if call.tuned is None:
        return contextlib.nullcontext()
    kernel, config = call.tuned
    dtype = getattr(torch, call.dtype)
    entry = LaunchEntry(kernel, ARCH, call.height, call.dim, dtype, False, False)
    return launched_with(entry, config)


@contextlib.contextmanager
def listening(listener: Callable[[str, bool, float], None]) -> Iterator[None]:
    """Tell of every form that this process asks Triton for.

    Args:
        listener: called with Triton's hash of the form, whether it was in the cache, and the
            seconds that it took.
    """

    def heard(*, metadata: Any, times: Any, cache_hit: bool, **others: object) -> None:
        listener(metadata["hash"], cache_hit, times.total / 1e6)

    before = triton.knobs.compilation.listener
    triton.knobs.compilation.listener = heard
    try:
        yield
    finally:
        triton.knobs.compilation.listener = before
