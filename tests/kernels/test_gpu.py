"""The kernels on a real GPU: `pytest -m gpu`; skipped where there is none.

The contract cases with new memory poisoned; the plans that run there: of the compiler, for the
card at hand, by their times; and what only a GPU has: much memory, streams, graphs, other devices.
"""

import math

import pytest
import torch

import sparsebert as sb
from sparsebert import dropout, patterns
from sparsebert.testing import expected_attention

pytest.importorskip("triton")
from tests.kernels.kernel_cases import RESULTS, backward, forward, run
from tests.kernels.peer_cases import (
    arithmetic_of,
    check,
    mask_of,
    plan_of,
    program_of,
    results_of,
    tensors,
)
from tests.kernels.test_attention import CASES, LARGE

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_contract_cases(name, monkeypatch):
    run((CASES | LARGE)[name], monkeypatch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("features", ["plain", "key mask", "dropout", "key mask and dropout"])
@pytest.mark.parametrize("pattern", ["longformer", "strided", "star"])
def test_plans_by_time_for_this_card(pattern, features, dtype):
    """By way of `sparse_attention`, as a user calls it."""
    mask = patterns.build(pattern, 512)
    plan = sb.compile_plan(mask, objective="time").to("cuda")
    q, grad_o = torch.randn(2, 2, 4, 512, 64, device="cuda").to(dtype)
    k, v = torch.randn(2, 2, 2, 512, 64, device="cuda").to(dtype)
    key_mask = keep = None
    if "key mask" in features:
        key_mask = torch.rand(2, 512, device="cuda") < 0.8
        k, v = (x.masked_fill(~key_mask[:, None, :, None], math.nan) for x in (k, v))
    p = 0.1 if "dropout" in features else 0.0
    if p:
        torch.manual_seed(1)
        seed = dropout.draw_seed("cuda")
        keep = dropout.keep_mask(2, 4, 512, 512, p, seed=seed, device="cuda")
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    torch.manual_seed(1)
    o, lse = sb.sparse_attention(*inputs, plan, key_mask=key_mask, dropout_p=p, return_lse=True)
    gradients = torch.autograd.grad(o, inputs, grad_o)
    expected = expected_attention(
        q, k, v, mask, key_mask=key_mask, keep_mask=keep, dropout_p=p, grad_o=grad_o,
        arithmetic=arithmetic_of(q, plan),
    )  # fmt: skip
    outcomes = expected.outcomes(dict(zip(RESULTS, (o, lse, *gradients), strict=True)))
    assert all(outcome.passed for outcome in outcomes), "; ".join(map(str, outcomes))


# ------------------------------------------------------------------------------ much memory


def skip_without_memory(needed):
    """Skip a test that needs so many bytes where they are not free; `pytest_rows` knows why."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"out of memory: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")


def far_apart(tensors, axis):
    """The same tensors in one piece of memory, whose last place along `axis` is 2**31 on."""
    size = tensors[0].shape[axis]
    step = -(-(2**31) // (size - 1) // 64) * 64
    near = tensors[0].select(axis, 0).numel()
    length = step * (size - 1) + len(tensors) * near
    skip_without_memory(1.1 * length * tensors[0].element_size())
    memory = tensors[0].new_empty(length)
    moved = []
    for number, x in enumerate(tensors):
        strides = list(x.select(axis, 0).contiguous().stride())
        strides.insert(axis, step)
        moved.append(memory.as_strided(x.shape, strides, number * near).copy_(x))
    return moved


@pytest.mark.parametrize("axis", ["batch", "head", "row"])
def test_inputs_whose_elements_lie_far_apart(axis):
    """q, k, v and the gradient of o have elements 2**31 on: what is read needs 64 bits."""
    q, k, v, grad_o = far_apart(
        tensors("cuda", heads=3, kv_heads=3, n=130), ["batch", "head", "row"].index(axis)
    )
    for x in (q, k, v, grad_o):
        assert (
            sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True)) >= 2**31
        )
    check(q, k, v, mask_of(torch.rand(130, 130) < 0.2), grad_o)


def test_more_elements_than_32_bits_count():
    """B * H * N * D is more than 2**31, in q and all results: offsets need 64 bits."""
    batch, heads, n, d = 4100, 16, 512, 64
    bytes_each = 2 * batch * heads * n * d
    assert batch * heads * n * d > 2**31
    # q, o, its gradient, those of q, k and v; the LSE and what tiles that share rows leave.
    skip_without_memory(8 * bytes_each)
    mask = patterns.build("longformer", n)
    plan = plan_of(mask, "cuda")
    program = program_of(plan)
    q = torch.empty(batch, heads, n, d, device="cuda", dtype=torch.bfloat16).normal_()
    # k and v are the same for all samples, by a stride of 0: they take no memory.
    k, v = (torch.randn(1, heads, n, d, device="cuda").bfloat16() for _ in range(2))
    k, v = (x.expand(batch, -1, -1, -1) for x in (k, v))
    scale = d**-0.5
    o, lse = forward(q, k, v, None, None, program, scale, 0.0)
    grad_o = torch.empty_like(o).normal_()
    gradients = backward(grad_o, None, q, k, v, o, lse, None, None, program, scale, 0.0)
    places = [(0, 0), (batch // 2, heads // 2), (batch - 1, heads - 1)]
    places += [divmod(2**31 // (n * d) + more, heads) for more in (-1, 0, 1)]
    results = dict(zip(RESULTS, (o, lse, *gradients), strict=True))
    for b, h in places:
        own = (slice(b, b + 1), slice(h, h + 1))
        expected = expected_attention(
            q[own], k[own], v[own], mask, grad_o=grad_o[own], arithmetic=arithmetic_of(q, plan)
        )
        outcomes = expected.outcomes({name: x[own] for name, x in results.items()})
        assert all(outcome.passed for outcome in outcomes), f"{b}, {h}: {outcomes}"


# ------------------------------------------------------------------------------ streams and graphs


def test_a_stream_that_is_not_the_default():
    """All of a call runs on the current stream: inputs that it waits for are late elsewhere."""
    mask = mask_of(torch.rand(300, 300) < 0.1)
    q, k, v, grad_o = tensors("cuda", n=300)
    plan = plan_of(mask, "cuda")
    expected = results_of(q, k, v, plan, grad_o)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = [torch.full_like(x, math.nan) for x in (q, k, v)]
        torch.cuda._sleep(50_000_000)  # cycles: the default stream is done long before
        for x, there in zip(late, (q, k, v), strict=True):
            x.copy_(there)
        results = results_of(*late, plan, grad_o)
    torch.cuda.current_stream().wait_stream(side)
    assert all(torch.equal(results[name], expected[name]) for name in expected)


def captured(call):
    """A CUDA graph of a call, and the tensors that each replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


def test_a_captured_call_computes_what_its_inputs_hold_when_it_is_replayed():
    mask = patterns.build("strided", 500)
    q, k, v, grad_o = tensors("cuda", n=500)
    plan = plan_of(mask, "cuda")
    graph, results = captured(lambda: results_of(q, k, v, plan, grad_o))
    for _ in range(2):
        for x in (q, k, v, grad_o):
            x.normal_()
        graph.replay()
        torch.cuda.synchronize()
        expected = results_of(q, k, v, plan, grad_o)
        assert all(torch.equal(results[name], expected[name]) for name in expected)


def test_each_replay_of_a_captured_call_draws_its_own_dropout():
    """The seed that the graph draws is read afterwards; forward and backward agree on it."""
    n, p = 200, 0.3
    mask = patterns.build("longformer", n)
    q, k, v, grad_o = tensors("cuda", n=n)
    plan = plan_of(mask, "cuda")
    program = program_of(plan)

    def call():
        seed = dropout.draw_seed("cuda")
        rest = (None, seed, program, 0.125, p)
        o, lse = forward(q, k, v, *rest)
        return seed, o, lse, *backward(grad_o, None, q, k, v, o, lse, *rest)

    graph, (seed, *results) = captured(call)
    seeds = set()
    for _ in range(3):
        graph.replay()
        torch.cuda.synchronize()
        seeds.add(int(seed))
        keep = dropout.keep_mask(2, 2, n, n, p, seed=seed.clone(), device="cuda")
        expected = expected_attention(
            q, k, v, mask, scale=0.125, keep_mask=keep, dropout_p=p, grad_o=grad_o,
            arithmetic=arithmetic_of(q, plan),
        )  # fmt: skip
        outcomes = expected.outcomes(dict(zip(RESULTS, results, strict=True)))
        assert all(outcome.passed for outcome in outcomes), "; ".join(map(str, outcomes))
    assert len(seeds) == 3


def test_sparse_attention_with_dropout_can_be_captured():
    mask = patterns.build("star", 128)
    plan = sb.compile_plan(mask, objective="time").to("cuda")
    inputs = [x.requires_grad_() for x in tensors("cuda", n=128)[:3]]

    def call():
        o = sb.sparse_attention(*inputs, plan, dropout_p=0.3)
        return o.detach(), *torch.autograd.grad(o, inputs, torch.ones_like(o))

    graph, results = captured(call)
    draws = []
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        draws.append(results[0].clone())
        assert all(x.isfinite().all() for x in results)
    assert not torch.equal(*draws)


# ------------------------------------------------------------------------------ other devices


def test_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one device only")
    mask = mask_of(torch.rand(100, 100) < 0.2)
    q, k, v, grad_o = (x.to("cuda:1") for x in tensors("cuda", n=100))
    results = check(q, k, v, mask, grad_o)
    assert all(x.device == torch.device("cuda", 1) for x in results.values())
    assert torch.cuda.current_device() == 0
