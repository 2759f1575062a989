"""Launches, with and without Triton's own: what reaches the driver is the same, to the argument.

In a process of its own, for the kernels are compiled (for sm_90) and not interpreted; a stub in
place of the CUDA driver writes down what it is asked to launch.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests import ROOT

pytest.importorskip("triton")

SCRIPT = """
import json
import torch, triton
from sparsebert.backends.program import flatten
from sparsebert.dropout import drop_threshold
from sparsebert.kernels import attention, launch
from sparsebert.kernels.stub_driver import StubDriver
from tests.kernels.kernel_cases import make_program

launched, ordinary, inputs = [], [], {}

def describe(x):
    if not isinstance(x, torch.Tensor):
        return repr(x)
    origin = inputs.get(x.data_ptr(), "made in the call")
    return [str(x.dtype), list(x.shape), list(x.stride()), origin]

class Recorder(StubDriver):
    def launcher_cls(self, source, metadata):
        def record(x, y, z, stream, function, packed, launch_metadata, enter, leave, *arguments):
            launched.append([metadata.hash, x, y, z, stream, function, list(packed),
                             type(launch_metadata).__name__, *map(describe, arguments)])
        return record

triton.runtime.driver.set_active(Recorder())
launch.architecture = lambda device: "sm90"
run = triton.JITFunction.run

def counted(self, *arguments, **options):
    ordinary.append(self.__name__)
    return run(self, *arguments, **options)

triton.JITFunction.run = counted

band = torch.ones(1, 40, 40).triu(-16).tril(16).bool()

def once(change=None, parts=1, key_mask=None, seed=None, grad_lse=None, kv_heads=2):
    program = make_program(band, (16,), parts, device="cpu")
    heads = (2, kv_heads, kv_heads)
    q, k, v = (torch.zeros(1, 40, h, 16).bfloat16().transpose(1, 2) for h in heads)
    if change:
        q, k, v = change(q), change(k), change(v)
    inputs.clear()
    known = (q, k, v, *flatten(program)[0])
    inputs.update({x.data_ptr(): i for i, x in enumerate(known) if x.numel()})
    def call():
        launched.clear(), ordinary.clear()
        p = 0.0 if seed is None else 0.3
        options = attention.Options(0.25, key_mask, seed, p, drop_threshold(p))
        o, lse = attention.forward(q, k, v, program, options)
        if change is None:
            attention.backward(o, grad_lse, q, k, v, o, lse, program, options)
        return [list(launched), list(ordinary)]
    return [call(), call()]

def shifted(x, by=1):
    return x.new_zeros(x.numel() + by)[by:].as_strided(x.shape, x.stride())

def far(x):
    return x.as_strided(x.shape, (2**40, *x.stride()[1:]))

print(json.dumps({
    "plain": once(),
    "chained": once(parts=2),
    "merges": once(parts=3),
    "features": once(key_mask=torch.ones(1, 40, dtype=torch.bool), seed=torch.tensor([7]),
                     grad_lse=torch.zeros(1, 2, 40), kv_heads=1),
    "aligned again": once(),
    "shifted": once(shifted),
    "half shifted": once(lambda x: shifted(x, 4)),
    "far": once(far),
    "fp16": once(lambda x: x.half()),
}))
"""


NEW_LENGTHS = """
import torch, triton
from sparsebert.kernels import attention, dkdv, dq, forward, launch
from sparsebert.kernels.stub_driver import StubDriver
from tests.kernels.kernel_cases import make_program

triton.runtime.driver.set_active(StubDriver())
launch.architecture = lambda device: "sm90"
kernels = [forward.forward_kernel, dq.dq_kernel, dkdv.dkdv_kernel]

def run(batch, heads, length):
    program = make_program(torch.ones(1, length, length).triu(-16).tril(16).bool(), device="cpu")
    q, k, v = torch.zeros(3, batch, length, heads, 64, dtype=torch.bfloat16).transpose(2, 3)
    o, lse = attention.forward(q, k, v, program, attention.Options(0.125))
    attention.backward(o, None, q, k, v, o, lse, program, attention.Options(0.125))

for batch, heads, length in ((2, 4, 512), (1, 1, 1), (3, 12, 81), (16, 2, 1000)):
    run(batch, heads, length)
