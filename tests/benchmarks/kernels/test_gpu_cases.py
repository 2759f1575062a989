"""What `make gpu` checks, and a case's row, in the interpreter."""

import itertools
import math

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.attention import cases as benchmark_cases
from benchmarks.harness import workers
from benchmarks.kernels import gpu_cases, gpu_times
from benchmarks.kernels.gpu_cases import BAND, PLAIN, TIME, KernelCase


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


SMALL = KernelCase("16", BAND, 20, 16, "float32", PLAIN)


def broken_by(change, monkeypatch):
    """The row of a small case whose forward pass is changed."""
    forward = gpu_cases.kernels.forward
    monkeypatch.setattr(gpu_cases.kernels, "forward", lambda *a: change(*forward(*a)))
    return gpu_cases.check_row(SMALL, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for the interpreter")
def test_a_wrong_kernel_is_red(monkeypatch):
    assert gpu_cases.check_row(SMALL, "cpu")["passed"] is True
    row = broken_by(lambda o, lse: (o, lse + 1e-3), monkeypatch)
    assert row["passed"] is False and "lse" in row["why"] and row["heights"] == [16]
    assert broken_by(lambda o, lse: (o * math.nan, lse), monkeypatch)["passed"] is False


@pytest.mark.parametrize(
    ("error", "passed"),
    [(torch.OutOfMemoryError("no room"), None), (RuntimeError("out of resource"), False)],
)
def test_errors_of_a_case_are_told_apart(monkeypatch, error, passed):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(gpu_cases.kernels, "forward", fail)
    row = gpu_cases.check_row(SMALL, "cpu")
    assert row["passed"] is passed and str(error) in row["why"]


def test_a_lost_gpu_ends_the_process(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr(gpu_cases.kernels, "forward", fail)
    with pytest.raises(workers.LostDevice, match="misaligned"):
        gpu_cases.check_row(SMALL, "cpu")
    assert not torch.are_deterministic_algorithms_enabled()
