"""The kernels' own test, in C++: random calls through the C interface against an oracle there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sparsebert.kernels.cpu import build, library
from tests.native import run_selftest, toys

CASES = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    toys.compiler()
    return tmp_path_factory.mktemp("selftest")


@pytest.fixture(scope="module")
def selftest(folder: Path) -> Path:
    """Built with the library of this checkout, or with one that is made now."""
    found = build.FOLDER / build.LIBRARY
    if library.examine(found).library is None:
        found = build.build(folder / build.LIBRARY).path
    return run_selftest.compile_selftest(found, folder)


@pytest.fixture(params=library.ISAS)
def isa(request: pytest.FixtureRequest, selftest: Path) -> str:
    able = run_selftest.isas_of(selftest)
    if request.param not in able:
        pytest.skip(f"this processor and library run {', '.join(able)}, not {request.param}")
    return str(request.param)


def output(*command: object) -> str:
    """What a program says; fails with all of that if the program does."""
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    return told


def test_random_calls(selftest: Path, isa: str) -> None:
    assert f"{isa}: {CASES} cases, 0 wrong" in output(selftest, "--isa", isa, "--cases", CASES)


def test_exp2_and_conversions(folder: Path, isa: str) -> None:
    """Over a part of all floats; `python -m tests.native.run_selftest --all-floats` takes all."""
    assert "0 wrong" in output(run_selftest.compile_elementary_test(isa, folder), 10007)


def test_what_it_does_not_know(selftest: Path) -> None:
    for wrong in (["--isa", "mmx"], ["--cases", "many"], ["--speed", "1"]):
        done = subprocess.run([selftest, *wrong], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and wrong[1] in done.stderr
