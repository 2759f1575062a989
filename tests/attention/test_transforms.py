"""torch.func transforms and forward-mode differentiation: right on every backend, or refused."""

import pytest
import torch
from torch.autograd import forward_ad

import sparsebert as sb
from sparsebert import dropout
from sparsebert.backends import registry, routing
from sparsebert.backends.base import CallKind
from sparsebert.backends.registry import AUTO
from tests.attention.cases import UNABLE
from tests.backends.cases import PLANS

ABOVE_ROUNDING = 1e-11  # of chains of some hundred fp64 operations on values of size 1
BACKENDS = (
    AUTO,
    *(name for name in registry.composing("cpu") if name not in UNABLE),
)
FP64 = CallKind("cpu", torch.float64, 4, composed=True)
OF_FP64 = tuple(n for n in BACKENDS if n == AUTO or not routing.reasons_against(n, FP64))
CALLS = tuple((n, torch.float32) for n in BACKENDS) + tuple((n, torch.float64) for n in OF_FP64)


def case(name, dtype=torch.float64, batch=1):
    """A plan, a key mask, q, k, v and a tangent for each."""
    plan = PLANS[name]()
    key_mask = torch.rand(batch, 40) < 0.8
    inputs = [torch.randn(batch, h, n, 4, dtype=dtype) for h, n in ((4, 33), (2, 40), (2, 40))]
    return plan, key_mask, inputs, [torch.randn_like(x) for x in inputs]


def assert_close(found, expected):
    assert (found - expected).abs().max() <= ABOVE_ROUNDING * expected.abs().max()


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("backend", OF_FP64)
@pytest.mark.parametrize("name", PLANS)
def test_jvp_is_that_of_the_reference(name, backend, dropout_p):
    """Of o and the LSE, in all inputs at once."""
    plan, key_mask, inputs, tangents = case(name)
    torch.manual_seed(4)
    keep = dropout.keep_mask(1, 4, 33, 40, dropout_p) if dropout_p else None

    def run(*inputs):
        torch.manual_seed(4)
        return sb.sparse_attention(
            *inputs, plan, key_mask=key_mask, return_lse=True, backend=backend,
            dropout_p=dropout_p,
        )  # fmt: skip

    def reference(*inputs):
        return sb.reference_attention(
            *inputs, plan.mask, key_mask=key_mask, return_lse=True, keep_mask=keep,
            dropout_p=dropout_p,
        )  # fmt: skip

    (o, lse), (o_tangent, lse_tangent) = torch.func.jvp(run, tuple(inputs), tuple(tangents))
    (e, e_lse), (e_tangent, e_lse_tangent) = torch.func.jvp(
        reference, tuple(inputs), tuple(tangents)
    )
    assert_close(o, e)
    assert_close(o_tangent, e_tangent)
    alive = e_lse > -torch.inf
    assert alive.any()
    # The LSE is rounded to fp32, and so is its tangent.
    torch.testing.assert_close(lse[alive], e_lse[alive].float())
    torch.testing.assert_close(lse_tangent[alive], e_lse_tangent[alive].float())


@pytest.mark.parametrize("backend", OF_FP64)
def test_jvp_is_what_finite_differences_say(backend):
    plan, key_mask, inputs, tangents = case("mixed")

    def run(*inputs):
        return sb.sparse_attention(*inputs, plan, key_mask=key_mask, backend=backend)

    _, tangent = torch.func.jvp(run, tuple(inputs), tuple(tangents))
    step = 1e-6
    ahead, behind = (
        run(*(x + sign * step * t for x, t in zip(inputs, tangents, strict=True)))
        for sign in (1.0, -1.0)
    )
    torch.testing.assert_close((ahead - behind) / (2 * step), tangent, rtol=1e-6, atol=1e-7)
    assert tangent.abs().max() > 0.1


