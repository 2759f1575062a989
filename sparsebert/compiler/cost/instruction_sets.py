"""Which of a processor's instruction sets plans are made for."""

from __future__ import annotations

from sparsebert.compiler.cost import constants
from sparsebert.kernels.cpu import library

_DEFAULT = "avx512"
"""Where there is no library of CPU kernels that could say what it runs."""


def isa_for(target: str, backend: str | None) -> str:
    """The instruction set that plans for a backend have in mind; "" if its costs know none.

    It is the one that the CPU kernels run with on the machine at hand. None is the target's first
    backend. Raises ValueError if SPARSEBERT_CPU_ISA names one that they cannot run.
    """
    backend = constants.tile_backends(target)[0] if backend is None else backend
    if backend not in constants.tile_backends(target) or not constants.isas(target, backend):
        return ""
    return library.load().isa or _DEFAULT
