"""``sparsebert doctor`` as a library: what this machine can run, what it cannot and why.

>>> from sparsebert.doctor import examine
>>> examine().backends["dense"]
Backing(devices=('cpu',), reason='')
"""

from __future__ import annotations

import dataclasses
import os
import platform
from importlib import metadata
from typing import Any, NamedTuple

import torch

from sparsebert import __version__
from sparsebert.backends import registry
from sparsebert.backends.base import CallKind
from sparsebert.kernels.cpu import build, library
from sparsebert.machine import current_load, processor

PACKAGES = ("torch", "numpy", "safetensors", "transformers", "triton")


class Backing(NamedTuple):
    """Where a backend can run a plain call here, and why not on the other devices, or at all."""

    devices: tuple[str, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class NativeKernels:
    """The native CPU kernels; see `sparsebert.kernels.cpu.library.Native`.

    Attributes:
        path: of their library.
        reason: why it cannot be used and what to do, "" if it can.
        broken: whether that is a fault, not merely a library that is not there.
        isa: the instruction set in use, as `forced` says, or the best of `isas`.
        isas: those that library and processor have.
        forced: what SPARSEBERT_CPU_ISA says.
        features: what the one in use has beside.
        compiler: what built it; "" if unknown.
        compiler_here: what would build it now, or why nothing would.
    """

    path: str
    reason: str
    broken: bool
    isa: str
    isas: tuple[str, ...]
    forced: str
    features: tuple[str, ...]
    compiler: str
    compiler_here: str

    def __str__(self) -> str:
        lines = [f"native CPU kernels: {self.path}"]
        if self.isa:
            others = ", ".join(name for name in self.isas if name != self.isa)
            why = f", by {library.VARIABLE}" if self.forced else ""
            beside = f" with {', '.join(self.features)}" if self.features else ""
            there = f" (there are also: {others})" if others else ""
            lines.append(f"  instruction set  {self.isa}{beside}{why}{there}")
        else:
            lines.append(
                f"  not used         {'broken, see below' if self.broken else self.reason}"
            )
        lines.append(f"  built by         {self.compiler or 'unknown'}")
        lines.append(f"  compiler here    {self.compiler_here}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `examine` found; its `str` is the report.

    Attributes:
        versions: of Python, this package and those that it uses; "" for what is not installed.
        machine: the processor, its cores and load, and torch's threads.
        backends: by name, the preferred first.
        native: the native CPU kernels.
        hints: what is slower than it could be.
    """

    versions: dict[str, str]
    machine: str
    backends: dict[str, Backing]
    native: NativeKernels
    hints: tuple[str, ...]

    @property
    def broken(self) -> str:
        """What is wrong and what to do; "" if nothing is."""
        return self.native.reason if self.native.broken else ""

    def __str__(self) -> str:
        versions = [f"{name} {at or '(not installed)'}" for name, at in self.versions.items()]
        width = max(map(len, self.backends))
        lines = [", ".join(versions), self.machine, "", "backends, the preferred first:"]
        for name, (devices, reason) in self.backends.items():
            where = ", ".join(devices) or "no"
            lines.append(f"  {name:{width}}  {where}{': ' * bool(reason)}{reason}")
        lines += ["", str(self.native)]
        lines += [f"\n{said}" for said in self.hints]
        lines += [f"\nbroken: {self.broken}"] * bool(self.broken)
        return "\n".join(lines)


def examine() -> Diagnosis:
    """Look at this machine, this installation and this process's environment."""
    versions = {"sparsebert": __version__, "Python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    threads = torch.get_num_threads()
    machine = (
        f"{processor()}, {platform.machine()}, {platform.system()}; {current_load()}; torch takes "
        f"{threads} thread{'s' * (threads != 1)}"
    )
    return Diagnosis(
        versions=versions,
        machine=machine,
        backends={name: _backing(name) for name in registry.names()},
        native=_native(),
        hints=_hints(),
    )


def _native() -> NativeKernels:
    found: Any
    try:
        found = library.load()
    except ValueError as error:  # of SPARSEBERT_CPU_ISA
        found = library.Native(build.FOLDER / build.LIBRARY, reason=str(error), broken=True)
    try:
        here = build.Compiler.find().name
    except build.BuildError as error:
        here = str(error)
    return NativeKernels(
        path=str(found.path),
        reason=found.reason,
        broken=found.broken,
        isa=found.isa,
        isas=found.isas,
        forced=os.environ.get(library.VARIABLE, ""),
        features=found.features,
        compiler=found.build.get("compiler", ""),
        compiler_here=here,
    )


def _backing(name: str) -> Backing:
    devices, reasons = [], []
    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        try:
            refused = registry.get(name).refuses(CallKind(device, torch.float32, 64))
        except (ImportError, ValueError) as error:
            refused = [str(error)]
        if not refused:
            devices.append(device)
        reasons += refused
    return Backing(tuple(devices), "; ".join(dict.fromkeys(reasons)))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _hints() -> tuple[str, ...]:
    """MKL, which runs torch's matrix products, asks the processor's maker, not what it can do."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    if not (torch.backends.mkl.is_available() and processor().startswith("AMD") and wide):
        return ()
    return (
        "hint: torch's MKL takes AVX2 code on AMD processors, whatever MKL_ENABLE_INSTRUCTIONS "
        "says, so dense attention and linear layers reach about half of what this one can do; a "
        "preloaded library whose mkl_serv_intel_cpu_true() returns 1 makes it take AVX-512.",
    )
