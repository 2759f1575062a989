"""What a plan remembers of calls that were checked, and what that must not change."""

import pickle

import pytest
import torch

import sparsebert as sb
from sparsebert import api
from sparsebert.backends import registry
from tests import ROOT

N = 40


@pytest.fixture
def plan():
    made = sb.compile_plan(sb.patterns.sliding_window(N, 3), target="cpu")
    return made.to("meta").to("cpu")  # one of its own


def tensors(batch=2, heads=4, kv_heads=4, length=N, dim=16, dtype=torch.float32):
    q = torch.randn(batch, heads, length, dim, dtype=dtype)
    return q, *torch.randn(2, batch, kv_heads, length, dim, dtype=dtype).unbind(0)


Q, K, V = tensors()
REAL = torch.ones(2, N, dtype=torch.bool)
BAD = {
    "dtype of k": ((Q, K.double(), V), {}),
    "dtype of all": ((Q.int(), K.int(), V.int()), {}),
    "device of v": ((Q, K, V.to("meta")), {}),
    "device of all": ((Q.to("meta"), K.to("meta"), V.to("meta")), {}),
    "shape of v": ((Q, K, V[:, :2]), {}),
    "heads of k": ((Q, K[:, :3], V[:, :3]), {}),
    "no heads": ((Q[:, :0], K[:, :0], V[:, :0]), {}),
    "length": (tensors(length=N + 1), {}),
    "dimensions": ((Q[0], K[0], V[0]), {}),
    "D": (tensors(dim=300), {}),
    "no D": (tensors(dim=0), {}),
    "arrays": ((Q.numpy(), K.numpy(), V.numpy()), {}),
    "a list": ((Q.tolist(), K, V), {}),
    "dtype of the key mask": ((Q, K, V), {"key_mask": REAL.int()}),
    "shape of the key mask": ((Q, K, V), {"key_mask": REAL[:1]}),
    "device of the key mask": ((Q, K, V), {"key_mask": REAL.to("meta")}),
    "no key mask": ((Q, K, V), {"key_mask": [True] * N}),
    "dropout_p": ((Q, K, V), {"dropout_p": 1.0}),
    "no dropout_p": ((Q, K, V), {"dropout_p": "0.1"}),
    "a list for dropout_p": ((Q, K, V), {"dropout_p": [0.1]}),
    "two for dropout_p": ((Q, K, V), {"dropout_p": torch.tensor([0.1, 0.1])}),
    "backend": ((Q, K, V), {"backend": "fast"}),
    "a list for backend": ((Q, K, V), {"backend": ["native"]}),
    "scale": ((Q, K, V), {"scale": "large"}),
}


def use(plan):
    """Good calls of many kinds."""
    for kv_heads in (4, 2, 1):
        for key_mask in (None, REAL):
            for dropout_p in (0.0, 0.1):
                for backend in ("auto", "torch", "dense"):
                    q, k, v = tensors(kv_heads=kv_heads)
                    sb.sparse_attention(
                        q, k, v, plan, key_mask=key_mask, dropout_p=dropout_p, backend=backend
                    )
    assert plan.checked


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_refused_after_good_ones(name, plan):
    tensors, options = BAD[name]
    with pytest.raises((TypeError, ValueError, RuntimeError)) as before:
        sb.sparse_attention(*tensors, plan, **options)
    use(plan)
    for _ in range(2):
        with pytest.raises(type(before.value)) as after:
            sb.sparse_attention(*tensors, plan, **options)
        assert str(after.value) == str(before.value)


def test_a_number_that_changes_is_looked_at_again(plan):
    q, k, v = tensors()
    dropout_p = torch.tensor(0.1)
    sb.sparse_attention(q, k, v, plan, dropout_p=dropout_p)
    dropout_p.fill_(1.5)
    with pytest.raises(ValueError, match="dropout_p must be in"):
        sb.sparse_attention(q, k, v, plan, dropout_p=dropout_p)


def test_a_kind_of_call_is_checked_once(plan, monkeypatch):
    checked = []
    check = api.check_call
    monkeypatch.setattr(api, "check_call", lambda *call: checked.append(call) or check(*call))
    q, k, v = tensors()
    for _ in range(3):
        sb.sparse_attention(q, k, v, plan)
        sb.sparse_attention(q.requires_grad_(), k + 1, v.clone(), plan, return_lse=True, scale=2.0)
    assert len(checked) == 1
    sb.sparse_attention(q[:1], k[:1], v[:1], plan)
    sb.sparse_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), plan)
    sb.sparse_attention(q, k, v, plan, key_mask=REAL)
    assert len(checked) == 4


def test_a_backend_that_comes_or_goes_is_seen(plan, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    q, k, v = tensors()
    sb.sparse_attention(q, k, v, plan)
    before = set(plan.programs)
    registry.register("reference", "new_backend", devices=("cpu",))
    try:
        sb.sparse_attention(q, k, v, plan)
        assert {names for names in set(plan.programs) - before if "reference" in names}
        sb.sparse_attention(q, k, v, plan, backend="reference")
    finally:
        registry.unregister("reference")
    with pytest.raises(ValueError, match="reference"):
        sb.sparse_attention(q, k, v, plan, backend="reference")
    sb.sparse_attention(q, k, v, plan)


def test_autocast_is_not_what_was_checked(plan):
    q, k, v = tensors()
    assert sb.sparse_attention(q, k, v, plan).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert sb.sparse_attention(q, k, v, plan).dtype == torch.bfloat16
        assert sb.sparse_attention(q, k, v.half(), plan).dtype == torch.bfloat16
    assert sb.sparse_attention(q, k, v, plan).dtype == torch.float32


def test_kinds_are_bounded_and_stay_here(plan):
    for batch in range(1, 3 * api._KINDS):
        q, k, v = (torch.zeros(batch, 1, N, 4) for _ in range(3))
        sb.sparse_attention(q, k, v, plan)
        assert len(plan.checked) <= api._KINDS
    assert plan.checked and not pickle.loads(pickle.dumps(plan)).checked
    assert not plan.to("meta").checked


def test_a_transform_is_not_what_was_checked(plan):
    q, k, v = tensors()
    expected = torch.autograd.grad(sb.sparse_attention(q.requires_grad_(), k, v, plan).sum(), q)
    found = torch.func.grad(lambda q: sb.sparse_attention(q, k, v, plan).sum())(q.detach())
    torch.testing.assert_close(found, expected[0])
