"""What `make gpu` checks, and in which order."""

import itertools

import pytest

pytest.importorskip("triton")
from benchmarks.attention import cases as benchmark_cases
from benchmarks.gpu import gpu_cases, gpu_times
from benchmarks.gpu.gpu_cases import ALL, BAND, PLAIN, TIME
from benchmarks.gpu.gpu_rows import identity, latest


def test_cases_cover_every_kernel_that_can_be_launched_and_every_plan_of_the_benchmark():
    cases = gpu_cases.gate_cases() + gpu_cases.wide_cases()
    assert len(cases) == len({identity(case.row) for case in cases})
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


def test_the_gate_checks_what_is_timed_first_and_every_height_in_every_way():
    gate = gpu_cases.gate_cases()
    needed = [timing.checked_by for timing in gpu_times.all_timings()]
    assert list(dict.fromkeys(needed[:6])) == gate[:6]
    assert set(needed) == set(gate[: len(set(needed))])
    heights = {(c.plan, c.dtype, c.dim, c.features) for c in gate if c.mask == BAND}
    assert heights.issuperset(
        itertools.product(("16", "32", "64", "128"), gpu_cases.DTYPES, (64, 128), (PLAIN, ALL))
    )
    assert {c.features for c in gate} == set(gpu_cases.FEATURES)
    assert {c.parts for c in gate} == {1, 2, 3}
    assert len(gate) < 150


def test_a_row_gives_its_case_back_and_the_last_row_counts():
    case = gpu_cases.smoke_cases()[1]
    assert gpu_cases.case_of(case.row | {"passed": True, "commit": "c"}) == case
    rows = [case.row | {"passed": passed} for passed in (False, True)]
    assert latest(rows) == {identity(case.row): rows[1]}
