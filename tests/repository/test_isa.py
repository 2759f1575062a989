"""`make test-isa`: what it runs, and that it fails when a run does."""

from __future__ import annotations

import itertools
import subprocess
from typing import Any

import pytest

from sparsebert.kernels.cpu.library import load
from tests import isa


def test_the_settings_hold_every_pair() -> None:
    kinds = {(s[isa.ATEN], "ONEDNN_MAX_CPU_ISA" in s, s["OMP_NUM_THREADS"]) for s in isa.SETTINGS}
    wanted = (isa.ORDER, (True, False), ("1", "2"))
    for a, b in itertools.combinations(range(3), 2):
        assert {(k[a], k[b]) for k in kinds} == set(itertools.product(wanted[a], wanted[b]))


@pytest.mark.parametrize(
    ("capability", "isas"),
    [
        ("avx512", ("avx512", "avx2", "generic")),
        ("avx2", ("avx2", "generic")),
        ("avx2", ("avx512", "avx2", "generic")),
        ("default", ("generic",)),
        ("default", ("neon", "generic")),
        ("avx512", ("avx2", "generic")),  # by a compiler that lacks AVX-512
        ("avx512", ()),
    ],
)
def test_every_instruction_set_of_the_native_kernels(
    capability: str, isas: tuple[str, ...]
) -> None:
    """With one thread and with two, and no other."""
    settings = isa.selected(capability, isas, one=False)
    found = {(s[isa.NATIVE], s["OMP_NUM_THREADS"]) for s in settings if isa.NATIVE in s}
    assert found == set(itertools.product(isas, ("1", "2")))
    assert len(settings) <= 6
    assert all(isa.ORDER.index(s[isa.ATEN]) <= isa.ORDER.index(capability) for s in settings)


def test_the_native_kernels_say_what_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    here = load().isas
    monkeypatch.setenv(isa.NATIVE, "no such thing")
    assert isa.native_isas() == here


def test_what_the_processor_lacks_is_left_out() -> None:
    every = ("avx512", "avx2", "generic")
    assert isa.selected("avx512", every, one=False) == list(isa.SETTINGS)
    assert {s[isa.ATEN] for s in isa.selected("avx2", every[1:], one=False)} == {"default", "avx2"}
    (one,) = isa.selected("avx512", every, one=True)
    assert (one[isa.ATEN], one[isa.NATIVE]) == ("default", "generic")
    assert one.items() >= isa.OLD.items()


def test_files_exist() -> None:
    assert all((isa.ROOT / "tests" / name).is_file() for name in isa.NUMERIC)


@pytest.mark.parametrize("failing", [None, 2])
def test_one_failed_run_is_a_failure(
    failing: int | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], **kwargs: Any) -> Any:
        seen.append(env)
        return subprocess.CompletedProcess(command, int(len(seen) == failing))

    monkeypatch.setattr(isa, "machine_capability", lambda: "avx2")
    monkeypatch.setattr(isa, "native_isas", lambda: ("avx2", "generic"))
    monkeypatch.setattr(subprocess, "run", run)
    assert isa.main([]) == (failing is not None)
    assert len(seen) == 4
    for env, setting in zip(seen, isa.SETTINGS[:4], strict=True):
        assert env.items() >= setting.items()
    out = capfd.readouterr().out
    assert "left out: ATEN_CPU_CAPABILITY=avx512" in out
    assert "left out: SPARSEBERT_CPU_ISA=avx512" in out
    assert f"{4 if failing is None else 3} of 4 settings passed" in out
