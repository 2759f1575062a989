"""Launch configurations, the precision of products, and the device of a launch."""

import contextlib
import itertools
import types

import pytest
import torch

pytest.importorskip("triton")
from sparsebert.kernels.configs import launch_config, shared_limit
from sparsebert.kernels.launch import dot_precision
from sparsebert.kernels.prepared import Launcher

ARCHS = ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120", "sm999", "gfx942", "gfx950")


@pytest.mark.parametrize("arch", ARCHS)
def test_every_combination_has_a_configuration_that_the_kernels_can_run(arch):
    combinations = itertools.product(
        ("forward", "dq", "dkdv"),
        (16, 32, 64, 128),
        (1, 8, 40, 64, 96, 256),
        (2, 4),
        (False, True),
    )
    for kernel, height, head_dim, itemsize, has_dropout in combinations:
        config = launch_config(kernel, arch, height, head_dim, itemsize, has_dropout)
        assert height % config.block_m == 0 and config.block_m >= 16
        assert config.block_n in (32, 64, 128)
        assert config.num_warps in (1, 2, 4, 8) and config.num_stages in (1, 2)
        gathered = 2 * config.block_n * max(16, head_dim) * itemsize  # K and V of a step
        assert gathered <= shared_limit(arch)


@pytest.fixture
def matmul():
    """torch's setting, as it was afterwards."""
    before = torch.backends.cuda.matmul.fp32_precision
    yield torch.backends.cuda.matmul
    torch.backends.cuda.matmul.fp32_precision = before


def test_tf32_only_where_torch_allows_it(matmul):
    def precisions():
        dims = (16, 64, 65, 128, 129)
        return [dot_precision(torch.float32, "sm90", head_dim) for head_dim in dims]

    matmul.fp32_precision = "ieee"
    assert precisions() == ["tf32x3", "tf32x3", "ieee", "ieee", "ieee"]
    matmul.fp32_precision = "tf32"
    assert precisions() == ["tf32", "tf32", "tf32", "tf32", "ieee"]
    assert dot_precision(torch.float32, "gfx942", 64) == "ieee"
    assert dot_precision(torch.bfloat16, "sm90", 64) == "ieee"


@pytest.mark.parametrize(("current", "switches"), [(0, [1]), (1, [])])
def test_launches_on_the_device_of_the_tensors(monkeypatch, current, switches):
    launched, switched = [], []
    x = types.SimpleNamespace(
        is_cuda=True, device=1, dtype=torch.float32, get_device=lambda: 1, data_ptr=lambda: 0
    )

    class Kernel:
        arg_names = ("x_ptr", "n", "BLOCK")

        def __getitem__(self, grid):
            return lambda *values, **constants: launched.append((grid, values, constants["BLOCK"]))

    @contextlib.contextmanager
    def switch(device):
        switched.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", switch)
    Launcher(Kernel())(3, {"x_ptr": x, "n": 5, "BLOCK": 16, "other": 0}, num_warps=4)
    assert launched == [((3,), (x, 5), 16)] and switched == switches
