"""`make test-isa`: what it runs, and that it fails when a run does."""

from __future__ import annotations

import itertools
import subprocess
from typing import Any

import pytest

from tests import isa


def test_the_settings_hold_every_pair() -> None:
    kinds = {(s[isa.ATEN], "ONEDNN_MAX_CPU_ISA" in s, s["OMP_NUM_THREADS"]) for s in isa.SETTINGS}
    wanted = (isa.ORDER, (True, False), ("1", "2"))
    for a, b in itertools.combinations(range(3), 2):
        assert {(k[a], k[b]) for k in kinds} == set(itertools.product(wanted[a], wanted[b]))


def test_what_the_processor_lacks_is_left_out() -> None:
    assert isa.selected("avx512", one=False) == list(isa.SETTINGS)
    assert {s[isa.ATEN] for s in isa.selected("avx2", one=False)} == {"default", "avx2"}
    (one,) = isa.selected("avx512", one=True)
    assert one[isa.ATEN] == "default"
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
    monkeypatch.setattr(subprocess, "run", run)
    assert isa.main([]) == (failing is not None)
    assert len(seen) == 4
    for env, setting in zip(seen, isa.SETTINGS[:4], strict=True):
        assert env.items() >= setting.items()
    out = capfd.readouterr().out
    assert "left out: ATEN_CPU_CAPABILITY=avx512" in out
    assert f"{4 if failing is None else 3} of 4 settings passed" in out
