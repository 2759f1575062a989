"""The plans of a model's mask: for which machine and calls; rows for steps with cached keys."""

from __future__ import annotations

import pickle

import pytest
import torch

from sparsebert import patterns, sparse_attention
from sparsebert.backends import registry
from sparsebert.compiler import compile as compile_module
from sparsebert.mask_plans import MaskPlans, plan_for, rows_for
from sparsebert.masks import AttentionMask
from sparsebert.plan import compile_for
from tests.attention.cases import BACKENDS

CPU = torch.device("cpu")


def test_plans_are_for_the_device_and_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU's calls on a machine with a GPU are planned for the CPU, and the other way round."""
    monkeypatch.setattr(compile_module, "machine_target", lambda: "sm90")
    mask = patterns.star(96)
    on_cpu = compile_for(mask, CPU, 48, 5)
    assert (on_cpu.target, on_cpu.report.head_dim, on_cpu.report.copies) == ("cpu", 48, 5)
    on_gpu = compile_for(mask, torch.device("cuda", 0), 48, 5)
    assert (on_gpu.target, on_gpu.report.head_dim) == ("sm90", 48)
    assert on_gpu.device == CPU  # not moved yet


def test_rows_are_those_of_the_mask() -> None:
    mask = AttentionMask.stack_heads([patterns.random(40, 0.4, seed=s) for s in range(3)])
    plans, dense = MaskPlans(mask), mask.dense()[0]
    for start, count, keys in ((0, 1, 1), (39, 1, 40), (7, 5, 12), (16, 8, 33)):
        wanted = dense[:, start : start + count, :keys]
        assert plans.rows(start, count, keys, CPU).equal(wanted)
        assert rows_for(plans, start, count, keys, CPU).equal(wanted)


def test_plans_are_made_for_each_length_and_kind_of_call_once() -> None:
    plans = MaskPlans(patterns.sliding_window(64, 3))
    plan = plan_for(plans, 40, 40, CPU)
    assert plans.get(40, 40, CPU) is plan
    inputs = torch.randn(3, 1, 2, 40, 8)
    named = [name for name in BACKENDS if name != registry.AUTO]
    for backend in named * 2:  # whose programs stand beside each other
        sparse_attention(*inputs, plans.get(40, 40, CPU), backend=backend)
    assert {(name, name) for name in named} <= set(plan.programs)
    others = [
        plans.get(40, 41, CPU),
        plans.get(41, 40, CPU),
        plans.get(40, 40, CPU, head_dim=32),
        plans.get(40, 40, CPU, heads=7),
    ]
    assert len({id(each) for each in (plan, *others)}) == 5
    assert [(each.q_len, each.kv_len) for each in others[:2]] == [(40, 41), (41, 40)]


def test_pickles_hold_the_mask_alone() -> None:
    plans = MaskPlans(patterns.star(64))
    empty = len(pickle.dumps(plans))
    plans.get(50, 50, CPU)
    assert len(pickle.dumps(plans)) == empty
    assert pickle.loads(pickle.dumps(plans)).get(50, 50, CPU).q_len == 50
