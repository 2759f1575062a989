"""Nothing is left on the CPU: every public function that takes tensors, on another device.

Without a GPU on the meta device, watched for operations whose operands lie on two devices (torch
itself lets some of these pass there).
"""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sparsebert as sb
from sparsebert import dropout
from sparsebert.backends import dense, execution, routing
from sparsebert.backends.base import Backend, Call, Upstream
from sparsebert.backends.dense import DenseProgram
from sparsebert.backends.program import Part
from tests.backends.cases import OPTIONS, PLANS, ROUTES

DEVICES = ["meta", pytest.param("cuda", marks=pytest.mark.gpu)]


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices; copies and single numbers may cross."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.dim() > 0}
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        assert copies or len(devices) <= 1, f"{func} on {devices}"
        return func(*args, **kwargs or {})


def test_the_watch_itself():
    x, index = torch.empty(3, 4, device="meta"), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(AssertionError, match="index_select"), OneDevice():
        x.index_select(0, index)


def make(device, *shape, dtype=torch.float32):
    x = torch.zeros(shape, dtype=dtype, device=device)
    return x.requires_grad_() if dtype.is_floating_point else x


def check_on(device, *results):
    assert {x.device.type for x in results} == {device}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", PLANS)
def test_sparse_attention(name, options, device):
    plan = PLANS[name]().to(device)
    q, k, v = (make(device, 2, h, n, 16) for h, n in ((4, 33), (2, 40), (2, 40)))
    given = dict(OPTIONS[options])
    if "key_mask" in given:
        given["key_mask"] = make(device, 2, 40, dtype=torch.bool)
    backends = ["auto", "torch", "dense"] + (["triton"] if device == "cuda" else [])
    for backend in backends:
        with OneDevice():
            result = sb.sparse_attention(q, k, v, plan, backend=backend, **given)
            o, *rest = result if isinstance(result, tuple) else (result,)
            check_on(device, o, *rest, *torch.autograd.grad(o.sum(), (q, k, v)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", PLANS)
def test_what_the_ops_run(name, device):
    """The meta device does not look into them."""
    plan = PLANS[name]().to(device)
    q, k, v = (make(device, 2, h, n, 16).detach() for h, n in ((4, 33), (2, 40), (2, 40)))
    key_mask = make(device, 2, 40, dtype=torch.bool)
    calls = ((None, None, 0.0), (key_mask, dropout.draw_seed(device), 0.3))
    for backend, (hidden, seed, p) in itertools.product(("auto", "torch", "dense"), calls):
        routes = routing.choose(backend, device, torch.float32, 16, False)
        parts = plan.program_for(*routes).parts
        call = Call(q, k, v, hidden, seed, 0.25, p)
        with OneDevice():
            o, lse = execution.forward(call, parts)
            composed = execution.compose(call, parts)
            gradients = execution.backward(call, parts, Upstream(o, lse, o, lse))
        check_on(device, o, lse, *composed, *gradients)
    (part,) = plan.program_for(*ROUTES["dense"]).parts
    unused = torch.zeros(4, 40, dtype=torch.bool, device=device)
    program = part.program._replace(unused=unused, dead=None)
    with OneDevice():
        o = dense.BACKEND.direct(Call(q, k, v, key_mask, None, 0.25, 0.0), program)
    check_on(device, o)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padded", [False, True])
def test_reference_attention(padded, device):
    """Masks lie on the CPU, as do those that users make, whatever the tensors do."""
    q, k, v = (make(device, 2, h, 33, 16) for h in (4, 2, 2))
    key_mask = make(device, 2, 33, dtype=torch.bool) if padded else None
    mask = sb.patterns.star(33)
    for given in (mask, mask.dense()[0]):
        o, lse = sb.reference_attention(q, k, v, given, key_mask=key_mask, return_lse=True)
        check_on(device, o, lse, *torch.autograd.grad(o.sum(), (q, k, v)))
        keep = dropout.keep_mask(2, 4, 33, 33, 0.3, device=device)
        with_dropout = sb.reference_attention(
            q, k, v, given, key_mask=key_mask, keep_mask=keep, dropout_p=0.3
        )
        check_on(device, keep, with_dropout)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", "torch", "dense"])
def test_modules(backend, device):
    module = sb.SparseSelfAttention(
        16, 2, sb.patterns.star(33), dropout=0.1, backend=backend, device=device
    )
    x, padding = make(device, 2, 30, 16), make(device, 2, 30, dtype=torch.bool)
    with OneDevice():
        check_on(device, module(x), module(x, key_padding_mask=padding))
        check_on(device, *torch.autograd.grad(module(x).sum(), list(module.parameters())))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("structure", ["full", "toeplitz", "block"])
def test_learned_masks(structure, device):
    block_size = 8 if structure == "block" else None
    dam = sb.DifferentiableAttentionMask(2, 4, 32, structure=structure, block_size=block_size)
    dam = dam.to(device)
    with OneDevice():
        sample = dam.sample()
        penalties = [dam.penalty(kind=kind) for kind in ("expected_l1", "executed_area")]
        penalties.append(dam.penalty(kind="l1", sample=sample))
        check_on(device, dam.probabilities(), sample, *penalties)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("need_weights", [False, True])
def test_models(need_weights, device):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        vocab_size=50, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False)
    model = sb.sparsify(model, sb.patterns.longformer(64)).to(device)
    ids, padding = (make(device, 2, 48, dtype=torch.int64) for _ in range(2))
    with OneDevice():
        result = model(ids, attention_mask=padding, output_attentions=need_weights)
    check_on(device, result.last_hidden_state, *(result.attentions or ()))


class Counted(TorchDispatchMode):
    """The operations that a GPU would launch something for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "empty" not in func.name():
            self.names.append(func.name().removeprefix("aten::"))
        return func(*args, **kwargs or {})


class Kernels(Backend):
    """Stands for kernels that do everything themselves; what is counted is around them."""

    name = "kernels"
    Program = DenseProgram

    def __init__(self, skips_padding):
        self.skips_padding = skips_padding

    def lower(self, schedule, heads):
        raise NotImplementedError

    def forward(self, call, program):
        batch, heads, rows, dim = call.q.shape
        lse = call.q.new_empty(batch, heads, rows)
        return call.q.new_empty(batch, rows, heads, dim).transpose(1, 2), lse

    def backward(self, call, program, upstream):
        return tuple(self.forward(call._replace(q=x), None)[0] for x in (call.q, call.k, call.v))

    def direct(self, call, program):
        return self.forward(call, None)[0]


@pytest.mark.parametrize(
    ("skips_padding", "around_forward", "around_backward"),
    [
        (True, [], ["eq", "masked_fill", "masked_fill"]),
        (
            False,
            ["bitwise_not", "masked_fill", "masked_fill"],
            ["eq", *["masked_fill"] * 2, *["bitwise_not", "masked_fill", "masked_fill"] * 2],
        ),
    ],
)
def test_no_launch_is_wasted_around_a_backend(skips_padding, around_forward, around_backward):
    """On a GPU nothing is read, so a key mask costs what applies it alone."""
    q, k, v = (make("meta", 2, n, 4, 16).detach().transpose(1, 2) for n in (33, 40, 40))
    key_mask = make("meta", 2, 40, dtype=torch.bool)
    parts = (Part(Kernels(skips_padding), None, None),)
    for mask, forward, backward in (
        (None, [], []),
        (key_mask, around_forward, around_backward),
    ):
        call = Call(q, k, v, mask, None, 0.25, 0.0)
        with Counted() as counted:
            o, lse = execution.forward(call, parts)
        assert [name.split(".")[0] for name in counted.names] == forward
        with Counted() as counted:
            execution.backward(call, parts, Upstream(o, lse, o, None))
        assert [name.split(".")[0] for name in counted.names] == backward


def test_padding_is_hidden_in_the_heads_that_run_alone():
    """And not in those of all others, too."""
    q, k, v = (make("meta", 2, n, 4, 16).detach().transpose(1, 2) for n in (33, 40, 40))
    heads = torch.tensor([2], device="meta")
    call = Call(q, k, v, make("meta", 2, 40, dtype=torch.bool), None, 0.25, 0.0)
    with Counted() as counted:
        execution.run_directly(call, Part(Kernels(False), heads, None))
    names = [name.split(".")[0] for name in counted.names]
    assert names == ["index_select"] * 3 + ["bitwise_not", "masked_fill", "masked_fill"]
