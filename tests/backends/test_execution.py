"""Calls whose heads several backends run: whose results are whose, and in which precision."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import sparsebert as sb
from sparsebert.backends import execution, registry
from sparsebert.backends.base import Backend, Call, Forward, Gradients, Upstream
from sparsebert.backends.dense import DenseProgram
from sparsebert.backends.program import Part, make_program
from sparsebert.compiler.schedule import Schedule
from tests.attention.cases import make_key_mask, run_and_check
from tests.backends.cases import PLANS


class PickedHeads(NamedTuple):
    """The masks of all heads, empty where others run them, and which those heads are."""

    dense: DenseProgram
    others: torch.Tensor


class Picky(Backend):
    """The dense backend as one that takes the tensors of all heads."""

    name = "picky"
    Program = PickedHeads
    picks_heads = True

    def lower(self, schedule: Schedule, heads: np.ndarray) -> PickedHeads:
        dense = registry.get("dense").lower(schedule, np.ones_like(heads))
        return PickedHeads(dense, torch.from_numpy(schedule.heads_of(~heads)))

    def forward(self, call: Call, program: PickedHeads) -> Forward:
        o, lse = registry.get("dense").forward(call, program.dense)
        return o.index_fill(1, program.others, 0.0), lse.index_fill(1, program.others, -torch.inf)

    def backward(self, call: Call, program: PickedHeads, upstream: Upstream) -> Gradients:
        results = registry.get("dense").backward(call, program.dense, upstream)
        dq, dk, dv = (x.index_fill(1, program.others, 0.0) for x in results)
        return dq, dk, dv


class AlsoPicky(Picky):
    """Another one of the kind."""

    name = "also_picky"


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One such backend preferred on the CPU for either route."""
    for kind, runs in ((Picky, "tiles"), (AlsoPicky, "dense")):
        module = types.ModuleType(f"{kind.name}_module")
        module.BACKEND = kind()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        registry.register(kind.name, module.__name__, runs=runs, devices=("cpu",))  # type: ignore[arg-type]
    yield
    for kind in (Picky, AlsoPicky):
        registry.unregister(kind.name)


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize(("padding", "dropout_p"), [("none", 0.0), ("middle", 0.3)])
@pytest.mark.parametrize("name", PLANS)
def test_two_backends_that_pick_their_heads(name: str, padding: str, dropout_p: float) -> None:
    """Each leaves zeros for the other's heads, which must not stay there."""
    plan = PLANS[name]()
    q, k, v = torch.randn(2, 4, 33, 16), torch.randn(2, 2, 40, 16), torch.randn(2, 2, 40, 16)
    key_mask = make_key_mask(padding, 2, 40)
    run_and_check(
        q, k, v, plan.mask, plan, key_mask=key_mask, dropout_p=dropout_p, backends=("auto",)
    )


@pytest.mark.usefixtures("picky")
def test_gradients_of_hidden_keys_are_none_of_a_backends_business(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A backend that reads padding may leave anything there."""
    backward = Picky.backward

    def leaves_garbage(self: Picky, call: Call, *rest: Any) -> Gradients:
        dq, dk, dv = backward(self, call, *rest)
        hidden = ~call.key_mask[:, None, :, None]
        return dq, dk.masked_fill(hidden, torch.nan), dv.masked_fill(hidden, 7.0)

    monkeypatch.setattr(Picky, "backward", leaves_garbage)
    plan, key_mask = PLANS["tiles"](), make_key_mask("middle", 2, 40)
    q, k, v = torch.randn(2, 4, 33, 16), torch.randn(2, 2, 40, 16), torch.randn(2, 2, 40, 16)
    run_and_check(q, k, v, plan.mask, plan, key_mask=key_mask, dropout_p=0.0, backends=("picky",))


@pytest.mark.usefixtures("picky")
def test_plans_with_programs_of_any_backend_are_pickled() -> None:
    """Also where its class stands in another module than its `BACKEND`."""
    plan = PLANS["mixed"]()
    q, k, v = torch.randn(2, 4, 33, 16), torch.randn(2, 2, 40, 16), torch.randn(2, 2, 40, 16)
    o = sb.sparse_attention(q, k, v, plan)
    again = pickle.loads(pickle.dumps(plan))
    assert list(again.programs) == list(plan.programs) == [("picky", "also_picky")]
    assert sb.sparse_attention(q, k, v, again).equal(o)


def test_shared_key_heads_are_added_up_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 the dense heads' gradients come in bf16, those of tiles in fp32: none is rounded."""
    plan, added = PLANS["mixed"](), []
    summed = execution._summed
    monkeypatch.setattr(
        execution, "_summed", lambda x, heads: added.append(x.dtype) or summed(x, heads)
    )
    inputs = [torch.randn(2, h, n, 16).bfloat16() for h, n in ((4, 33), (2, 40), (2, 40))]
    inputs = [x.requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(sb.sparse_attention(*inputs, plan).sum(), inputs)
    assert added == [torch.float32] * 2
    assert {x.dtype for x in gradients} == {torch.bfloat16}


def test_programs_find_their_backends_by_name() -> None:
    """A name is for ever one module's, or a plan's programs would be read as another's."""
    with pytest.raises(ValueError, match="there is no backend 'gone'; register it"):
        registry.get("gone")
    part = Part(Picky(), None, PickedHeads(DenseProgram(None, None, None), torch.zeros(0)))
    with pytest.raises(ValueError, match="there is no backend 'picky'"):
        make_program((part,)).to("cpu")
    for _ in range(2):
        registry.register("once", "a_module")
        registry.unregister("once")
    with pytest.raises(ValueError, match="'once' was the backend of 'a_module' before"):
        registry.register("once", "another_module")
    assert "once" not in registry.names()
