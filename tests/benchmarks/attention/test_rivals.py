"""Who is timed: refusals, FlexAttention's formulas, and that all compute the same."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from benchmarks.attention import (
    flex_rivals,
    rivals,
)
from benchmarks.attention.cases import DEVICES, FORWARD, select
from benchmarks.harness import named_masks
from sparsebert.backends import native
from sparsebert.kernels.cpu.library import load
from sparsebert.masks import AttentionMask
from tests.benchmarks.attention.tiny import TINY, ready


@pytest.mark.parametrize("device", DEVICES)
def test_every_rival_says_yes_or_why_not(device: str) -> None:
    refused = {}
    for rival in rivals.rivals_on(device):
        for case in select(device):
            why = rival.refusal(case, device)
            assert why == why.strip()
            refused.setdefault(rival.name, set()).add(why)
    assert refused[rivals.OURS] == {""}
    assert refused[rivals.SDPA_MASK] == {""}
    assert "has no dropout" in refused[rivals.FLEX]
    assert all("" in reasons for reasons in refused.values())


def test_flex_refuses_training_on_the_cpu_only() -> None:
    assert "backward" in flex_rivals.refusal(TINY, "cpu")
    assert flex_rivals.refusal(TINY, "cuda") == ""


@pytest.mark.parametrize("name", flex_rivals.FORMULAS)
def test_a_formula_is_the_pattern(name: str) -> None:
    mask = named_masks.build(name, 150, heads=1)
    assert AttentionMask.from_mask_mod(flex_rivals.formula(mask), 1, 150, 150) == mask


@pytest.mark.parametrize(
    ("name", "padding"),
    [
        *itertools.product(
            (rivals.SDPA_MASK, rivals.EAGER, rivals.FLEX, rivals.EXECUTOR), (0.0, 0.25)
        ),
        (rivals.FLEX_FORMULA, 0.0),
    ],
)
def test_masked_rivals_compute_what_we_compute(
    name: str, padding: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlexAttention runs eager here; compiling takes long and is torch's matter."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(flex_rivals, "compiled", lambda: flex_attention)
    case = dataclasses.replace(TINY, direction=FORWARD, padding=padding)
    setup, check = ready(case)
    rival = next(rival for rival in rivals.RIVALS if rival.name == name)
    contender = rival.prepare(setup)
    assert check.refusal(contender.attention, stores_scores=contender.stores_scores) == ""


@pytest.mark.parametrize("mask", ["longformer", "dense"])
def test_the_executor_is_no_native_kernel(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though "auto" prefers these: our own contender fails where they do, the rival does not."""

    def broken(*_: object) -> None:
        raise AssertionError("the native kernels ran")

    monkeypatch.setattr(native.Native, "forward", broken)
    case = dataclasses.replace(TINY, mask=mask, direction=FORWARD)
    setup, check = ready(case)
    contenders = {rival.name: rival for rival in rivals.RIVALS}
    attention = contenders[rivals.EXECUTOR].prepare(setup).attention
    assert check.refusal(attention) == ""
    if load().isa and not setup.plan.dense_heads.any():
        with pytest.raises(AssertionError, match="native kernels ran"):
            contenders[rivals.OURS].prepare(setup).attention(*setup.example)
