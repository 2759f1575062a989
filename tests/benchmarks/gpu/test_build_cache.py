"""`make gpu-cache`: with the Triton of the GPU machine, into one file, and a stamp beside it."""

import os
import re
import subprocess
import sys

import pytest

from tests import ROOT

triton = pytest.importorskip("triton")

BUILD = """
import pathlib, sys
import triton
from benchmarks.gpu import build_cache, compile_cache
from benchmarks.gpu import specialisations
from benchmarks.gpu.specialisations import KernelCall

folder = pathlib.Path(sys.argv[1])
tiny = KernelCall(16, 16, "bfloat16", "plain")
broken = KernelCall(16, 16, "no dtype", "plain")
build_cache.WANTED = triton.__version__
build_cache._MADE = folder / "made"
build_cache.CARRIED = folder / "carried"
compile_cache.ARCHIVE = folder / "carried" / "kernels.tar.xz"
specialisations.first_run = lambda: [tiny]
specialisations.wide_matrix = lambda: [broken]
if __name__ == "__main__":
    sys.exit(build_cache.main(["--jobs", "1", *sys.argv[2:]]))
"""


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def wanted():
    text = (ROOT / "benchmarks" / "gpu" / "build_cache.py").read_text(encoding="utf-8")
    return re.findall(r'^WANTED = "(.*)"$', text, re.MULTILINE)


def test_the_makefile_installs_the_triton_that_is_wanted():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"triton==(\S+)", makefile) == wanted()
    assert re.findall(r"^GPU_TRITON := build/triton-(\S+)$", makefile, re.MULTILINE) == wanted()


@pytest.mark.skipif([triton.__version__] == wanted(), reason="this is the Triton that is wanted")
def test_another_triton_is_refused():
    done = run("-m", "benchmarks.gpu.build_cache")
    assert done.returncode == 2 and triton.__version__ in done.stdout and not done.stderr


@pytest.mark.slow
def test_what_compiles_is_packed_and_what_does_not_is_said(tmp_path):
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    done = run(str(script), str(tmp_path), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+ forms, [\d.]+ MiB, in ", done.stdout, re.MULTILINE)
    assert (tmp_path / "carried" / "kernels.tar.xz").stat().st_size > 1000
    assert "stamp" in done.stdout.splitlines()[-1]  # or why there is none

    done = run(str(script), str(tmp_path), "--everything", PYTHONPATH=str(ROOT))
    assert done.returncode == 1 and "FAILED" in done.stdout and "no dtype" in done.stdout
