"""Kernels compiled ahead, without a GPU: what is looked up, and the time that it may take."""

import json
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("triton")
from benchmarks.attention.rivals import FLEX, FLEX_FORMULA, OURS
from benchmarks.gpu import compile_cache, flex_warm_up, gpu_cases, precompile, specialisations
from benchmarks.gpu.gpu_times import Timing
from benchmarks.gpu.specialisations import KernelCall
from tests import ROOT
from tests.benchmarks.gpu.rows import Rows

TINY = KernelCall(16, 16, "bfloat16", gpu_cases.PLAIN)
BROKEN = KernelCall(16, 16, "no dtype", gpu_cases.PLAIN)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Triton's cache in a folder of the test's own."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile_cache, "FOLDER", tmp_path)
    return tmp_path


def test_what_is_missing_is_compiled_once(cache):
    rows = Rows()
    precompile.precompile(300.0, rows, [TINY, BROKEN], jobs=1)
    first = rows.only()
    assert first["compiled"] >= 4 and first["found"] == 0
    assert len(compile_cache.forms(cache)) == first["compiled"]
    assert first["passed"] is None and "no dtype" in first["failed"][0]
    again = Rows()
    precompile.precompile(300.0, again, [TINY], jobs=1)
    assert again.only()["passed"] is True
    assert (again.only()["found"], again.only()["compiled"]) == (first["compiled"], 0)
    counted = Rows()
    compile_cache.count_new(1.0, counted)
    assert counted.only()["new"] == 0


def test_it_ends_in_time(cache):
    rows = Rows()
    begin = time.monotonic()
    precompile.precompile(1.0, rows, [TINY] * 3, jobs=1)
    assert time.monotonic() - begin < 5.0
    assert rows.only()["passed"] is None and rows.only()["late"] == 3


def test_interpreted_kernels_are_not_compiled(cache):
    rows = Rows(device="cpu")
    precompile.precompile(1.0, rows)
    assert rows.only()["passed"] is None and "interpreted" in rows.only()["why"]


def test_the_first_run_covers_what_is_checked_and_swept():
    first = specialisations.first_run()
    assert len(set(first)) == len(first)
    for case in gpu_cases.timed_cases():
        for height in (16, 32, 64, 128):
            assert KernelCall(height, case.dim, case.dtype, case.features) in first
    swept = specialisations.swept()
    assert swept and {call.tuned[0] for call in swept} == {"forward", "dq", "dkdv"}
    assert not set(first) & set(specialisations.wide_matrix())


LAUNCHED = """
import json
from benchmarks.gpu import specialisations
from benchmarks.gpu.specialisations import KernelCall
from sparsebert.kernels import launch
from sparsebert.kernels.configs import LaunchConfig
launched = []
for launcher in launch._LAUNCHERS.values():
    def run(*arguments, _kernel=launcher.kernel, grid, warmup, **constants):
        launched.append([_kernel.__name__, constants])
    launcher.kernel.run = run
specialisations.use_stub_driver()
tuned = ("dq", LaunchConfig(16, 32, 2, 3))
for call in (
    KernelCall(32, 64, "bfloat16", "plain"),
    KernelCall(32, 64, "bfloat16", "key mask, dropout, gqa, LSE"),
    KernelCall(32, 64, "bfloat16", "plain", tuned),
):
    specialisations.run(call)
    launched.append(None)
print(json.dumps(launched))
"""


def test_a_call_launches_the_forms_of_its_height_features_and_configuration():
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHED],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls: list[list] = [[]]
    for entry in json.loads(done.stdout):
        calls.append([]) if entry is None else calls[-1].append(entry)
    plain, everything, tuned, _ = (
        {name: [c for n, c in call if n == name] for name, _ in call} for call in calls
    )
    tiles = ("forward_kernel", "dq_kernel", "dkdv_kernel")
    for name in tiles:
        assert {c["HEIGHT"] for c in plain[name]} == {32}
        assert {(c["HAS_KEY_MASK"], c["HAS_DROPOUT"]) for c in plain[name]} == {(False, False)}
        assert {(c["HAS_KEY_MASK"], c["HAS_DROPOUT"]) for c in everything[name]} == {(True, True)}
    assert "merge_kernel" in plain
    assert {(c["BLOCK_M"], c["num_warps"]) for c in tuned["dq_kernel"]} == {(16, 2)}
    assert tuned["forward_kernel"] == plain["forward_kernel"]


def timing(contender, mask, n):
    return Timing(contender, mask, 8, n)


def test_flex_compiles_bits_once_a_shape_and_every_formula():
    timings = [timing(c, m, n) for c in (OURS, FLEX) for m in ("star", "fixed") for n in (512, 64)]
    timings += [timing(FLEX_FORMULA, m, 512) for m in ("star", "fixed")]
    found = [(t.contender, t.mask, t.n) for t in flex_warm_up.compilations(timings)]
    assert found == [
        (FLEX, "star", 512), (FLEX, "star", 64),
        (FLEX_FORMULA, "star", 512), (FLEX_FORMULA, "fixed", 512),
    ]  # fmt: skip


def test_flex_has_a_row_for_each_compilation():
    def compiled(timing):
        if timing.n == 64:
            raise RuntimeError("no such GPU")
        return 1.25

    rows = Rows()
    todo = [timing(FLEX, "star", 512)]
    flex_warm_up.warm_up(60.0, rows, todo, jobs=0, compiled=compiled)
    assert rows.only()["passed"] is True and "1.2 s" in rows.only()["why"]
    late = Rows()
    flex_warm_up.warm_up(-1.0, late, todo, jobs=0, compiled=compiled)
    assert late.only()["passed"] is None and "out of time" in late.only()["why"]
    failed = Rows()
    flex_warm_up.warm_up(60.0, failed, [timing(FLEX, "star", 64)], jobs=0, compiled=compiled)
    assert failed.only()["passed"] is None and "no such GPU" in failed.only()["why"]
