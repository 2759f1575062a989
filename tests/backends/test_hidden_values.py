"""Values that must not reach a result, on each way that a call can take.

A plan of dense heads alone without options goes through torch's SDPA (`Dense.direct`), all others
through the op; empty rows are the mask's own, or made by a key mask.
"""

import pytest
import torch

import sparsebert as sb
from sparsebert.integrations.huggingface.dense import dense_attention
from tests.attention.cases import BACKENDS, random_mask
from tests.backends.cases import plan_with, runs_by_sdpa

NAN = float("nan")


def dense_case(dense, batch=2, route="dense"):
    """A plan that runs wholly dense, or in the tiles of the CPU's backend, and q, k, v."""
    mask = sb.AttentionMask.from_dense(dense)
    distinct = len({head.numpy().tobytes() for head in dense})
    plan = plan_with(mask, [route == "dense"] * distinct)
    assert {head.route for head in plan.explain().per_head} == {route}
    heads, q_len, kv_len = dense.shape
    return plan, [torch.randn(batch, heads, n, 16) for n in (q_len, kv_len, kv_len)]


def run(plan, inputs, **options):
    """o and the gradients of q, k and v."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    result = sb.sparse_attention(*inputs, plan, **options)
    o = result[0] if isinstance(result, tuple) else result
    weights = torch.linspace(-1.0, 1.0, o.numel()).view(o.shape)
    return [o, *torch.autograd.grad((o * weights).sum(), inputs)]


def assert_same_and_finite(found, expected):
    for x, e in zip(found, expected, strict=True):
        assert x.isfinite().all()
        assert x.equal(e)


@pytest.mark.parametrize("options", [{}, {"return_lse": True}, {"backend": "dense"}, {"both": 1}])
@pytest.mark.parametrize("route", ["dense", "tiles"])
def test_queries_that_the_mask_leaves_nothing(route, options):
    """Dense heads without a key mask: the op's, for SDPA would attend with such a row."""
    if "both" in options:
        options = {"backend": "dense", "return_lse": True}
    dense = torch.rand(2, 30, 34) < 0.9
    dense[:, 5] = False
    dense[1, 20] = False
    plan, (q, k, v) = dense_case(dense, route=route)
    assert not runs_by_sdpa(plan)
    dead = ~dense.any(-1)[None, ..., None]
    clean = run(plan, (q, k, v), **options)
    poisoned = run(plan, (q.masked_fill(dead, NAN), k, v), **options)
    assert_same_and_finite(poisoned, clean)
    for x in poisoned[:2]:
        assert not x.masked_select(dead).any()
    _, lse = sb.sparse_attention(q.masked_fill(dead, NAN), k, v, plan, return_lse=True)
    assert (lse == -torch.inf).equal(dead.squeeze(-1).expand(2, 2, 30))


@pytest.mark.parametrize("hides", ["some keys", "a whole sequence"])
@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("route", ["dense", "tiles"])
def test_plain_calls_with_a_key_mask(route, hides, kv_heads):
    """Keys that no query sees, hidden keys, and queries that the key mask leaves none.

    Dense heads go to SDPA.
    """
    dense = torch.rand(2, 30, 34) < 0.9
    dense[..., 7] = False
    dense[0, :, 9] = False  # unused for one query head of a shared key head only
    dense[..., 0] = True
    plan, (q, k, v) = dense_case(dense, route=route)
    k, v = k[:, :kv_heads], v[:, :kv_heads]
    assert runs_by_sdpa(plan) == (route == "dense")
    key_mask = torch.ones(2, 34, dtype=torch.bool)
    key_mask[0, 12:15] = False
    if hides == "a whole sequence":
        key_mask[1] = False
    allowed = dense & key_mask[:, None, None, :]
    dead = ~allowed.any(-1)[..., None]
    unseen = ~allowed.any(-2).unflatten(1, (kv_heads, -1)).any(2)[..., None]
    assert unseen.any()
    assert dead.any() == (hides == "a whole sequence")
    clean = run(plan, (q, k, v), key_mask=key_mask)
    k, v = k.masked_fill(unseen, NAN), v.masked_fill(unseen, torch.inf)
    poisoned = run(plan, (q.masked_fill(dead, NAN), k, v), key_mask=key_mask)
    assert_same_and_finite(poisoned, clean)
    assert not poisoned[0].masked_select(dead).any()
    assert not poisoned[1].masked_select(dead).any()
    for x in poisoned[2:]:
        assert not x.masked_select(unseen).any()


