"""Rows are addressed in 32 bits on AMD GPUs, where they are near enough to each other."""

import pytest
import torch

pytest.importorskip("triton")
from sparsebert.kernels import launch
from sparsebert.kernels.layout import NEAR
from tests.kernels.kernel_cases import DEVICE, Case, run

CASES = {
    "empty slots, D 40": Case(n=33, m=40, d=40, heights=(16, 32), parts=2),
    "heads last, key mask": Case(n=40, m=33, transposed=True, key_mask=True, heights=(16,)),
}


@pytest.mark.skipif(DEVICE != "cpu", reason="another target's addresses, in the interpreter")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("target", ["hip", "hip_far"])
def test_both_ways_find_the_rows(monkeypatch, case, target):
    monkeypatch.setattr(launch, "target_of_rows", lambda arch, arguments: target)
    run(case, monkeypatch)


def test_offsets_of_64_bits_where_rows_are_far_apart():
    def target(*strides, arch="gfx942"):
        names = ("q_ptr", "k_ptr", "v_ptr", "grad_o_ptr")
        x = torch.empty(1, device="meta")
        rows = [x.as_strided((2, 2, 17, 64), (1, 1, stride, 1)) for stride in strides]
        return launch.target_of_rows(arch, dict(zip(names, rows, strict=False)))

    near = (NEAR - 64) // 16
    assert target(64, near, near) == "hip"
    assert target(64, 64, near + 1) == "hip_far"
    assert target(64, 64, 64, near + 1) == "hip_far"
    assert target(near + 1, arch="sm90") == "cuda"
    assert target(near + 1, arch="cpu") == "interpreter"