print([len(kernel.device_caches[0][0]) for kernel in kernels])
"""


def run(script, direct):
    """What the script prints, read as JSON."""
    settings = {"TRITON_INTERPRET": "0", "SPARSEBERT_DIRECT_LAUNCH": direct}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def records():
    return run(SCRIPT, "1")


@pytest.fixture(scope="module")
def ordinary_records():
    """With every launch left to Triton."""
    return run(SCRIPT, "0")


def test_the_switch_changes_who_launches_and_not_what(records, ordinary_records):
    for case, calls in ordinary_records.items():
        for (launches, ordinary), (expected, _) in zip(calls, records[case], strict=True):
            assert launches == expected
            assert len(ordinary) == len(launches) > 0


@pytest.mark.parametrize("direct", ["1", "0"])
def test_new_batch_sizes_lengths_and_masks_compile_nothing(direct):
    """Launches on a stub in place of the CUDA driver; each kernel is compiled exactly once."""
    assert run(NEW_LENGTHS, direct) == [1, 1, 1]


@pytest.mark.parametrize(
    ("case", "launches"), [("plain", 3), ("chained", 6), ("merges", 10), ("features", 3)]
)
def test_a_second_call_launches_the_same_without_triton(records, case, launches):
    """Three kernels over tiles; twice where tiles go on from others, and four merges.

    Those that go on are of no other form.
    """
    (first, ordinary), (second, again) = records[case]
    assert len(first) == launches
    assert bool(ordinary) == (case != "chained") and not again
    assert first == second


def test_what_is_known_is_launched_directly(records):
    assert records["aligned again"][0][1] == []
    assert records["aligned again"][0][0] == records["plain"][0][0]


def test_another_dtype_is_another_form(records):
    """fp16 and bf16 have the same constants, strides and addresses."""
    (first, ordinary), (second, again) = records["fp16"]
    assert first == second and ordinary and not again
    assert first[0][0] not in {launch[0] for launch in records["plain"][0][0]}


@pytest.mark.parametrize("case", ["shifted", "half shifted", "far"])
def test_what_is_out_of_the_ordinary_is_left_to_triton(records, case):
    """Another compiled form: one that does not count on alignment, or with 64-bit strides."""
    (first, ordinary), (second, again) = records[case]
    assert first == second and ordinary == again
    assert ordinary == ["forward_kernel"]
    plain = {launch[0] for launch in records["plain"][0][0]}
    assert first[0][0] not in plain


def test_rows_count_as_aligned_only_as_far_as_strides_and_beginnings_are():
    from sparsebert.kernels.launch import alignment

    base = torch.zeros(4096, dtype=torch.bfloat16)
    shape = (1, 2, 8, 40)
    heads_last = base[:640].view(1, 8, 2, 40).transpose(1, 2)
    assert alignment(heads_last) == 8
    assert alignment(heads_last, base[4:644].view(shape)) == 4
    assert alignment(heads_last, base[1:641].view(shape)) == 1
    assert alignment(base[:672].as_strided(shape, (672, 336, 42, 1))) == 2


@pytest.mark.parametrize("shape", [(2, 0), (2, 1), (2, 7), (2, 8), (0, 8), (1, 8)])
def test_a_key_mask_is_in_pairs_whatever_its_memory(shape):
    from sparsebert.kernels.launch import int16_key_mask

    def offset(x):  # memory that torch did not allocate may begin at an odd address
        raw = torch.frombuffer(bytearray(x.numel() + 8), dtype=torch.bool, offset=1)
        return raw[: x.numel()].view(x.shape).copy_(x)

    def strided(x):
        return x.new_zeros(x.shape[0], 2 * x.shape[1] + 1)[:, 1::2].copy_(x)

    key_mask = torch.rand(shape) < 0.5
    one = key_mask[:1].expand(min(shape[0], 1) * 3, -1)
    for x in (key_mask, offset(key_mask), strided(key_mask), one):
        pairs = int16_key_mask(x)
        assert pairs.data_ptr() % 2 == 0 and pairs.dtype == torch.int16
        assert torch.equal(pairs.contiguous().view(torch.bool)[:, : x.shape[1]], x)
    if key_mask.numel() and shape[1] % 2 == 0:
        assert int16_key_mask(key_mask).data_ptr() == key_mask.data_ptr()  # not a copy


def test_rows_far_apart_are_copied_even_a_single_one():
    """The kernels compute a row's offset in 32 bits, and cannot take a longer stride at all."""
    from sparsebert.kernels.launch import with_contiguous_rows

    near = torch.zeros(2, 2, 4, 8)
    assert with_contiguous_rows(near) is near
    assert with_contiguous_rows(near[:, :, :, :1]).stride(-2) == 8
    for x in (torch.zeros(8).as_strided((1, 1, 1, 8), (2**40, 2**40, 2**40, 1)), near.mT):
        copied = with_contiguous_rows(x)
        assert torch.equal(copied, x)
        assert copied.stride(-1) == 1 and copied.stride(-2) == x.shape[-1]


def test_more_programs_than_a_gpu_launches_are_refused():
    from sparsebert.kernels.configs import MERGE
    from sparsebert.kernels.direct_launch import Launcher

    class Kernel:
        arg_names = ("x_ptr", "n", "BLOCK")

    launcher = Launcher(Kernel())
    arguments = {"x_ptr": torch.zeros(1), "n": 1, "BLOCK": 1}
    for grid in ((2**31, 1, 1), (1, 65536, 1), (1, 1, 65536)):
        said = " x ".join(map(str, grid))
        with pytest.raises(ValueError, match=rf"a grid of {said} programs .* split the batch"):
            launcher(grid, arguments, MERGE)


def test_a_batch_beyond_a_grid_is_launched_in_pieces(monkeypatch):
    """The third size of a grid is small; each launch knows where its samples begin."""
    from sparsebert.kernels import launch
    from sparsebert.kernels.program import Group, Side

    launched = []
    monkeypatch.setattr(
        launch, "_LAUNCHERS",
        {"dq": lambda grid, given, config: launched.append((grid, given["first_batch"]))},
    )  # fmt: skip
    empty = torch.zeros(0, dtype=torch.int32)
    side = Side(empty, empty, empty, empty, 0, False, (Group(64, 0, 3), Group(16, 9, 2)))
    arguments = {
        "q_ptr": torch.zeros(1, 64), "heads_per_item": 12, "HAS_KEY_MASK": False,
        "HAS_DROPOUT": False,
    }  # fmt: skip
    run = launch.run_tiles
    run("dq", side, 12 * 140_000, arguments)
    blocks = launched[0][0][0] // 3  # programs that share a tile, by the configuration
    of_64 = [((3 * blocks, 12, size), first) for size, first in PIECES]
    assert launched[:3] == of_64 and [first for _, first in launched[3:]] == [0, 65535, 131070]
    assert {grid[1] for grid, _ in launched} == {12}


PIECES = ((65535, 0), (65535, 65535), (8930, 131070))
