"""Masks, tensors and the check that the tests of whole calls share."""

import functools
import math

import pytest
import torch

import sparsebert as sb
from sparsebert import dropout
from sparsebert.backends import registry, routing
from sparsebert.backends.base import CallKind
from sparsebert.kernels.cpu.library import load
from sparsebert.testing import Arithmetic, expected_attention

needs_library = pytest.mark.skipif(load().library is None, reason="the CPU kernels are not built")

UNABLE = {
    name: reasons
    for name in registry.on_device("cpu")
    if (reasons := routing.reasons_against(name, CallKind("cpu", torch.float32, 64)))
}
"""Backends that this machine's CPU cannot run, and why."""
BACKENDS = (registry.AUTO, *(n for n in registry.on_device("cpu") if n not in UNABLE))
"""All others that are at home on CPUs: a new one is tested by being there."""


def random_mask(heads: int, q_len: int, kv_len: int, density: float = 0.15) -> sb.AttentionMask:
    """Different heads, dead rows and unused columns."""
    dense = torch.rand(heads, q_len, kv_len) < density
    dense[:, :: max(3, q_len // 4)] = False
    dense[:, :, 1 :: max(3, kv_len // 4)] = False
    return sb.AttentionMask.from_dense(dense)


def half_dense_mask(heads: int, q_len: int, kv_len: int) -> sb.AttentionMask:
    """Every second head attends to everything, the others to a narrow band."""
    i, j = torch.arange(q_len)[:, None], torch.arange(kv_len)
    band = (i - j).abs() <= 2
    return sb.AttentionMask.from_dense(
        torch.stack([band if h % 2 else torch.ones_like(band) for h in range(heads)])
    )


def shared_mask(heads: int, q_len: int, kv_len: int) -> sb.AttentionMask:
    length = max(q_len, kv_len)
    return sb.patterns.longformer(length, window=3, num_global=1).crop(q_len, kv_len)


def make_tensor(batch, heads, length, dim, dtype, strides):
    """A random tensor [B, H, N, D] of one of the memory orders, its values rounded to dtype."""
    if strides == "contiguous":
        return torch.randn(batch, heads, length, dim).to(dtype)
    if strides == "heads last":
        return torch.randn(batch, length, heads, dim).to(dtype).transpose(1, 2)
    return torch.randn(heads, length, batch, 2 * dim).to(dtype)[..., ::2].permute(2, 0, 1, 3)


def make_key_mask(padding, batch, kv_len):
    """bool [B, M]; the last sequence of the batch hides everything where there is padding."""
    if padding == "none":
        return None
    position = torch.arange(kv_len)
    hidden = {
        "right": position >= kv_len * 2 // 3,
        "left": position < kv_len // 3,
        "middle": (position >= kv_len // 3) & (position < kv_len // 2),
    }[padding]
    key_mask = (~hidden).repeat(batch, 1)
    key_mask[-1] = False
    return key_mask


def run_and_check(q, k, v, mask, plan, *, key_mask, dropout_p, backends=BACKENDS, scale=None):
    """Forward and backward of each backend against the fp64 reference, within the bounds."""
    (batch, heads, q_len, _), kv_len = q.shape, k.shape[2]
    torch.manual_seed(11)
    keep = None
    if dropout_p:
        keep = dropout.keep_mask(batch, heads, q_len, kv_len, dropout_p, device=q.device)
    grad_o = torch.randn(q.shape).to(q)

    @functools.cache
    def expected(passes_on):
        return expected_attention(
            q, k, v, mask, scale=scale, key_mask=key_mask, keep_mask=keep, dropout_p=dropout_p,
            grad_o=grad_o, arithmetic=Arithmetic.of(q, passes_on=passes_on),
        )  # fmt: skip

    dead = expected(False).exact["lse"] == -math.inf
    kind = CallKind(q.device.type, q.dtype, q.shape[-1])
    for backend in backends:
        if backend != registry.AUTO and routing.reasons_against(backend, kind):
            with pytest.raises(ValueError, match=f"backend '{backend}' .*; use backend="):
                sb.sparse_attention(q, k, v, plan, key_mask=key_mask, backend=backend)
            continue
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        torch.manual_seed(11)
        o = sb.sparse_attention(
            *inputs, plan, scale=scale, key_mask=key_mask, dropout_p=dropout_p, backend=backend
        )
        dq, dk, dv = torch.autograd.grad(o, inputs, grad_o)
        lse = sb.sparse_attention(
            q, k, v, plan, scale=scale, key_mask=key_mask, return_lse=True, backend=backend
        )[1]
        assert (o.dtype, lse.dtype) == (q.dtype, torch.float32)
        results = {"o": o, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
        routes = routing.choose(backend, q.device.type, q.dtype, q.shape[-1], False)
        for outcome in expected(plan.program_for(*routes).passes_on).outcomes(results):
            assert outcome.passed, (backend, str(outcome))
        assert not o[dead].any()
        assert not dq[dead].any()
