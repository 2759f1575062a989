"""The Triton kernels behind torch's own machinery: opcheck, torch.compile, checkpoints, autocast.

In Triton's interpreter where there is no GPU; what the kernels compute is tested elsewhere.
"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import sparsebert as sb
import sparsebert.api  # registers the ops

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def small_case(dtype=torch.float32):
    """A mask with dead rows for two heads that share a key head, its plan, a key mask, q, k, v."""
    dense = torch.rand(2, 12, 14) < 0.3
    dense[:, 3] = False
    plan = sb.compile_plan(sb.AttentionMask.from_dense(dense), target="cpu").to(DEVICE)
    key_mask = torch.rand(1, 14, device=DEVICE) < 0.8
    shapes = [(1, 2, 12, 8), (1, 1, 14, 8), (1, 1, 14, 8)]
    inputs = [torch.randn(s, device=DEVICE).to(dtype).requires_grad_() for s in shapes]
    return plan, key_mask, inputs


@pytest.mark.parametrize(
    ("dropout_p", "dtype", "with_grad_lse"),
    [(0.0, torch.float32, False), (0.3, torch.bfloat16, True)],
)
def test_opcheck(dropout_p, dtype, with_grad_lse):
    plan, key_mask, inputs = small_case(dtype)
    program = plan.program_for("triton", "triton")
    seed = torch.tensor([3], device=DEVICE) if dropout_p else None
    options = (*program.flat, key_mask, seed, 0.5, dropout_p)
    torch.library.opcheck(torch.ops.sparsebert.attention.default, (*inputs, *options))
    inputs = [x.detach() for x in inputs]  # the backward op has no derivative of its own here
    o, lse = torch.ops.sparsebert.attention(*inputs, *options)
    grad_lse = torch.ones_like(lse) if with_grad_lse else None
    torch.library.opcheck(
        torch.ops.sparsebert.attention_backward.default,
        (torch.ones_like(o), grad_lse, *inputs, o, lse, *options),
    )


def test_compiles_into_one_graph():
    plan, key_mask, inputs = small_case()

    def run(q, k, v):
        o, lse = sb.sparse_attention(
            q * 2, k, v, plan, key_mask=key_mask, dropout_p=0.3, return_lse=True,
            backend="triton",
        )  # fmt: skip
        return o.sin(), lse

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (run, compiled):
        torch.manual_seed(5)
        o, lse = function(*inputs)
        results.append([o, lse, *torch.autograd.grad(o.sum(), inputs)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_checkpointing_recomputes_the_same_dropout():
    plan, key_mask, inputs = small_case()

    def run(*inputs):
        return sb.sparse_attention(
            *inputs, plan, key_mask=key_mask, dropout_p=0.4, backend="triton"
        )

    gradients = []
    for forward in (run, lambda *x: checkpoint(run, *x, use_reentrant=False)):
        torch.manual_seed(9)
        o = forward(*inputs)
        torch.rand(7, device=DEVICE)  # moves the generator between forward and backward
        gradients.append([o, *torch.autograd.grad(o.square().sum(), inputs)])
    for a, b in zip(*gradients, strict=True):
        assert a.equal(b)


def test_autocast_lowers_the_precision():
    plan, key_mask, inputs = small_case()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        o = sb.sparse_attention(*inputs, plan, key_mask=key_mask, backend="triton")
    assert o.dtype == torch.bfloat16
    lowered = [x.detach().bfloat16() for x in inputs]
    expected = sb.sparse_attention(*lowered, plan, key_mask=key_mask, backend="triton")
    assert o.equal(expected)
    gradients = torch.autograd.grad(o.float().sum(), inputs)
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in gradients)