@pytest.mark.parametrize(("backend", "dtype"), CALLS)
@pytest.mark.parametrize("name", ["tiles", "dense"])
def test_dual_numbers(name, backend, dtype):
    """Without options too, where dense plans go through torch's SDPA, which has no such rule."""
    plan, _, inputs, tangents = case(name, dtype)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(inputs, tangents, strict=True)]
        found = forward_ad.unpack_dual(sb.sparse_attention(*duals, plan, backend=backend))
        expected = forward_ad.unpack_dual(sb.reference_attention(*duals, plan.mask))
        for x, e in zip(found, expected, strict=True):
            torch.testing.assert_close(x, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", OF_FP64)
@pytest.mark.parametrize("name", ["mixed", "dense"])
def test_grad_vjp_and_derivatives_of_them(name, backend):
    plan, key_mask, inputs, tangents = case(name)

    def ours(*inputs):
        return sb.sparse_attention(*inputs, plan, key_mask=key_mask, backend=backend).pow(3).sum()

    def reference(*inputs):
        return sb.reference_attention(*inputs, plan.mask, key_mask=key_mask).pow(3).sum()

    def hessian_vector(function, first, second):
        return second(first(function, argnums=(0, 1, 2)), tuple(inputs), tuple(tangents))

    def vjp(function, inputs, tangents):
        return torch.func.vjp(function, *inputs)[1](tangents)

    for second in (lambda *x: torch.func.jvp(*x)[1], vjp):  # hessian is forward over reverse
        found = hessian_vector(ours, torch.func.grad, second)
        expected = hessian_vector(reference, torch.func.grad, second)
        for x, e in zip(found, expected, strict=True):
            assert_close(x, e)
    for x, e in zip(
        torch.func.grad(ours, argnums=(0, 1, 2))(*inputs),
        torch.func.grad(reference, argnums=(0, 1, 2))(*inputs),
        strict=True,
    ):
        assert_close(x, e)


@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.3}])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in OF_FP64])
@pytest.mark.parametrize("name", PLANS)
def test_transforms_of_backends_without_fp64(name, backend, options):
    """To the bit those of the dense one, whose composed operations they take."""
    plan, key_mask, inputs, tangents = case(name, torch.float32)
    assert registry.get(backend).composes_densely

    def results(backend):
        def run(*inputs):
            torch.manual_seed(4)
            return sb.sparse_attention(
                *inputs, plan, key_mask=key_mask, backend=backend, return_lse=True, **options
            )

        def total(*inputs):
            o, lse = run(*inputs)
            return o.pow(3).sum() + lse.masked_fill(lse == -torch.inf, 0.0).sum()

        gradient = torch.func.grad(total, argnums=(0, 1, 2))
        outcomes, derivatives = torch.func.jvp(run, tuple(inputs), tuple(tangents))
        first, second = torch.func.jvp(gradient, tuple(inputs), tuple(tangents))
        return [*outcomes, *derivatives, *first, *second]

    found, expected = results(backend), results("dense")
    assert all(x.isnan().sum() == 0 for x in found)
    assert all(x.equal(e) for x, e in zip(found, expected, strict=True))


def test_hessian_of_a_few_values():
    plan, _, (q, k, v), _ = case("tiles")

    def hessian(attend, inputs):
        def run(few):
            changed = torch.cat([few, inputs[0][0, 0, 5, 2:]])
            return attend(inputs[0].index_put((*torch.tensor([[0], [0], [5]]),), changed[None]))

        return torch.func.hessian(lambda few: run(few).sin().sum())(inputs[0][0, 0, 5, :2])

    found = hessian(lambda q: sb.sparse_attention(q, k, v, plan), (q,))
    expected = hessian(lambda q: sb.reference_attention(q, k, v, plan.mask), (q,))
    assert_close(found, expected)


@pytest.mark.parametrize(("backend", "dtype"), CALLS)
@pytest.mark.parametrize("name", ["mixed", "dense"])
def test_vmap_is_a_loop(name, backend, dtype):
    """Over q and the key mask, and over gradients."""
    plan, _, (_, k, v), _ = case(name, dtype)
    q = torch.randn(3, 1, 4, 33, 4, dtype=dtype)
    key_mask = torch.rand(3, 1, 40) < 0.8

    def run(q, key_mask):
        return sb.sparse_attention(q, k, v, plan, key_mask=key_mask, backend=backend)

    def gradient(q, key_mask):
        return torch.func.grad(lambda q: run(q, key_mask).pow(2).sum())(q)

    for function in (run, gradient):
        found = torch.func.vmap(function)(q, key_mask)
        loop = torch.stack([function(*x) for x in zip(q, key_mask, strict=True)])
        torch.testing.assert_close(found, loop)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_draws_dropout_as_it_is_asked(randomness):
    plan, _, (q, k, v), _ = case("mixed")
    q = q.expand(3, *q.shape)

    def run(q):
        return sb.sparse_attention(q, k, v, plan, dropout_p=0.4)

    o = torch.func.vmap(run, randomness=randomness)(q)
    assert o[0].equal(o[1]) == (randomness == "same")
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(run)(q)


