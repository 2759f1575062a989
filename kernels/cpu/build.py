"""Compile the CPU kernels into one library: ``make native``, or ``python kernels/cpu/build.py``.

`driver.cpp` is compiled for the least processor of its kind, `attention.cpp` once for each
instruction set; which of them runs is chosen when the library is loaded. Installing the package
does the same by `setup.py`. Needs the standard library and a C++17 compiler: g++, clang++, or what
CXX names (a cross compiler too: what the compiler makes code for decides the instruction sets).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
LIBRARY = "libsparsebert_cpu.so"
VARIABLE = "SPARSEBERT_NATIVE"
COMPILERS = ("g++", "clang++", "c++")
SANITIZERS = ("address", "undefined", "thread")
GET_A_COMPILER = "apt install g++, dnf install gcc-c++, or conda install cxx-compiler"
_REMEDY = f"install one ({GET_A_COMPILER}), or name one in CXX"

COMMON_FLAGS = (
    "-O3", "-fPIC", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
)  # fmt: skip
_STRICT = ("-Wall", "-Wextra", "-Werror")
# GCC's own headers set these off, by the thousand, wherever they are used for AVX-512.
_FALSE_ALARMS = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (
    "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c",
    "-mprefer-vector-width=512",
)  # fmt: skip
_EXPORTS = "{ global: sparsebert_cpu_*; local: *; };\n"
_SEAL = b"\nsparsebert sha256 "


class Unit(NamedTuple):
    """One compilation of a source for an instruction set, which is its namespace in C++."""

    source: str
    isa: str
    flags: tuple[str, ...] = ()


UNITS: dict[str, tuple[Unit, ...]] = {
    "x86_64": (
        Unit("attention.cpp", "avx512", _AVX512),
        Unit("attention_bf16.cpp", "avx512_bf16", (*_AVX512, "-mavx512bf16")),
        Unit("attention.cpp", "avx2", _AVX2),
        Unit("attention.cpp", "generic"),
    ),
    "aarch64": (
        Unit("attention.cpp", "neon", ("-DSB_NEON",)),
        Unit("attention.cpp", "generic"),
    ),
}
"""By the architecture that the compiler makes code for, best first, `_PORTABLE` at the end."""
_PORTABLE = (Unit("attention.cpp", "generic"),)
_DRIVER = "driver.cpp"


class BuildError(Exception):
    """The library was not built; the message says why, and what to do."""


def sources(folder: Path = FOLDER) -> list[Path]:
    """The C++ sources and headers, sorted; none where the package is installed."""
    return sorted(path for path in folder.glob("*.*") if path.suffix in (".cpp", ".h"))


def source_hash(folder: Path = FOLDER) -> str:
    """The first 16 digits of the SHA-256 of sources and flags; "" where there are no sources."""
    files = sources(folder)
    if not files:
        return ""
    digest = hashlib.sha256(repr((COMMON_FLAGS, _EXPORTS, UNITS)).encode())
    for path in files:
        content = path.read_bytes()
        digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def wish(environment: Mapping[str, str] = os.environ) -> str:
    """What SPARSEBERT_NATIVE says: "" to build if possible, "0" not to, "1" to fail if not."""
    value = environment.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise BuildError(
            f"{VARIABLE} must be 0 (do not build the native CPU kernels) or 1 (fail if they "
            f"cannot be built), got {value!r}; unset it to build them if possible"
        )
    return value


def sealed(content: bytes) -> bytes:
    """The content with a line at its end that has its checksum; loaders do not read so far."""
    return content + _SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def is_sealed(content: bytes) -> bool:
    """Whether it is what `sealed` made: a file that was cut or changed may crash its loader."""
    body, seal, _ = content.rpartition(_SEAL)
    return bool(seal) and sealed(body) == content


def _not_for(system: str) -> str:
    return f"they are made for Linux, not for {system}; the torch executor serves there"


class Compiler(NamedTuple):
    """A C++ compiler.

    Attributes:
        command: how it is called.
        name: the first line of its `--version`.
        target: what it makes code for: "x86_64-linux-gnu".
    """

    command: tuple[str, ...]
    name: str
    target: str

    @classmethod
    def find(cls, cxx: str | None = None) -> Compiler:
        """`cxx`, else what CXX names, else the first of `COMPILERS` that is there."""
        given = cxx or os.environ.get("CXX", "")
        if sys.platform != "linux" and not given:
            raise BuildError(_not_for(sys.platform))
        candidates = [given] if given else [name for name in COMPILERS if shutil.which(name)]
        if not candidates:
            raise BuildError(f"there is no C++ compiler; {_REMEDY}")
        command = tuple(shlex.split(candidates[0]))
        try:
            version = _run([*command, "--version"]).splitlines()[0].strip()
            target = _run([*command, "-dumpmachine"]).splitlines()[0].strip()
        except (BuildError, IndexError) as error:
            raise BuildError(
                f"the C++ compiler {candidates[0]!r} does not run; {_REMEDY}"
            ) from error
        # It becomes a string of C, and a value among "key=value; key=value".
        return cls(command, version.translate(str.maketrans('";\\', "' /")), target)

    @property
    def architecture(self) -> str:
        """The processor's kind, as in `UNITS`."""
        return self.target.partition("-")[0]

    def knows(self, flags: Sequence[str]) -> bool:
        """Whether it takes these flags."""
        try:
            _run([*self.command, "-Werror", *flags, "-fsyntax-only", "-x", "c++", os.devnull])
        except BuildError:
            return False
        return True


