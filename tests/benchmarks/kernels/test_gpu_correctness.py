"""A case of `make gpu` in the interpreter: what is right, what is red, what was not run."""

import math

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.harness import workers
from benchmarks.kernels import gpu_correctness
from benchmarks.kernels.gpu_cases import BAND, PLAIN, KernelCase

SMALL = KernelCase("16", BAND, 20, 16, "float32", PLAIN)


def broken_by(change, monkeypatch):
    """The row of a small case whose forward pass is changed."""
    forward = gpu_correctness.kernels.forward
    monkeypatch.setattr(gpu_correctness.kernels, "forward", lambda *a: change(*forward(*a)))
    return gpu_correctness.check_row(SMALL, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for the interpreter")
def test_a_wrong_kernel_is_red(monkeypatch):
    assert gpu_correctness.check_row(SMALL, "cpu")["passed"] is True
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

    monkeypatch.setattr(gpu_correctness.kernels, "forward", fail)
    row = gpu_correctness.check_row(SMALL, "cpu")
    assert row["passed"] is passed and str(error) in row["why"]


def test_a_lost_gpu_ends_the_process(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr(gpu_correctness.kernels, "forward", fail)
    with pytest.raises(workers.LostDevice, match="misaligned"):
        gpu_correctness.check_row(SMALL, "cpu")
    assert not torch.are_deterministic_algorithms_enabled()
