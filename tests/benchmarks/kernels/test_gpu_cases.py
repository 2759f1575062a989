"""What `make gpu` checks, and a case's row, in the interpreter."""

import itertools

import pytest

pytest.importorskip("triton")
from benchmarks.attention import cases as benchmark_cases
from benchmarks.kernels import gpu_cases, gpu_times
from benchmarks.kernels.gpu_cases import PLAIN, TIME


def test_cases_cover_every_kernel_that_can_be_launched_and_every_plan_that_is_timed():
    cases = gpu_cases.all_cases()
    assert len(cases) == len(set(cases))
    forms = {(case.plan, case.dim, case.dtype, case.features) for case in cases}
    everything = itertools.product(
        ("16", "32", "64", "128"), (8, 16, 32, 40, 64, 72, 80, 96, 128, 256),
        ("bfloat16", "float16", "float32"), gpu_cases.FEATURES,
    )  # fmt: skip
    assert forms.issuperset(everything)
    by_time = {(c.mask, c.n, c.dim, c.dtype, c.features) for c in cases if c.plan == TIME}
    for case in benchmark_cases.select("cuda"):
        features = "dropout" if case.dropout else "key mask" if case.padding else PLAIN
        if case.length <= 2048:
            assert (case.mask, case.length, case.dim, case.dtype, features) in by_time
    needed = [timing.checked_by for timing in gpu_times.all_timings()]
    order = [cases.index(case) for case in needed if case is not None]
    assert len(order) == 10 and max(order) < 20
    assert {case.plan for case in cases[:4]} == {"16", "32", "64", "128"}
