"""Which of a processor's instruction sets plans are made for."""

from __future__ import annotations

import functools

from sparsebert.compiler.cost import constants
from sparsebert.kernels.cpu import library

_DEFAULT = "avx512"
"""Where there is no library of CPU kernels that could say what it runs."""


def isa_for(target: str, backend: str | None) -> str:
    """The instruction set that plans for a backend have in mind; "" if its costs know none.

    It is the one that the CPU kernels run with on the machine at hand. None is the target's first
    backend. Raises ValueError if SPARSEBERT_CPU_ISA names one that they cannot run.
    """
    return library.load().isa or _DEFAULT if _knows_isas(target, backend) else ""


@functools.cache  # calls with a mask ask each time
def _knows_isas(target: str, backend: str | None) -> bool:
    known = constants.tile_backends(target)
    backend = known[0] if backend is None else backend
    return backend in known and bool(constants.isas(target, backend))
