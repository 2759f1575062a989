"""Plans under tracing: exports, traces, fake tensors and transforms leave nothing in them."""

import contextlib
import io
import zlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import sparsebert as sb
from sparsebert.backends import routing
from sparsebert.plan import AttentionPlan
from tests.attention.cases import BACKENDS
from tests.backends.cases import PLANS, ROUTES

transformers = pytest.importorskip("transformers")


def tensors(plan):
    return [x for program in plan.programs.values() for x in program.tensors]


def new_mask(*names):
    """One that no cache knows, of the test with these names."""
    generator = torch.Generator().manual_seed(zlib.crc32("-".join(names).encode()))
    return sb.AttentionMask.from_dense(torch.rand(4, 33, 40, generator=generator) < 0.2)


def fake_mode(run):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        run(*(mode.from_tensor(torch.randn(1, 4, n, 16)) for n in (33, 40, 40)))


def exported(run):
    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return run(q, k, v)

    inputs = tuple(torch.randn(1, 4, n, 16) for n in (33, 40, 40))
    torch.export.export(Module(), inputs, strict=False)


def traced_by_fx(run):
    make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(
        *(torch.randn(1, 4, n, 16) for n in (33, 40, 40))
    )


def differentiated(run):
    q, k, v = (torch.randn(1, 4, n, 16) for n in (33, 40, 40))
    torch.func.grad(lambda q: run(q, k, v).sum())(q)


def batched(run):
    torch.func.vmap(run)(*(torch.randn(2, 1, 4, n, 16) for n in (33, 40, 40)))


def on_another_default_device(run):
    inputs = [torch.randn(1, 4, n, 16) for n in (33, 40, 40)]
    with torch.device("meta"):
        run(*inputs)


def in_inference_mode(run):
    inputs = [torch.randn(1, 4, n, 16) for n in (33, 40, 40)]
    with torch.inference_mode():
        run(*inputs)


FIRST_USES = (
    fake_mode, exported, traced_by_fx, differentiated, batched, on_another_default_device,
    in_inference_mode,
)  # fmt: skip


@pytest.mark.parametrize("backend", [*BACKENDS, "triton"])
@pytest.mark.parametrize("first_use", FIRST_USES, ids=lambda f: f.__name__)
def test_what_is_made_while_torch_is_watched_is_real(first_use, backend):
    """By way of a mask, so that the plan and the programs are all made there."""
    mask = new_mask("plan", first_use.__name__, backend)
    plans = []

    def run(q, k, v):
        plan = sb.compile_plan(mask, target="cpu", objective="area")
        plans.append(plan)
        plan.crop(20, 30).program_for(*ROUTES[backend])
        return sb.sparse_attention(q, k, v, plan, backend=backend)

    transformed = first_use in (differentiated, batched)
    refused, runs = contextlib.nullcontext(), not (backend == "triton" and transformed)
    if not runs:
        refused = pytest.raises(NotImplementedError, match=r"use backend=.*'torch' or 'dense'")
    with refused:
        first_use(run)
    plan = sb.compile_plan(mask, target="cpu", objective="area")
    assert plan is plans[0]  # it is what everybody gets
    if runs:
        assert routing.choose(backend, "cpu", torch.float32, 16, transformed) in plan.programs
    for x in tensors(plan):
        assert type(x) is torch.Tensor
        assert x.device.type == "cpu"
        assert not (x.is_inference() or torch._C._functorch.is_functorch_wrapped_tensor(x))

    inputs = [torch.randn(1, 4, n, 16, requires_grad=True) for n in (33, 40, 40)]
    o = sb.sparse_attention(*inputs, plan, backend=backend)
    expected = sb.reference_attention(*inputs, mask)
    torch.testing.assert_close(o, expected)
    for a, b in zip(
        torch.autograd.grad(o.sum(), inputs),
        torch.autograd.grad(expected.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("first_use", [fake_mode, exported], ids=lambda f: f.__name__)
def test_a_mask_compiled_while_torch_is_watched(first_use):
    """The plans that `sparse_attention` remembers for masks."""
    mask = new_mask("mask", first_use.__name__)
    first_use(lambda q, k, v: sb.sparse_attention(q, k, v, mask))
    q, k, v = (torch.randn(1, 4, n, 16) for n in (33, 40, 40))
    o = sb.sparse_attention(q, k, v, mask)
    torch.testing.assert_close(o, sb.reference_attention(q, k, v, mask))


def test_a_plan_moved_while_torch_is_watched():
    plan = sb.compile_plan(new_mask("crop"), target="cpu")
    with FakeTensorMode():
        moved = plan.to("meta")
    assert all(type(x) is torch.Tensor and x.is_meta for x in tensors(moved))


def small_bert(backend):
    torch.manual_seed(1)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        vocab_size=50, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    dense = (torch.rand(2, 2, 64, 64) < 0.1) | torch.eye(64, dtype=torch.bool)
    return sb.sparsify(model, sb.AttentionMask.from_dense(dense), backend=backend)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_sparse_model_is_exported_before_any_call(strict, backend):
    padding = torch.ones(2, 48, dtype=torch.long)
    padding[0, 40:] = 0
    inputs = {"input_ids": torch.randint(0, 50, (2, 48)), "attention_mask": padding}
    model = small_bert(backend)
    exported = torch.export.export(model, (), inputs, strict=strict)
    expected = small_bert(backend)(**inputs).last_hidden_state
    assert exported.module()(**inputs).last_hidden_state.equal(expected)
    assert model(**inputs).last_hidden_state.equal(expected)


class Attention(torch.nn.Module):
    def __init__(self, plan: AttentionPlan, backend: str = "auto") -> None:
        super().__init__()
        self.plan, self.backend = plan, backend

    def forward(self, q, k, v, key_mask=None):
        return sb.sparse_attention(q, k, v, self.plan, key_mask=key_mask, backend=self.backend)


@pytest.mark.parametrize("name", ["tiles", "mixed", "dense"])
@pytest.mark.parametrize("with_key_mask", [False, True])
def test_exports_can_be_saved_and_loaded(name, with_key_mask):
    inputs = [torch.randn(2, h, n, 16) for h, n in ((4, 33), (2, 40), (2, 40))]
    inputs += [torch.rand(2, 40) < 0.8] if with_key_mask else []
    module = Attention(PLANS[name]())
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, tuple(inputs)), file)
    file.seek(0)
    assert torch.export.load(file).module()(*inputs).equal(module(*inputs))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["tiles", "mixed", "dense"])
