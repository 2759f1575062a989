"""What broke other projects' attention, retold for the kernels; see `peer_cases`.

Small in Triton's interpreter; on a GPU, where `pytest -m gpu` runs them, as they stand and larger.
"""

import math

import pytest
import torch

from sparsebert import patterns

pytest.importorskip("triton")
from tests.kernels.peer_cases import block_diagonal, check, mask_of, plan_of, results_of, tensors

ON_GPU = torch.cuda.is_available()
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(ON_GPU, reason="kernels are not interpreted")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
LENGTHS = [1, 2, 5, 17, 128]
AWKWARD = [63, 65, 130]
ON_GPU_ONLY = [1, 31, 127, 129, 257, 1000, 2047] if ON_GPU else []
"""More lengths, for which the interpreter takes too long."""


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


# ------------------------------------------------------------------------------ FlexAttention's


@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("dead", ["some", "a tile", "all"])
def test_rows_without_keys(device, dead, kv_heads):
    dense = torch.rand(2, 80, 80) < 0.2
    dense[:, 0] = dense[:, -1] = dense[:, 40] = False
    dense[0, 7] = False  # in one head alone
    if dead == "a tile":
        dense[:, :64] = False
    if dead == "all":
        dense[:] = False
    q, k, v, grad_o = tensors(device, n=80, kv_heads=kv_heads)
    results = check(q, k, v, mask_of(dense), grad_o, torch.randn(2, 2, 80, device=device))
    alive = dense.any(-1)[None].to(device)
    assert not results["o"][~alive.expand(2, -1, -1)].any()
    assert not results["dq"][~alive.expand(2, -1, -1)].any()
    assert (results["lse"].isneginf() == ~alive).all()


def strided(x, how):
    """The same numbers in another order of memory."""
    if how == "packed":  # one of three in a projection's output, [B, N, 3, H, D]
        whole = x.new_zeros(x.shape[0], x.shape[2], 3, x.shape[1], x.shape[3])
        whole[:, :, 1] = x.transpose(1, 2)
        return whole[:, :, 1].transpose(1, 2)
    if how == "part of wider rows":
        return torch.cat([x, x], -1)[..., : x.shape[-1]]
    if how == "every other row":
        return x.repeat_interleave(2, 2)[:, :, ::2]
    if how == "columns first":
        return x.mT.contiguous().mT
    if how == "from an odd place":
        flat = x.new_zeros(x.numel() + 1)
        flat[1:] = x.flatten()
        return flat[1:].view(x.shape)
    return x[:1].expand(x.shape)  # the same for all samples


STRIDES = (
    "packed", "part of wider rows", "every other row", "columns first", "from an odd place",
    "expanded",
)  # fmt: skip


@pytest.mark.parametrize("how", STRIDES)
@pytest.mark.parametrize("which", ["inputs", "gradient"])
def test_strided_inputs_and_gradients(device, which, how):
    dtype = torch.bfloat16 if how == "from an odd place" else None
    q, k, v, grad_o = tensors(device, n=33, m=40, dtype=dtype)
    if which == "inputs":
        q, k, v = (strided(x, how) for x in (q, k, v))
    else:
        grad_o = strided(grad_o, how)
    check(q, k, v, mask_of(torch.rand(2, 33, 40) < 0.3), grad_o)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_gradient_that_comes_transposed(device, order):
    """As from o.transpose(...).reshape(...), whose backward hands on a view."""
    q, k, v, grad_o = tensors(device, n=17)
    shuffled = grad_o.permute(*order, 3).contiguous().permute(*order, 3)
    if order == (2, 1, 0):
        assert not shuffled.is_contiguous()
    check(q, k, v, mask_of(torch.rand(17, 17) < 0.5), shuffled)