@pytest.mark.parametrize("with_lse", [False, True])  # its gradient is not the fused engine's
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_key_in_place_of_hidden_ones_may_score_far_above_the_lse(backend, with_lse):
    """p = exp(score - lse) overflows where a mask is multiplied instead of filled in.

    Row 0 may see keys 0 and 1, row 1 key 15; the key mask hides key 0.
    """
    dense = torch.zeros(16, 16, dtype=torch.bool)
    dense[0, :2] = True
    dense[1, 15] = True
    mask = sb.AttentionMask.from_dense(dense)
    plan = sb.compile_plan(mask, target="cpu", objective="area")
    key_mask = torch.ones(1, 16, dtype=torch.bool)
    key_mask[0, 0] = False
    for sign in (1.0, -1.0):
        q, k, v = torch.zeros(3, 1, 1, 16, 16)
        q[..., 0, 0], k[..., 15, 0] = sign, 200.0
        v[..., 1, :], v[..., 15, :] = 3.0, 5.0
        results = []
        for attend in (
            lambda *x, **options: sb.sparse_attention(*x, plan, backend=backend, **options),
            lambda *x, **options: sb.reference_attention(*x, mask, **options),
        ):
            inputs = [x.clone().requires_grad_() for x in (q, k, v)]
            o, lse = attend(*inputs, scale=1.0, key_mask=key_mask, return_lse=True)
            total = o.sum() + lse[..., :2].sum() if with_lse else o.sum()
            results.append([o, *torch.autograd.grad(total, inputs)])
        for x, e in zip(*results, strict=True):
            assert x.isfinite().all()
            torch.testing.assert_close(x, e)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_dense_route_of_models(need_weights, with_bias):
    """Decoders' steps, biases, wanted weights: padding may hold anything there, too."""
    allowed = torch.rand(2, 1, 20, 24) < 0.5
    allowed[..., 3:6] = False
    allowed[0, :, 7] = False
    q, k, v = (torch.randn(2, 4, n, 16) for n in (20, 24, 24))
    hidden, dead = ~allowed.any(-2)[..., None], ~allowed.any(-1)[..., None]
    bias = 100 * torch.randn(2, 4, 20, 24) if with_bias else None

    def attend(q, k, v, bias):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        o, weights = dense_attention(
            *inputs, allowed, bias=bias, scale=1.0, dropout_p=0.0, need_weights=need_weights
        )
        results = [o, *torch.autograd.grad(o.square().sum(), inputs)]
        return [*results, weights] if need_weights else results

    clean = attend(q, k, v, bias)
    if with_bias:
        bias = bias.masked_fill(~allowed, NAN)
    poison = q.masked_fill(dead, NAN), k.masked_fill(hidden, NAN), v.masked_fill(hidden, torch.inf)
    assert_same_and_finite(attend(*poison, bias), clean)


def test_fp64_has_second_derivatives_where_sdpa_would_do():
    plan, inputs = dense_case(torch.ones(1, 5, 6, dtype=torch.bool), batch=1)
    assert runs_by_sdpa(plan)
    inputs = [x[..., :3].double().requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(lambda *x: sb.sparse_attention(*x, plan), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_generator_moves_for_dropout_alone(backend):
    plan = sb.compile_plan(random_mask(2, 30, 30), target="cpu")
    q, k, v = torch.randn(3, 1, 2, 30, 16)
    for return_lse in (False, True):
        before = torch.get_rng_state()
        sb.sparse_attention(q, k, v, plan, return_lse=return_lse, backend=backend)
        sb.sparse_attention(q, k, v, plan, dropout_p=0.0, return_lse=return_lse, backend=backend)
        assert torch.get_rng_state().equal(before)
        sb.sparse_attention(q, k, v, plan, dropout_p=0.1, return_lse=return_lse, backend=backend)
        assert not torch.get_rng_state().equal(before)
