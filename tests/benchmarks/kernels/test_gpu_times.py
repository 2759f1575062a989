"""The quick timings of `make gpu`, on the CPU and by no clock."""

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.attention.rivals import EFFICIENT, OURS, SDPA_MASK
from benchmarks.kernels import gpu_times
from benchmarks.kernels.gpu_times import Timing


@pytest.mark.parametrize("contender", [OURS, SDPA_MASK, EFFICIENT])
def test_both_directions_are_timed_and_what_cannot_run_says_why(monkeypatch, contender):
    made = []

    def alone(call):
        call()
        made.append(torch.is_grad_enabled())
        return {"ms_50": 1.0}

    monkeypatch.setattr(gpu_times.gpu_timing, "alone", alone)
    rows = list(gpu_times.time_rows(Timing(contender, "star", 1, 40), lambda: True, "cpu"))
    assert [row["direction"] for row in rows] == ["forward", "forward + backward"]
    assert {row["contender"] for row in rows} == {contender}
    ran = contender != EFFICIENT  # which only a GPU has
    assert len(made) == 2 * ran and all(("ms_50" in row) == ran for row in rows)
    assert ran or all("RuntimeError" in row["why"] for row in rows)
    late = list(gpu_times.time_rows(Timing(contender, "star", 1, 40), lambda: False, "cpu"))
    assert [row["why"] for row in late] == ["not timed: out of time"] * 2
