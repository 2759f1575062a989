"""`sparsebert doctor`: what it says of the native library, of backends, and its exit code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert import doctor
from sparsebert.backends import registry
from sparsebert.cli import main
from sparsebert.kernels.cpu import build, library

Output = pytest.CaptureFixture[str]
NATIVE = library.Native(
    Path("somewhere/lib.so"),
    isas=("avx512", "avx2", "generic"),
    isa="avx512",
    features=("bf16",),
    build={"sources": "0" * 16, "compiler": "g++ 99"},
)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    library.load.cache_clear()
    yield
    library.load.cache_clear()


def told(monkeypatch: pytest.MonkeyPatch, capsys: Output, native: Any, code: int = 0) -> list[str]:
    """The lines of the report where the library is this."""
    monkeypatch.setattr(library, "examine", lambda path, isa: native)
    assert main(["doctor"]) == code
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_a_library_in_use(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.delenv(library.VARIABLE, raising=False)
    lines = told(monkeypatch, capsys, NATIVE)
    assert "native CPU kernels: somewhere/lib.so" in lines
    assert "instruction set avx512 with bf16 (there are also: avx2, generic)" in lines
    assert "built by g++ 99" in lines
    assert not any("broken" in line for line in lines)


def test_a_forced_instruction_set(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setenv(library.VARIABLE, "avx512")
    lines = told(monkeypatch, capsys, NATIVE)
    assert (
        "instruction set avx512 with bf16, by SPARSEBERT_CPU_ISA (there are also: avx2, generic)"
        in lines
    )


def test_no_library_is_no_fault(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    missing = library.Native(Path("lib.so"), reason="not built; run `make native`")
    lines = told(monkeypatch, capsys, missing)
    assert "not used not built; run `make native`" in lines
    assert "built by unknown" in lines


def test_a_broken_library_is_one(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    damaged = library.Native(Path("lib.so"), reason="lib.so is damaged; remedy", broken=True)
    lines = told(monkeypatch, capsys, damaged, code=1)
    assert lines[-1] == "broken: lib.so is damaged; remedy"


def test_so_is_an_instruction_set_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setenv(library.VARIABLE, "mmx")
    assert main(["doctor"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("broken: SPARSEBERT_CPU_ISA must be one of ") and "'mmx'" in last


@pytest.mark.parametrize("cxx", ["/bin/false", ""])
def test_the_compiler_at_hand(cxx: str, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setenv("CXX", cxx)
    try:
        here = build.Compiler.find().name
    except build.BuildError as error:
        here = str(error)
    lines = told(monkeypatch, capsys, NATIVE)
    assert f"compiler here {here}" in lines
    assert bool(cxx) == ("'/bin/false' does not run; install one" in here)


def test_versions_and_threads(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    lines = told(monkeypatch, capsys, NATIVE)
    assert f"torch {torch.__version__}" in lines[0]
    assert "no-such-package (not installed)" in lines[0]
    assert f"torch takes {torch.get_num_threads()} thread" in lines[1]


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are registered, in their order; one that cannot be imported says so."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    registry.register("absent", "sparsebert.no_such_module")
    try:
        found = doctor.examine().backends
    finally:
        registry.unregister("absent")
    assert list(found) == ["absent", *registry.names()]
    assert found["absent"] == ((), "No module named 'sparsebert.no_such_module'")
    assert "cpu" in found["torch"].devices and found["dense"].reason == ""
    if not torch.cuda.is_available():
        assert found["triton"].devices == ()
        assert "CUDA" in found["triton"].reason or "install" in found["triton"].reason


@pytest.mark.parametrize(
    ("name", "capability", "mkl", "hinted"),
    [
        ("AMD EPYC", "AVX512", True, True),
        ("AMD EPYC", "AVX2", True, False),
        ("AMD EPYC", "AVX512", False, False),
        ("Intel(R) Xeon(R)", "AVX512", True, False),
    ],
)
def test_the_slow_path_of_mkl(
    name: str, capability: str, mkl: bool, hinted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "processor", lambda: name)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    found = doctor.examine()
    assert any("MKL takes AVX2 code" in hint for hint in found.hints) == hinted
    assert ("\nhint: " in str(found)) == hinted
