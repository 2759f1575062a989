"""Calls that broke other projects' attention, by way of `sparse_attention`, against the reference.

Their suites hold a test for each: FlexAttention's (rows without keys, strides, lengths that no
block divides, heads that differ, a gradient of the LSE alone), FlashAttention's (short lengths
with large values, transposed gradients, races) and xFormers' (block-diagonal masks).
"""

import torch

import sparsebert as sb
from sparsebert.testing import Arithmetic, expected_attention


def tensors(device, heads=2, kv_heads=2, n=33, m=None, dtype=None, batch=2):
    """q, k, v and the gradient of o: [B, H, N, D] and [B, H_kv, M, D], contiguous.

    On a GPU in bf16 with D = 64, whose kernels matter most; the interpreter takes less.
    """
    m = n if m is None else m
    d = 64 if device == "cuda" else 16
    dtype = dtype or (torch.bfloat16 if device == "cuda" else torch.float32)
    shapes = [(heads, n), (kv_heads, m), (kv_heads, m), (heads, n)]
    return [torch.randn(batch, h, length, d, device=device).to(dtype) for h, length in shapes]


def mask_of(dense):
    """An AttentionMask of bool [H, N, M] or [N, M]."""
    return sb.AttentionMask.from_dense(dense)


def plan_of(mask, device):
    """The plan by area, all in tiles."""
    return sb.compile_plan(mask, objective="area").to(device)


def program_of(plan):
    """What the kernels run of a plan."""
    (part,) = plan.program_for("triton", "triton").parts
    return part.program


def arithmetic_of(q, plan):
    """The kernels' arithmetic over the plan."""
    return Arithmetic.of(q, passes_on=program_of(plan).queries.chained)


def results_of(q, k, v, plan, grad_o, grad_lse=None):
    """o, LSE and gradients by the kernels; `grad_o` or `grad_lse` may be None."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    o, lse = sb.sparse_attention(*inputs, plan, return_lse=True, backend="triton")
    pairs = [(x, g) for x, g in ((o, grad_o), (lse, grad_lse)) if g is not None]
    gradients = torch.autograd.grad([x for x, _ in pairs], inputs, [g for _, g in pairs])
    named = zip(("dq", "dk", "dv"), gradients, strict=True)
    return {"o": o.detach(), "lse": lse.detach(), **dict(named)}


def check(q, k, v, mask, grad_o, grad_lse=None):
    """Forward and backward within the bounds; the results."""
    plan = plan_of(mask, q.device)
    results = results_of(q, k, v, plan, grad_o, grad_lse)
    expected = expected_attention(
        q, k, v, mask, grad_o=torch.zeros_like(q) if grad_o is None else grad_o,
        grad_lse=grad_lse, arithmetic=arithmetic_of(q, plan),
    )  # fmt: skip
    outcomes = expected.outcomes(results)
    assert all(outcome.passed for outcome in outcomes), "; ".join(map(str, outcomes))
    return results


def block_diagonal(sizes):
    """bool [N, M]: block b is sizes[b] = (queries, keys), either of which may be 0."""
    queries = torch.tensor([size[0] for size in sizes])
    keys = torch.tensor([size[1] for size in sizes])
    number = torch.arange(len(sizes))
    return number.repeat_interleave(queries)[:, None] == number.repeat_interleave(keys)