def test_traces_run_and_can_be_saved(name):
    """Also with another key mask than the one they were traced with, which hid nothing."""
    q, k, v = (torch.randn(2, h, n, 16) for h, n in ((4, 33), (2, 40), (2, 40)))
    module = Attention(PLANS[name]())
    key_mask = torch.ones(2, 40, dtype=torch.bool)
    traced = torch.jit.trace(module, (q, k, v, key_mask))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    traced = torch.jit.load(file)
    key_mask[0, 30:] = False
    assert traced(q, k, v, key_mask).equal(module(q, k, v, key_mask))
    assert torch.jit.trace(module, (q, k, v))(q, k, v).equal(module(q, k, v))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("what", ["mask", "module", "model"])
def test_traces_compile_the_masks_that_they_meet(what):
    """Sizes are tensors while torch.jit.trace looks on, and plans are found by sizes."""
    mask = sb.AttentionMask.from_dense(torch.rand(50, 50) < 0.3)
    if what == "mask":
        inputs = tuple(torch.randn(3, 2, 4, 50, 16))
        run = lambda q, k, v: sb.sparse_attention(q, k, v, mask)  # noqa: E731
    elif what == "module":
        inputs, run = (torch.randn(2, 50, 16),), sb.SparseSelfAttention(16, 4, mask)
    else:
        inputs, model = (torch.randint(50, (2, 30)),), small_bert("auto")
        model.requires_grad_(False)  # a constant of the trace
        run = lambda ids: model(ids).last_hidden_state  # noqa: E731
    with torch.no_grad():
        traced = torch.jit.trace(run, inputs, check_trace=False)
        torch.testing.assert_close(traced(*inputs), run(*inputs))


def test_a_compiled_call_refuses_as_others_do(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    plan, inputs = PLANS["mixed"](), [torch.randn(2, h, n, 16) for h, n in ((4, 33), (2, 40))]
    run = torch.compile(
        lambda q, k: sb.sparse_attention(q, k, k, plan, backend="triton"), backend="eager"
    )
    with pytest.raises(ValueError, match="sparse_attention: backend 'triton' needs"):
        run(*inputs)
