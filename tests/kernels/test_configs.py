"""Launch configurations, the precision of products, and the device of a launch."""

import contextlib
import itertools
import subprocess
import sys
import types

import pytest
import torch

pytest.importorskip("triton")
from sparsebert.kernels import configs, launch
from sparsebert.kernels.architecture import architecture
from sparsebert.kernels.configs import launch_config, shared_limit
from sparsebert.kernels.direct_launch import Launcher
from sparsebert.kernels.launch import dot_precision
from tests import ROOT

NVIDIA = {
    "sm80": 163, "sm86": 99, "sm89": 99, "sm90": 227, "sm100": 227, "sm103": 227, "sm110": 227,
    "sm120": 99, "sm121": 99, "sm999": 99,
}  # fmt: skip
AMD = {"gfx90a": 64, "gfx942": 64, "gfx950": 64, "gfx1100": 64, "gfx1201": 64}
ARCHS = (*NVIDIA, *AMD)  # and the shared memory of a program, in KB


@pytest.mark.parametrize("arch", ARCHS)
def test_every_combination_has_a_configuration_that_the_kernels_can_run(arch):
    combinations = itertools.product(
        ("forward", "dq", "dkdv"),
        (16, 32, 64, 128),
        (1, 8, 40, 64, 96, 256),
        (2, 4),
        (False, True),
        (False, True),
    )
    for kernel, height, head_dim, itemsize, has_key_mask, has_dropout in combinations:
        config = launch_config(kernel, arch, height, head_dim, itemsize, has_key_mask, has_dropout)
        assert height % config.block_m == 0 and config.block_m >= 16
        assert config.block_n in (32, 64, 128)
        assert config.num_warps in (1, 2, 4, 8) and config.num_stages in (1, 2, 3, 4)
        assert config.maxnreg is None or arch in NVIDIA
        # K and V of the steps that are under way while another is multiplied, and that one's.
        in_flight = max(1, config.num_stages - 1)
        gathered = 2 * config.block_n * configs.block_d(head_dim) * itemsize * in_flight
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
    Launcher(Kernel())((3, 1, 1), {"x_ptr": x, "n": 5, "BLOCK": 16, "other": 0}, configs.MERGE)
    assert launched == [((3, 1, 1), (x, 5), 16)] and switched == switches


def test_names_of_architectures(monkeypatch):
    """As tables are keyed by them; what an AMD GPU adds about its modes is left out."""
    card = types.SimpleNamespace(major=12, minor=1, gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    for device, hip, name in (("cuda:90", None, "sm121"), ("cuda:91", "6.4", "gfx942")):
        monkeypatch.setattr(torch.version, "hip", hip)
        assert architecture(torch.device(device)) == name
    assert architecture(torch.device("cpu")) == "cpu"
    targets = [launch.target_of(arch) for arch in ("sm90", "gfx942", "cpu")]
    assert targets == ["cuda", "hip", "interpreter"]


def test_families_of_tensor_cores():
    families = {arch: configs.family_of(arch) for arch in ARCHS}
    assert families == {
        **dict.fromkeys(("sm80", "sm86", "sm89", "sm120", "sm121", "sm999"), "mma_sync"),
        "sm90": "wgmma",
        **dict.fromkeys(("sm100", "sm103", "sm110"), "tcgen05"),
        **dict.fromkeys(("gfx90a", "gfx942", "gfx950"), "cdna"),
        **dict.fromkeys(("gfx1100", "gfx1201"), "rdna"),
    }


def test_shared_memory_in_bytes():
    assert {arch: shared_limit(arch) // 1024 for arch in ARCHS} == NVIDIA | AMD


def test_heads_are_padded_to_powers_of_two():
    padded = {dim: configs.block_d(dim) for dim in (1, 8, 16, 17, 40, 64, 65, 128, 129, 256)}
    assert padded == {
        1: 16, 8: 16, 16: 16, 17: 32, 40: 64, 64: 64, 65: 128, 128: 128, 129: 256, 256: 256,
    }  # fmt: skip


def test_what_was_measured_goes_before_the_rest(monkeypatch):
    measured = configs.LaunchConfig(32, 128, 8, 2)
    key = ("forward", "sm90", 64, 64, 2, True, False)
    monkeypatch.setattr(configs, "MEASURED", {key: measured})
    try:
        launch_config.cache_clear()
        assert launch_config("forward", "sm90", 64, 50, 2, True, False) == measured
        assert launch_config("forward", "sm90", 64, 50, 2, True, True) != measured
        assert launch_config("forward", "sm90", 64, 50, 2, False, False) != measured
    finally:
        launch_config.cache_clear()


@pytest.mark.parametrize("module", ["layout", "architecture"])
def test_what_tiles_are_packed_and_priced_by_needs_no_triton(module):
    code = f"import sys, sparsebert.kernels.{module}; print('triton' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert printed.stdout.strip() == "False"
