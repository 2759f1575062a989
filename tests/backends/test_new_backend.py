"""A backend is one file and one line: the example's, held to the contract like the others."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

import sparsebert as sb
from sparsebert.backends import registry
from tests import ROOT
from tests.attention.cases import half_dense_mask, make_key_mask, random_mask, run_and_check
from tests.backends.cases import PLANS

NAME = "reference"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The example as a backend that "auto" prefers on the CPU."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    registry.register(NAME, "new_backend", devices=("cpu",))
    yield
    registry.unregister(NAME)
    sys.modules.pop("new_backend", None)


@pytest.mark.parametrize("backend", ["auto", NAME])
@pytest.mark.parametrize(
    ("kv_heads", "padding", "dropout_p", "dtype"),
    [
        (4, "none", 0.0, torch.float32),
        (2, "middle", 0.3, torch.float32),
        (1, "left", 0.0, torch.float64),
        (4, "right", 0.3, torch.float64),
    ],
)
@pytest.mark.parametrize("make_mask", [random_mask, half_dense_mask])
def test_the_contract(make_mask, kv_heads, padding, dropout_p, dtype, backend):
    mask = make_mask(4, 33, 40)
    plan = sb.compile_plan(mask, target="cpu", objective="area")
    q = torch.randn(2, 33, 4, 16, dtype=dtype).transpose(1, 2)
    k, v = (torch.randn(2, kv_heads, 40, 16, dtype=dtype) for _ in range(2))
    key_mask = make_key_mask(padding, 2, 40)
    run_and_check(q, k, v, mask, plan, key_mask=key_mask, dropout_p=dropout_p, backends=(backend,))


@pytest.mark.parametrize("name", PLANS)
def test_it_runs_the_heads_in_tiles_and_others_the_dense_ones(name, monkeypatch):
    ran = []
    backend = registry.get(NAME)
    forward = type(backend).forward
    monkeypatch.setattr(
        type(backend), "forward", lambda self, call, *rest: ran.append(call) or forward(
            self, call, *rest
        )
    )  # fmt: skip
    plan = PLANS[name]()
    q, k, v = torch.randn(2, 4, 33, 16), torch.randn(2, 2, 40, 16), torch.randn(2, 2, 40, 16)
    sb.sparse_attention(q, k, v, plan, return_lse=True)
    heads = [h for head in plan.explain().per_head if head.route == "tiles" for h in head.heads]
    assert [call.q.shape[1] for call in ran] == ([len(heads)] if heads else [])
    if ran and len(heads) < 4:
        assert ran[0].heads.tolist() == sorted(heads)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_padding_is_none_of_its_business(garbage):
    mask = random_mask(2, 33, 40)
    plan, key_mask = sb.compile_plan(mask, target="cpu"), make_key_mask("middle", 2, 40)
    q, k, v = torch.randn(2, 2, 33, 8), torch.randn(2, 2, 40, 8), torch.randn(2, 2, 40, 8)
    hidden = ~key_mask[:, None, :, None]

    def run(*inputs):
        inputs = [x.clone().requires_grad_() for x in inputs]
        o = sb.sparse_attention(*inputs, plan, key_mask=key_mask, backend=NAME)
        return [o, *torch.autograd.grad(o.square().sum(), inputs)]

    clean = run(q, k, v)
    for x, y in zip(clean, run(q, *(x.masked_fill(hidden, garbage) for x in (k, v))), strict=True):
        assert x.equal(y)


def test_it_compiles_and_says_what_it_cannot_do():
    mask = random_mask(2, 33, 40)
    plan = sb.compile_plan(mask, target="cpu")
    inputs = [torch.randn(1, 2, n, 8, requires_grad=True) for n in (33, 40, 40)]

    def run(*inputs):
        return sb.sparse_attention(*inputs, plan, backend=NAME)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for x, y in zip(
        torch.autograd.grad(compiled(*inputs).sum(), inputs),
        torch.autograd.grad(run(*inputs).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(x, y)
    with pytest.raises(ValueError, match=r"'reference' takes fp32 and fp64, got torch.bfloat16; .*"
                       r"use backend=.*'torch' or 'dense', or 'auto'"):  # fmt: skip
        sb.sparse_attention(*(x.bfloat16() for x in inputs), plan, backend=NAME)
    with pytest.raises(NotImplementedError, match=r"'reference' has no rules for torch\.func"):
        torch.func.vmap(lambda q: sb.sparse_attention(q, *inputs[1:], plan, backend=NAME))(
            inputs[0][None]
        )
    # What "auto" prefers but cannot use gives way to the next.
    o = sb.sparse_attention(*(x.bfloat16() for x in inputs), plan)
    assert o.dtype == torch.bfloat16


def test_modules_and_models_take_it():
    transformers = pytest.importorskip("transformers")
    mask = sb.patterns.longformer(64)
    module = sb.SparseSelfAttention(16, 2, mask, backend=NAME)
    assert module(torch.randn(2, 40, 16)).shape == (2, 40, 16)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        vocab_size=50, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    ids = torch.randint(50, (2, 48))
    hidden = [
        sb.sparsify(model, mask, backend=backend)(ids).last_hidden_state
        for backend in (NAME, "dense")
    ]
    torch.testing.assert_close(*hidden)


def test_names_are_taken_once():
    for name in ("auto", "dense", NAME):
        with pytest.raises(ValueError, match=f"there is a backend '{name}' already"):
            registry.register(name, "new_backend")
    with pytest.raises(ValueError, match=r"one of .*'reference'.* got 'referense'"):
        sb.sparse_attention(*torch.randn(3, 1, 1, 4, 8), sb.patterns.star(4), backend="referense")


def test_what_cannot_be_a_backend_is_refused():
    for name in ("a+b", "my-backend", "", 3):
        with pytest.raises(ValueError, match=r"register: name must be an identifier.*, got "):
            registry.register(name, "new_backend")
    with pytest.raises(ValueError, match=r"runs must be one of \('tiles', 'dense'\), got 'both'"):
        registry.register("mine", "new_backend", runs="both")
    registry.register("mine", "new_backend")
    try:
        inputs = torch.randn(3, 1, 1, 4, 8)
        with pytest.raises(ValueError, match=r"'mine': new_backend\.BACKEND calls itself 'ref"):
            sb.sparse_attention(*inputs, sb.patterns.star(4), backend="mine")
    finally:
        registry.unregister("mine")


def test_no_backend_for_a_call_tells_each_ones_reason(monkeypatch):
    plan = sb.compile_plan(random_mask(2, 33, 40), target="cpu", objective="area")
    others = [name for name in registry.preferred("tiles", "cpu") if name != NAME]
    for name in others:
        backend = type(registry.get(name))
        monkeypatch.setattr(backend, "refuses", lambda self, kind: ["is on holiday"])
    inputs = [torch.randn(1, 2, n, 8).bfloat16() for n in (33, 40, 40)]
    told = (
        r"no backend can run this call; 'reference' takes fp32 and fp64, got torch\.bfloat16; "
        "convert the tensors" + "".join(f"; '{name}' is on holiday" for name in others)
    )
    assert others
    with pytest.raises(ValueError, match=told):
        sb.sparse_attention(*inputs, plan)


def test_the_example_runs(capsys):
    registry.unregister(NAME)
    importlib.import_module("new_backend").main()
    assert float(capsys.readouterr().out.split(":")[1]) < 1e-5