@pytest.mark.parametrize("name", ["mixed", "dense"])
def test_the_kernels_refuse_and_say_what_to_do(name):
    pytest.importorskip("triton")
    plan, _, (q, k, v), (tangent, *_) = case(name, torch.float32)

    def run(q):
        return sb.sparse_attention(q, k, v, plan, backend="triton")

    for transform in (
        lambda: torch.func.jvp(run, (q,), (tangent,)),
        lambda: torch.func.vmap(run)(q[None]),
        lambda: torch.func.grad(lambda q: run(q).sum())(q),
    ):
        told = r"use backend=.*'torch' or 'dense', or 'auto'"
        with pytest.raises(NotImplementedError, match=told):
            transform()


def test_modules():
    """By way of plans of a module's own, made inside the transform."""
    mask = sb.AttentionMask.from_dense((torch.rand(2, 20, 20) < 0.3) | torch.eye(20).bool())
    module = sb.SparseSelfAttention(16, 2, mask, backend="torch").double()
    x, tangent = torch.randn(2, 1, 20, 16, dtype=torch.float64)
    _, found = torch.func.jvp(module, (x,), (tangent,))
    step = 1e-6
    expected = (module(x + step * tangent) - module(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    per_sample = torch.func.vmap(torch.func.grad(lambda x: module(x).pow(2).sum()))(x[None])
    (whole,) = torch.autograd.grad(module(x.requires_grad_()).pow(2).sum(), x)
    torch.testing.assert_close(per_sample[0], whole)


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_sparse_models(backend, padding):
    """By way of transformers' layers, in all of them."""
    pytest.importorskip("transformers")
    from tests.attention.test_tracing import small_bert

    model = small_bert(backend).double()
    x, tangent = torch.randn(2, 2, 30, 32, dtype=torch.float64)
    real = torch.ones(2, 30, dtype=torch.long)
    if padding != "none":
        real[0, slice(20, None) if padding == "right" else slice(0, 10)] = 0

    def run(x):
        hidden = model(inputs_embeds=x, attention_mask=real).last_hidden_state
        return hidden * real[..., None]

    _, found = torch.func.jvp(run, (x,), (tangent,))
    step = 1e-6
    expected = (run(x + step * tangent) - run(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    gradient = torch.func.grad(lambda x: run(x).pow(2).sum())(x)
    (expected,) = torch.autograd.grad(run(x.requires_grad_()).pow(2).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_empty_batches():
    plan, _, inputs, _ = case("mixed", batch=0)

    def run(*inputs):
        return sb.sparse_attention(*inputs, plan)

    o, tangent = torch.func.jvp(run, tuple(inputs), tuple(inputs))
    assert o.shape == tangent.shape == (0, 4, 33, 4)
    gradients = torch.func.grad(lambda *x: run(*x).sum(), argnums=(0, 1, 2))(*inputs)
    assert [x.shape for x in gradients] == [x.shape for x in inputs]


def test_under_torch_compile():
    plan, _, (q, k, v), _ = case("tiles")

    def gradient(q):
        return torch.func.grad(lambda q: sb.sparse_attention(q, k, v, plan).pow(2).sum())(q)

    compiled = torch.compile(gradient, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q), gradient(q))


def test_dropout_of_a_seed_for_each_sample():
    """Gradients of samples with draws of their own, as in differentially private training."""
    q = torch.randn(1, 4, 33, 4)
    seeds = torch.tensor([[5], [6]])

    def gradient(seed):
        def run(q):
            factor = dropout.keep_mask(1, 4, 33, 40, 0.4, seed=seed)
            return (q.sum() * factor).sum()

        return torch.func.grad(run)(q)

    found = torch.func.vmap(gradient)(seeds)
    assert found.equal(torch.stack([gradient(seed) for seed in seeds]))
    assert not found[0].equal(found[1])