class Built(NamedTuple):
    """What a build made.

    Attributes:
        path: of the library.
        compiler: its name.
        isas: the instruction sets in it, best first.
        left_out: those whose flags the compiler does not know.
        seconds: that it took; 0.0 if the library was up to date.
    """

    path: Path
    compiler: str
    isas: tuple[str, ...]
    left_out: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        if not self.seconds:
            return f"{_short(self.path)} is up to date"
        missing = f", without {' '.join(self.left_out)}" if self.left_out else ""
        return (
            f"{_short(self.path)}: {' '.join(self.isas)}{missing}; by {self.compiler} in "
            f"{self.seconds:.0f} s"
        )


def build(
    out: Path = FOLDER / LIBRARY,
    *,
    cxx: str | None = None,
    isas: Sequence[str] = (),
    sanitize: Sequence[str] = (),
    strict: bool = False,
    jobs: int | None = None,
    force: bool = False,
) -> Built:
    """Compile and link the library, unless `out` is just that already.

    The file appears at once or not at all: other processes may be loading the one before.

    Args:
        out: the library to write.
        cxx: the compiler; see `Compiler.find`.
        isas: only these instruction sets.
        sanitize: build for these `SANITIZERS` instead of for speed.
        strict: warnings are errors.
        jobs: compilers at a time; None means one for each core.
        force: build even what is up to date.

    Raises BuildError.
    """
    began = time.monotonic()
    compiler = Compiler.find(cxx)
    if "linux" not in compiler.target:
        raise BuildError(_not_for(compiler.target))
    if not (FOLDER / _DRIVER).is_file():
        raise BuildError(f"there are no sources in {FOLDER}; build in a checkout")
    all_units = [
        unit
        for unit in UNITS.get(compiler.architecture, _PORTABLE)
        if (FOLDER / unit.source).is_file()
    ]
    unknown = sorted({*isas} - {unit.isa for unit in all_units})
    if unknown:
        known = ", ".join(unit.isa for unit in all_units)
        raise BuildError(
            f"no instruction set {unknown[0]!r} for {compiler.target}; it has {known}"
        )
    units = [unit for unit in all_units if not isas or unit.isa in isas]
    about = f"sources={source_hash(FOLDER)}; compiler={compiler.name}; target={compiler.target}"
    about += f"; isas={' '.join(unit.isa for unit in units)}" if isas else ""
    about += f"; sanitize={' '.join(sanitize)}" if sanitize else ""

    left_out = tuple(unit.isa for unit in units if not compiler.knows(unit.flags))
    units = [unit for unit in units if unit.isa not in left_out]
    names = tuple(unit.isa for unit in units)
    if not (force or strict) and _is_made_of(out, about):
        return Built(out, compiler.name, names, left_out, 0.0)
    extra = [*(_STRICT if strict else ())]
    # C++'s own library stays shared: torch loads it anyway, and a copy of this system's would need
    # its glibc, however old the rest of the code is content with.
    runtime = []
    if sanitize:
        checks = f"-fsanitize={','.join(sanitize)}"
        extra += ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", checks]
        runtime = [checks, *(["-shared-libsan"] if "clang" in compiler.name else [])]
    with tempfile.TemporaryDirectory(prefix="sparsebert-native-") as name:
        folder = Path(name)
        commands = [
            [
                *compiler.command,
                *COMMON_FLAGS,
                *extra,
                *flags,
                "-c",
                "-o",
                str(folder / f"{place}.o"),
            ]
            for place, flags in enumerate(_compilations(compiler, units, about))
        ]
        with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
            list(pool.map(_run, commands))
        exports, linked = folder / "exports", folder / LIBRARY
        exports.write_text(_EXPORTS, encoding="utf-8")
        objects = [command[-1] for command in commands]
        script = f"-Wl,--version-script={exports}"
        _run([*compiler.command, "-shared", *runtime, script, "-o", str(linked), *objects])
        _write(out, sealed(linked.read_bytes()))
    return Built(out, compiler.name, names, left_out, time.monotonic() - began)


