"""The search for launch configurations, with made-up times in place of a GPU."""

import math
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.gpu import tune_kernels
from benchmarks.gpu.tune_kernels import LaunchEntry, launched_with, neighbours, search, winner
from sparsebert.kernels.configs import LaunchConfig, launch_config, shared_limit
from tests import ROOT

CASE = LaunchEntry("forward", "sm90", 64, 64, torch.bfloat16, False, False)
BEST = LaunchConfig(block_m=32, block_n=32, num_warps=2, num_stages=4)


def distance(case, config):
    """Milliseconds that grow with the steps to `BEST`."""
    steps = abs(config.num_stages - BEST.num_stages) + (config.maxnreg != BEST.maxnreg)
    for name in ("block_m", "block_n", "num_warps"):
        steps += abs(math.log2(getattr(config, name) / getattr(BEST, name)))
    return {"ms_50": 1.0 + steps}


def test_the_search_reaches_the_best_and_prints_what_configs_takes():
    rows = search(CASE, distance, lambda: True)
    assert winner(rows) == BEST
    assert [row["shipped"] for row in rows].count(True) == 1 and rows[0]["shipped"]
    assert eval(f"{{{CASE.key}: {BEST}}}") == {CASE.key: BEST}


def test_what_is_wrong_or_cannot_run_never_wins():
    def only_shipped_runs(case, config):
        return {"ms_50": 2.0} if config == case.shipped else {"why": "wrong"}

    rows = search(CASE, only_shipped_runs, lambda: True)
    assert len(rows) == 1 + len(neighbours(CASE, CASE.shipped))
    assert winner(rows) is None


def test_a_small_gain_replaces_nothing():
    def measure(case, config):
        return {"ms_50": 1.02 if config == case.shipped else 1.0}

    assert winner(search(CASE, measure, lambda: True)) is None


def test_nothing_is_started_after_the_time_limit():
    times = iter([True, True])
    rows = search(CASE, distance, lambda: next(times, False))
    assert len(rows) == 2
    assert search(CASE, distance, lambda: False) == []


@pytest.mark.parametrize("height", [16, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_neighbours_can_run(height, dtype):
    case = LaunchEntry("dkdv", "gfx942", height, 128, dtype, False, True)
    found = neighbours(case, case.shipped)
    assert found and len(set(found)) == len(found) and case.shipped not in found
    for config in found:
        assert height % config.block_m == 0 and config.block_n in (32, 64, 128)
        assert 2 * config.block_n * 128 * dtype.itemsize <= shared_limit("gfx942")


def test_a_candidate_is_launched_and_then_forgotten():
    arguments = ("forward", "sm90", 64, 64, 2, False, False)
    before = launch_config(*arguments)
    measured = dict(tune_kernels.configs.MEASURED)
    with launched_with(CASE, BEST):
        assert launch_config(*arguments) == BEST
        assert launch_config("forward", "sm90", 32, 64, 2, False, False) != BEST
    assert launch_config(*arguments) == before
    assert measured == tune_kernels.configs.MEASURED


def test_the_list_needs_no_gpu():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.tune_kernels", "--list", "--height", "64"],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(CASE.shipped) in done.stdout and done.stdout.count("('") == 12


def test_what_is_wrong_is_said_before_anything_is_timed(monkeypatch):
    case = LaunchEntry("dq", "sm90", 64, 64, torch.bfloat16, True, True)
    checks = []

    def checked(mask, dim, dtype, features, device, work):
        config = launch_config("dq", "sm90", 64, dim, dtype.itemsize, True, True)
        checks.append((config, features, work.queries.chained))
        return {"passed": len(checks) < 4, "why": "dq is off"}

    monkeypatch.setattr(tune_kernels, "check_case", checked)
    assert tune_kernels.why_not(case, BEST) == ""
    assert [what[2] for what in checks] == [False, True]
    assert all(what[:2] == (BEST, "dropout, key mask") for what in checks)
    assert tune_kernels.why_not(case, BEST) == "wrong: dq is off"
    monkeypatch.setattr(tune_kernels, "check_case", lambda *a, **k: 1 / 0)
    assert "ZeroDivisionError" in tune_kernels.why_not(case, BEST)
