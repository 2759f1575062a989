"""Settings shared by all tests: one thread per process, fixed seeds, no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

if not torch.cuda.is_available():
    # Without a GPU the kernels run in Triton's interpreter. Triton reads this when a kernel is
    # defined, so it has to be set before any test imports one.
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)  # tests run two processes at a time; more threads only get in the way


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