def _compilations(compiler: Compiler, units: Sequence[Unit], about: str) -> list[list[str]]:
    """Source and flags of each, in the order of linking: the driver, then the least set first.

    Of an inline function that several of them hold the linker keeps the first one; another order
    could make old processors call what was compiled for newer ones.
    """
    found = [[_DRIVER, f'-DSB_BUILD="{about}"', *(f"-DSB_HAS_{u.isa.upper()}" for u in units)]]
    quiet = _FALSE_ALARMS if compiler.knows(_FALSE_ALARMS) else ()
    for unit in reversed(units):
        flags = [unit.source, f"-DSB_ISA={unit.isa}", "-fvisibility=hidden", *unit.flags]
        found.append([*flags, *(quiet if unit.isa.startswith("avx512") else ())])
    return found


def _is_made_of(library: Path, about: str) -> bool:
    """Whether it says that it was built of this, and is whole."""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return about.encode() + b"\0" in content and is_sealed(content)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise BuildError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):  # where there is nothing
            temporary.unlink()


def _run(command: Sequence[str]) -> str:
    """Run a compiler in the sources' folder, so that no path of it gets into the library.

    Returns what it said; raises BuildError with the first of that if it fails.
    """
    try:
        done = subprocess.run(
            command, cwd=FOLDER, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, text=True, errors="replace", check=False,
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        told = "\n".join(done.stdout.splitlines()[:30])
        raise BuildError(f"{shlex.join(command)} failed ({done.returncode}):\n{told}")
    return done.stdout


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def build_if_possible(out: Path = FOLDER / LIBRARY) -> Built | None:
    """As SPARSEBERT_NATIVE says: what was built, or None after a line that says why not.

    Raises BuildError if SPARSEBERT_NATIVE=1 and it cannot be built.
    """
    wanted = wish()
    if wanted == "0":
        print(f"sparsebert: the native CPU kernels are not built, by {VARIABLE}=0")
        return None
    try:
        return build(out)
    except BuildError as error:
        if wanted == "1":
            raise
        print(
            "sparsebert: the native CPU kernels are not built, torch operations run instead, "
            f"slower: {error}", file=sys.stderr,
        )  # fmt: skip
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 if the library cannot be built."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=FOLDER / LIBRARY, help="the library to write")
    parser.add_argument("--cxx", help="compiler (default: CXX, else g++ or clang++)")
    parser.add_argument("--isas", nargs="+", default=[], help="only these instruction sets")
    parser.add_argument(
        "--sanitize", nargs="+", default=[], choices=SANITIZERS, help="build for sanitizers"
    )
    parser.add_argument("--strict", action="store_true", help="warnings are errors")
    parser.add_argument("--jobs", type=int, help="compilers at a time (default: one a core)")
    parser.add_argument("--force", action="store_true", help="even if the library is up to date")
    parser.add_argument(
        "--if-possible", action="store_true", help=f"go by {VARIABLE}; only a line if it fails"
    )
    given = parser.parse_args(argv)
    options = {name: value for name, value in vars(given).items() if name != "if_possible"}
    try:
        built = build_if_possible(given.out) if given.if_possible else build(**options)
    except BuildError as error:
        print(f"sparsebert: the native CPU kernels are not built: {error}", file=sys.stderr)
        return 1
    if built is not None:
        print(f"sparsebert: native CPU kernels: {built}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
