"""The peak of a core: measured where there is a compiler, left out where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.attention import core_peak
from sparsebert.kernels.cpu.build import BuildError, Compiler
from sparsebert.kernels.cpu.library import load


@pytest.fixture
def fresh() -> Iterator[None]:
    core_peak.measure.cache_clear()
    yield
    core_peak.measure.cache_clear()


def has_compiler() -> bool:
    try:
        Compiler.find()
    except BuildError:
        return False
    return True


def test_a_core_multiplies_and_raises(fresh: None) -> None:
    if not (load().isa and has_compiler()):
        pytest.skip("needs the native kernels and a C++ compiler")
    found = core_peak.measure()
    assert found is not None
    # Whatever the machine: more than a multiply-add and less than 64 of them in a nanosecond.
    assert 0.5 < found.fma_gflop_s < 1000.0
    assert found.bf16_gflop_s >= found.fma_gflop_s
    assert found.gflop_s("bfloat16") == found.bf16_gflop_s
    assert found.gflop_s("float16") == found.gflop_s("float32") == found.fma_gflop_s
    assert 0.001 < found.exp_ns < 100.0
    assert 1.0 < found.l2_gb_s < 10000.0


def test_without_a_compiler_there_is_no_peak(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    assert core_peak.measure() is None
