"""Settings shared by all tests: OMP_NUM_THREADS threads (1) a process, fixed seeds, no network.

Hypothesis draws the same examples each time, so that a commit is either green or not. Look for new
ones with `make test PYTEST_ARGS=--hypothesis-profile=search`.
"""

import importlib.util
import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["SPARSEBERT_CALIBRATE"] = "0"  # plans must not depend on how busy the machine is

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile("repeatable")

if not torch.cuda.is_available():
    # Without a GPU the kernels run in Triton's interpreter. Triton reads this when a kernel is
    # defined, so it has to be set before any test imports one.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton"):
        from tests.interpreter import round_to_nearest

        round_to_nearest()

# Tests run two processes at a time; more threads only get in the way.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def _kernels_run_as_before() -> Iterator[None]:
    """No test leaves another answer to whether Triton interprets; those after it would follow."""
    before = os.environ.get("TRITON_INTERPRET")
    yield
    assert os.environ.get("TRITON_INTERPRET") == before


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA or HIP device"))
