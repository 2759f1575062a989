"""The custom ops under autograd of every order, torch.compile, checkpointing and autocast."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import sparsebert as sb
import sparsebert.api  # registers the ops
from tests.backends.cases import ROUTES


def small_case(kv_heads=1, dtype=torch.float64):
    """A mask with dead rows, its plan, a key mask and q, k, v."""
    dense = torch.rand(2, 12, 14) < 0.3
    dense[:, 3] = False
    mask = sb.AttentionMask.from_dense(dense)
    plan = sb.compile_plan(mask, target="cpu")
    key_mask = torch.rand(1, 14) < 0.8
    shapes = [(1, 2, 12, 4), (1, kv_heads, 14, 4), (1, kv_heads, 14, 4)]
    inputs = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]
    return mask, plan, key_mask, inputs


def call_op(inputs, plan, backend, key_mask, dropout_p):
    seed = torch.tensor([3]) if dropout_p else None
    o, lse = torch.ops.sparsebert.attention(
        *inputs, *plan.program_for(*ROUTES[backend]).flat, key_mask, seed, 0.5, dropout_p
    )
    return o, lse.masked_fill(lse == -torch.inf, 0.0)


@pytest.mark.parametrize("backend", ["torch", "dense"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_gradcheck(backend, dropout_p):
    _, plan, key_mask, inputs = small_case()

    def run(*inputs):
        return call_op(inputs, plan, backend, key_mask, dropout_p)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *x: run(*x)[0], inputs, fast_mode=True)


@pytest.mark.parametrize("backend", ["auto", "torch", "dense"])
def test_derivatives_of_third_order(backend):
    """A nonlinear function of o, so that o's gradient depends on q, k and v in turn."""
    mask, plan, key_mask, inputs = small_case(kv_heads=2)

    def third(o):
        for _ in range(2):
            gradients = torch.autograd.grad(o.pow(3).sum(), inputs, create_graph=True)
            o = sum(x.pow(2).sum() for x in gradients)
        return torch.autograd.grad(o, inputs)

    found = third(sb.sparse_attention(*inputs, plan, key_mask=key_mask, backend=backend))
    expected = third(sb.reference_attention(*inputs, mask, key_mask=key_mask))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item())


@pytest.mark.parametrize(
    ("backend", "dropout_p", "dtype", "with_grad_lse"),
    [
        ("torch", 0.0, torch.float32, False),
        ("torch", 0.3, torch.bfloat16, True),
        ("dense", 0.0, torch.bfloat16, True),
        ("dense", 0.3, torch.float32, False),
    ],
)
def test_opcheck(backend, dropout_p, dtype, with_grad_lse):
    _, plan, key_mask, inputs = small_case(dtype=dtype)
    seed = torch.tensor([3]) if dropout_p else None
    options = (*plan.program_for(*ROUTES[backend]).flat, key_mask, seed, 0.5, dropout_p)
    torch.library.opcheck(torch.ops.sparsebert.attention.default, (*inputs, *options))
    o, lse = torch.ops.sparsebert.attention(*(x.detach() for x in inputs), *options)
    grad_lse = torch.ones_like(lse) if with_grad_lse else None
    torch.library.opcheck(
        torch.ops.sparsebert.attention_backward.default,
        (torch.ones_like(o), grad_lse, *inputs, o, lse, *options),
    )


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_compiles_into_one_graph(dropout_p):
    _, plan, key_mask, inputs = small_case(dtype=torch.float32)

    def run(q, k, v):
        o, lse = sb.sparse_attention(
            q * 2, k, v, plan, key_mask=key_mask, dropout_p=dropout_p, return_lse=True
        )
        return o.sin(), lse

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (run, compiled):
        torch.manual_seed(5)
        o, lse = function(*inputs)
        results.append([o, lse, *torch.autograd.grad(o.sum(), inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_length_compiles_without_breaking():
    def run(q, plan):
        return sb.sparse_attention(q, q, q, plan)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for length in (16, 24, 40):
        plan = sb.compile_plan(sb.patterns.star(length), target="cpu")
        q = torch.randn(1, 2, length, 8)
        torch.testing.assert_close(compiled(q, plan), run(q, plan))


@pytest.mark.parametrize("backend", ["torch", "dense"])
def test_checkpointing_recomputes_the_same_dropout(backend):
    _, plan, key_mask, inputs = small_case()

    def run(*inputs):
        return sb.sparse_attention(
            *inputs, plan, key_mask=key_mask, dropout_p=0.4, backend=backend
        )

    gradients = []
    for forward in (run, lambda *x: checkpoint(run, *x, use_reentrant=False)):
        torch.manual_seed(9)
        o = forward(*inputs)
        torch.rand(7)  # moves the generator between forward and backward
        gradients.append([o, *torch.autograd.grad(o.square().sum(), inputs)])
    for a, b in zip(*gradients, strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("backend", ["torch", "dense"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_same_bits_every_time(backend, dropout_p):
    mask = sb.AttentionMask.from_dense(torch.rand(3, 130, 130) < 0.2)
    plan = sb.compile_plan(mask, target="cpu")
    inputs = [torch.randn(2, 3, 130, 16).requires_grad_() for _ in range(3)]

    def run():
        torch.manual_seed(1)
        o = sb.sparse_attention(*inputs, plan, dropout_p=dropout_p, backend=backend)
        return [o, *torch.autograd.grad(o.square().sum(), inputs)]

    first = run()
    for _ in range(5):
        assert all(a.equal(b) for a, b in zip(first, run(), strict=True))


def test_autocast_lowers_the_precision_as_torch_does():
    mask = sb.patterns.star(32)
    q, k, v = torch.randn(3, 1, 2, 32, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sb.sparse_attention(q, k, v, mask).dtype == torch.bfloat16
        doubles = (x.double() for x in (q, k, v))
        assert sb.sparse_attention(*doubles, mask).dtype == torch.float64


@pytest.mark.parametrize("backend", ["auto", "torch", "dense"])
def test_autocast_takes_several_precisions_as_torch_does(backend):
    """What a norm of queries and keys alone leaves: they are in fp32, the values in bf16."""
    mask = sb.patterns.sliding_window(32, window=4)
    q, k, v = torch.randn(3, 1, 2, 32, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o = sb.sparse_attention(q, k, v.bfloat16(), mask, backend=backend)
        same = sb.sparse_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask, backend=backend)
        with pytest.raises(TypeError, match=r"q is torch\.float32 but k is torch\.float64"):
            sb.sparse_attention(q, k.double(), v, mask, backend=backend)
    assert o.dtype == torch.bfloat16 and o.equal(same)
    with pytest.raises(TypeError, match=r"q is torch\.float32 but v is torch\.bfloat16"):
        sb.sparse_attention(q, k, v.bfloat16(), mask, backend=backend)
