"""The library of CPU kernels: found, checked and loaded once a process, or a reason why not.

A library that is missing, damaged, of another version or not made of the sources beside it is
never called: `Native.reason` says what is wrong and what to do, and the torch executor serves.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch  # before the library is loaded, which shares C++'s own library with it

from .build import FOLDER, GET_A_COMPILER, LIBRARY, is_sealed, source_hash

VERSION = 1  # SPARSEBERT_CPU_VERSION in abi.h
VARIABLE = "SPARSEBERT_CPU_ISA"
ISAS = ("avx512", "avx2", "neon", "generic")

_TEXT = ("sparsebert_cpu_build", "sparsebert_cpu_isas", "sparsebert_cpu_features")
_POINTER = ctypes.c_void_p
_NUMBERS = {
    "sparsebert_cpu_version": [],
    "sparsebert_cpu_use": [ctypes.c_char_p],
    "sparsebert_cpu_scratch": [_POINTER, ctypes.c_int64],
    "sparsebert_cpu_forward": [_POINTER],
    "sparsebert_cpu_backward": [_POINTER],
}


@dataclass(frozen=True)
class Native:
    """The library of this process.

    Attributes:
        path: where it is, or should be.
        library: the loaded library, its functions typed as in abi.h; None if it cannot be used.
        reason: why not, and what to do; "" if it can.
        broken: there is a library, and something is wrong with it.
        isas: the instruction sets that it has and this processor can run, best first.
        isa: the one in use.
        features: what that one has beside: "bf16".
        build: what the library was built of, by and for: "sources", "compiler", "target".
        parallel_for: the address of torch's `torch_parallel_for`.
    """

    path: Path
    library: ctypes.CDLL | None = None
    reason: str = ""
    broken: bool = False
    isas: tuple[str, ...] = ()
    isa: str = ""
    features: tuple[str, ...] = ()
    build: dict[str, str] = field(default_factory=dict)
    parallel_for: int = 0


class _Unusable(Exception):
    """Why the library cannot be used, and what to do."""


@functools.cache
def load() -> Native:
    """The library, with the instruction set that SPARSEBERT_CPU_ISA names, else the best.

    Looks once a process, however many threads ask, and a forked process has what its parent had:
    what two threads do at the same time does no harm, so there is no lock to be held at a fork.
    Raises ValueError for an instruction set that there is none of, or not on this processor.
    """
    return examine(FOLDER / LIBRARY, os.environ.get(VARIABLE, ""))


def examine(path: Path, isa: str = "") -> Native:
    """What `load` does, for the library at a path; `isa` "" means the best."""
    if isa and isa not in ISAS:
        raise ValueError(_wrong_isa(isa, ISAS))
    try:
        library = _opened(path)
    except FileNotFoundError:
        return Native(path, reason=_missing(path))
    except _Unusable as error:
        return Native(path, reason=str(error), broken=True)
    text = {name: getattr(library, name)().decode() for name in _TEXT}
    about = dict(pair.partition("=")[::2] for pair in text["sparsebert_cpu_build"].split("; "))
    hashed = source_hash(path.parent)
    if hashed and hashed != about.get("sources"):
        reason = f"{path} was not built of the sources beside it; {_remedy()}"
        return Native(path, reason=reason, broken=True, build=about)
    try:
        parallel_for = _parallel_for()
    except _Unusable as error:
        return Native(path, reason=str(error), build=about)
    isas = tuple(text["sparsebert_cpu_isas"].split())
    chosen = isa or isas[0]
    if chosen not in isas or library.sparsebert_cpu_use(chosen.encode()):
        raise ValueError(_wrong_isa(isa, isas))
    features = tuple(library.sparsebert_cpu_features().decode().split())
    return Native(path, library, "", False, isas, chosen, features, about, parallel_for)


def warn_once() -> None:
    """Tell who asked for the library, once a process, why it cannot be used.

    Where it is not made for the system there is nothing to be done, so nothing is said.
    """
    reason = load().reason
    if reason and sys.platform == "linux" and not _warned:
        _warned.append(True)
        warnings.warn(
            "the native CPU kernels cannot be used, torch operations run instead, slower: "
            f"{reason}",
            RuntimeWarning,
            stacklevel=2,
        )


_warned: list[bool] = []


def _opened(path: Path) -> ctypes.CDLL:
    """The loaded library, its functions typed; raises FileNotFoundError and _Unusable."""
    try:
        # Before the system's loader maps it, which would crash where the file is cut short.
        whole = is_sealed(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _Unusable(f"{path} cannot be read ({error.strerror}); {_remedy()}") from error
    if not whole:
        raise _Unusable(f"{path} is damaged: its checksum does not match; {_remedy()}")
    try:
        library = ctypes.CDLL(str(path))
        for name in _TEXT:
            getattr(library, name).restype = ctypes.c_char_p
        for name, arguments in _NUMBERS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int64
    except (OSError, AttributeError) as error:  # for another processor; without our functions
        raise _Unusable(f"{path} cannot be loaded ({error}); {_remedy()}") from error
    version = library.sparsebert_cpu_version()
    if version != VERSION:
        raise _Unusable(
            f"{path} has version {version} of the interface, this sparsebert needs {VERSION}; "
            f"{_remedy()}"
        )
    return library


def _parallel_for() -> int:
    """The address of the function by which torch's own threads run work."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.CDLL(str(path)).torch_parallel_for
    except (OSError, AttributeError) as error:
        raise _Unusable(
            f"torch {torch.__version__} has no torch_parallel_for in {path}; install a build of "
            "torch 2.11 or newer from PyPI or pytorch.org"
        ) from error
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _missing(path: Path) -> str:
    if sys.platform != "linux":
        return "their library is made for Linux alone"
    return f"their library is not built, there is no {path}; {_remedy()}"


def _remedy() -> str:
    """What to do about a library that is missing or wrong."""
    if source_hash():
        return f"run `make native`, which needs a C++ compiler ({GET_A_COMPILER})"
    return (
        f"get a C++ compiler ({GET_A_COMPILER}) and install sparsebert again: pip install "
        "--force-reinstall --no-deps --no-cache-dir sparsebert"
    )


def _wrong_isa(isa: str, able: tuple[str, ...]) -> str:
    return (
        f"{VARIABLE} must be one of {', '.join(able)}, which this processor and library can run, "
        f"got {isa!r}; unset it to take the best"
    )
