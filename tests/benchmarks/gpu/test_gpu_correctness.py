"""A case of `make gpu` in the interpreter: what is right, what is red, what was not run."""

import dataclasses
import math

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.gpu import gpu_correctness
from benchmarks.gpu.gpu_cases import BAND, LARGE, PLAIN, TIME, KernelCase
from benchmarks.harness import workers

SMALL = KernelCase("16", BAND, 20, 16, "float32", PLAIN)
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="for the interpreter")


def broken_by(change, monkeypatch, case=SMALL):
    """The row of a small case whose forward pass is changed."""
    forward = gpu_correctness.kernels.forward
    with monkeypatch.context() as patch:
        patch.setattr(gpu_correctness.kernels, "forward", lambda *a: change(*forward(*a)))
        return gpu_correctness.check_row(case, "cpu")


@interpreted
def test_a_wrong_kernel_is_red(monkeypatch):
    assert gpu_correctness.check_row(SMALL, "cpu")["passed"] is True
    row = broken_by(lambda o, lse: (o, lse + 1e-3), monkeypatch)
    assert row["passed"] is False and "lse" in row["why"] and row["heights"] == [16]
    assert broken_by(lambda o, lse: (o * math.nan, lse), monkeypatch)["passed"] is False


@interpreted
@pytest.mark.parametrize(("head", "by", "why"), [
    (1, 1.0, None),  # of a large case only some heads are held against the reference
    (2, 1.0, "batch 1, key head 2: o"),
    (1, math.inf, "o: not finite"),
])  # fmt: skip
def test_of_a_large_case_some_heads_are_compared_and_all_must_be_numbers(
    monkeypatch, head, by, why
):
    monkeypatch.setattr(gpu_correctness, "_COMPARED", 100)

    def change(o, lse):
        o = o.clone()
        o[1, head] += by
        return o, lse

    row = broken_by(change, monkeypatch, dataclasses.replace(SMALL, heads=3, parts=2))
    assert row["passed"] is (why is None) and (why is None or why in row["why"])


@interpreted
@pytest.mark.parametrize("change", [{"features": LARGE}, {"plan": TIME, "mask": "star"}])
def test_large_scores_and_plans_by_time_are_right(change):
    row = gpu_correctness.check_row(dataclasses.replace(SMALL, **change), "cpu")
    assert row["passed"] is True and 0.0 < row["error_over_bound"] < 1.0


@pytest.mark.parametrize(
    ("error", "passed"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), None),
        (RuntimeError("out of resource"), False),
    ],
)
def test_errors_of_a_case_are_told_apart(monkeypatch, error, passed):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(gpu_correctness.kernels, "forward", fail)
    row = gpu_correctness.check_row(SMALL, "cpu")
    assert row["passed"] is passed and str(error) in row["why"]
    assert row["heights"] == [int(SMALL.plan)]  # what shares its kernels is not timed


@pytest.mark.parametrize(
    ("words", "is_lost"),
    [
        ("CUDA error: misaligned address", True),
        ("Triton Error [CUDA]: misaligned address", True),  # of the launch after the fault
        ("CUDA error: out of memory", False),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", False),
    ],
)
def test_a_lost_gpu_ends_the_process(monkeypatch, words, is_lost):
    def fail(*arguments):
        raise RuntimeError(words)

    monkeypatch.setattr(gpu_correctness.kernels, "forward", fail)
    if is_lost:
        with pytest.raises(workers.LostDevice, match="misaligned"):
            gpu_correctness.check_row(SMALL, "cpu")
    else:
        assert gpu_correctness.check_row(SMALL, "cpu")["passed"] is None
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_lost_gpu_that_cannot_free_its_memory_is_lost_all_the_same(monkeypatch):
    """Else the process would die of that, and a wrong kernel be one that was not checked."""

    def fail(*arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu_correctness, "check_case", fail)
    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    with pytest.raises(workers.LostDevice, match="illegal memory access"):
        gpu_correctness.check_row(SMALL, "cuda")
