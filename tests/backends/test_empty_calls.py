"""Calls without sequences give empty results, as SDPA does; other empties are refused."""

import pytest
import torch

import sparsebert as sb
from sparsebert import dropout
from sparsebert.backends import execution
from sparsebert.backends.base import Call
from tests.backends.cases import OPTIONS, PLANS, ROUTES, as_on_a_gpu


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("backend", ["auto", "torch", "dense", "triton", "as on a GPU"])
@pytest.mark.parametrize("name", PLANS)
def test_no_sequences(name, backend, options, monkeypatch):
    plan = PLANS[name]()
    if backend == "as on a GPU":
        as_on_a_gpu(monkeypatch)
        backend = "auto"
    q, k, v = (
        torch.randn(0, h, n, 16, requires_grad=True) for h, n in ((4, 33), (2, 40), (2, 40))
    )
    given = dict(OPTIONS[options])
    if "key_mask" in given:
        given["key_mask"] = torch.zeros(0, 40, dtype=torch.bool)
    result = sb.sparse_attention(q, k, v, plan, backend=backend, **given)
    o, *lse = result if isinstance(result, tuple) else (result,)
    assert (o.shape, o.dtype) == (q.shape, q.dtype)
    assert [x.shape for x in lse] == [q.shape[:3]] * len(lse)
    gradients = torch.autograd.grad(o.sum(), (q, k, v))
    assert [x.shape for x in gradients] == [x.shape for x in (q, k, v)]


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("name", PLANS)
def test_composed_operations(name, dropout_p):
    parts = PLANS[name]().program_for(*ROUTES["auto"]).parts
    q, k, v = (
        torch.randn(0, h, n, 16, requires_grad=True) for h, n in ((4, 33), (2, 40), (2, 40))
    )
    o, _ = execution.compose(Call(q, k, v, None, torch.tensor([1]), 0.25, dropout_p), parts)
    gradients = torch.autograd.grad(o.sum(), (q, k, v))
    assert [x.shape for x in (o, *gradients)] == [x.shape for x in (q, q, k, v)]


def test_what_is_beside_the_ops():
    mask = sb.patterns.star(40)
    q = torch.randn(0, 2, 40, 8)
    assert sb.sparse_attention(q, q, q, mask).shape == q.shape
    assert sb.reference_attention(q, q, q, mask).shape == q.shape
    assert sb.SparseSelfAttention(16, 2, mask)(torch.randn(0, 40, 16)).shape == (0, 40, 16)
    for shape in ((0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)):
        assert dropout.keep_mask(*shape, 0.3).shape == shape


def test_what_is_refused():
    mask = sb.patterns.star(40)
    q = torch.randn(2, 2, 40, 8)
    none = q[:, :0]
    for tensors, name in (((none, none, none), "q"), ((q, none, none), "k")):
        with pytest.raises(ValueError, match=f"{name} has no heads, its shape is .*at least 1"):
            sb.sparse_attention(*tensors, mask)
        with pytest.raises(ValueError, match=r"reference_attention: q has H=.*both need one"):
            sb.reference_attention(*tensors, mask)
    with pytest.raises(ValueError, match="D must be at least 1, got 0"):
        sb.sparse_attention(q[..., :0], q[..., :0], q[..., :0], mask)
    with pytest.raises(ValueError, match="N=0 but the plan covers N=40; an empty sequence"):
        sb.sparse_attention(q[:, :, :0], q, q, mask)
    with pytest.raises(ValueError, match="SparseSelfAttention: x has N=0, an empty sequence"):
        sb.SparseSelfAttention(16, 2, mask)(torch.randn(2, 0, 16))