@pytest.mark.parametrize("n", [*AWKWARD, *ON_GPU_ONLY])
@pytest.mark.parametrize("more", [0, 3])
def test_lengths_that_no_block_divides(device, n, more):
    q, k, v, grad_o = tensors(device, heads=1, kv_heads=1, n=n, m=n + more)
    check(q, k, v, mask_of(torch.rand(n, n + more) < 0.1), grad_o)


def test_heads_that_differ(device):
    n = 70
    position = torch.arange(n)
    gap = position[:, None] - position
    heads = [gap >= 0, gap.abs() <= 3, gap % 8 == 0, torch.zeros(n, n, dtype=torch.bool),
             torch.ones(n, n, dtype=torch.bool), gap > 40]  # fmt: skip
    q, k, v, grad_o = tensors(device, heads=6, kv_heads=3, n=n, batch=1)
    check(q, k, v, mask_of(torch.stack(heads)), grad_o)


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_a_gradient_of_the_lse_alone(device, kv_heads):
    q, k, v, _ = tensors(device, n=40, kv_heads=kv_heads)
    dense = torch.rand(2, 40, 40) < 0.3
    dense[:, 5] = False
    results = check(q, k, v, mask_of(dense), None, torch.randn(2, 2, 40, device=device))
    assert not results["dv"].any()


# ------------------------------------------------------------------------------ FlashAttention's


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_lengths_with_large_values(device, dtype, n):
    q, k, v, grad_o = tensors(device, heads=1, kv_heads=1, n=n, dtype=dtype)
    dense = torch.rand(n, n) < 0.5
    dense.fill_diagonal_(True)
    check(20.0 * q, 20.0 * k, 50.0 * v, mask_of(dense), grad_o)


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_scores_that_are_all_large_of_one_sign(device, shift):
    """A softmax that does not subtract their maximum overflows, or is 0 / 0."""
    q, k, v, grad_o = tensors(device, n=33)
    q[..., 0], k[..., 0] = 200.0, shift / 50.0
    results = check(q, k, v, mask_of(torch.rand(33, 33) < 0.3), grad_o)
    assert not any(x.isnan().any() for x in results.values())


class OtherWork:
    """Products of matrices on a stream of their own, which take the GPU's processors in turn."""

    def __init__(self):
        self.stream = torch.cuda.Stream()
        self.matrix = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
        torch.cuda.synchronize()

    def begin(self, products):
        """Of a quarter of a millisecond or so each."""
        with torch.cuda.stream(self.stream):
            for _ in range(products):
                self.matrix @ self.matrix


@pytest.mark.parametrize("pattern", ["star", "strided"])
def test_the_same_bits_each_time(device, pattern):
    """Where tiles share rows; on a GPU, while other work keeps it busy, more or less."""
    times, n = (100, 700) if device == "cuda" else (2, 40)
    mask = patterns.build(pattern, n)
    q, k, v, grad_o = tensors(device, n=n)
    plan = plan_of(mask, device)
    first = results_of(q, k, v, plan, grad_o)
    other = OtherWork() if device == "cuda" else None
    for count in range(times - 1):
        if other:
            other.begin(products=count % 8)
        again = results_of(q, k, v, plan, grad_o)
        assert all(torch.equal(first[name], again[name]) for name in first)


# ------------------------------------------------------------------------------ xFormers'

BLOCKS = {
    "no keys": [(3, 5), (16, 0), (20, 7)],
    "no queries": [(17, 16), (0, 30), (5, 1)],
    "either, first and last": [(0, 9), (40, 33), (9, 0), (1, 1), (0, 2)],
    "single": [(1, 1)] * 20,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_diagonal_masks_with_empty_blocks(device, name):
    dense = block_diagonal(BLOCKS[name])
    n, m = dense.shape
    q, k, v, grad_o = tensors(device, n=n, m=m)
    unused = ~dense.any(0)
    k[:, :, unused], v[:, :, unused] = math.nan, math.inf
    results = check(q, k, v, mask_of(dense), grad_o)
    assert not results["dk"][:, :, unused].any() and not results["dv"][:, :, unused].any()
