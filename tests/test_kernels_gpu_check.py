"""`make gpu` without a GPU: the script runs where nothing but torch and Triton is installed."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton")

ROOT = pathlib.Path(__file__).resolve().parents[1]

SMOKE = """
import runpy, sys
for name in ("safetensors", "transformers", "tqdm", "matplotlib", "pytest"):
    sys.modules[name] = None  # as if not installed
sys.argv = ["gpu_check", "--smoke"]
runpy.run_module("benchmarks.gpu_check", run_name="__main__")
"""


def test_smoke_needs_torch_and_triton_only(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SMOKE],
        cwd=ROOT, env=os.environ | {"OUT": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu_check_smoke.json").read_text())
    assert [row["passed"] for row in rows if row["check"] != "timing"] == [True, True, True]
    assert all(row["commit"] and row["triton"] for row in rows)
    assert done.stdout.count("1 / 1") == 2  # the table
