"""MKL made to use AVX-512: the library that it takes, and processes that begin with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import mkl
from sparsebert.kernels.cpu.build import BuildError, Compiler
from tests import ROOT

ASK = "from benchmarks.harness import mkl; print(mkl.active(), mkl.is_child())"


def asked(mode: str) -> str:
    with mkl.environment(mode) as variables:
        done = subprocess.run(
            [sys.executable, "-c", ASK],
            cwd=ROOT, env=dict(variables), capture_output=True, text=True, check=True,
        )  # fmt: skip
    return done.stdout.strip()


def needs_a_compiler() -> None:
    try:
        Compiler.find()
    except BuildError as error:
        pytest.skip(str(error))
    if not sys.platform.startswith("linux"):
        pytest.skip("LD_PRELOAD is Linux's")


def test_a_process_knows_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_a_compiler()
    assert asked(mkl.STOCK) == "stock False"
    assert asked(mkl.AVX512) == "avx512 False"
    with mkl.environment(mkl.AVX512) as variables:
        monkeypatch.setenv("LD_PRELOAD", variables["LD_PRELOAD"])
        assert asked(mkl.STOCK) == "stock False"


def test_without_a_compiler_only_the_stock_mode_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    with mkl.environment(mkl.STOCK) as variables:
        assert variables["CXX"] == "/bin/false"
    with pytest.raises(BuildError, match="does not run"), mkl.environment(mkl.AVX512):
        pass


def test_what_does_not_compile_says_why(tmp_path: Path) -> None:
    needs_a_compiler()
    with pytest.raises(BuildError, match=r"(?s)failed.*error"):
        mkl.compile_library("no C++", tmp_path / "x.so")


def test_a_command_runs_again_in_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Done:
        returncode = 7

    def run(command: list[str], **options: object) -> Done:
        calls.append((command, options["env"]))
        return Done()

    monkeypatch.setattr(mkl.subprocess, "run", run)
    assert mkl.run_again("benchmarks", ["run", "--mkl", "avx512", "stock"], mkl.STOCK) == 7
    ((command, variables),) = calls
    assert command[1:] == ["-m", "benchmarks", "run", "--mkl", "avx512", "stock", "--mkl", "stock"]
    (mark,) = {*variables} - {*os.environ}
    monkeypatch.setenv(mark, "avx512")
    assert mkl.is_child()
    with pytest.raises(BuildError, match="LD_PRELOAD"):
        mkl.run_again("benchmarks", [], mkl.AVX512)


def test_settings_in_words() -> None:
    assert mkl.in_words("1", "stock") == "1 thread, MKL as shipped"
    assert mkl.in_words("2", "", "avx2") == "2 threads, avx2"
