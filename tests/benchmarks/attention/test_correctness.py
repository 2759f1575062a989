"""What may be timed, and what must not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.attention import (
    inputs,
)
from sparsebert.api import sparse_attention
from tests.benchmarks.attention.tiny import TINY, ready


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("padding", [0.0, 0.25])
def test_the_check_lets_us_pass(dtype: str, dropout: float, padding: float) -> None:
    case = dataclasses.replace(TINY, dtype=dtype, dropout=dropout, padding=padding)
    setup, check = ready(case)

    def ours(*qkv: torch.Tensor) -> torch.Tensor:
        return sparse_attention(*qkv, setup.plan, key_mask=setup.key_mask, dropout_p=dropout)

    assert check.refusal(ours) == ""


@pytest.mark.parametrize(
    "wrong",
    [
        lambda q, k, v, plan: sparse_attention(q, k, v, plan) * 1.01,
        lambda q, k, v, plan: sparse_attention(q, k, v, plan) * float("nan"),
        lambda q, k, v, plan: sparse_attention(q, k.detach(), v, plan) + 0.0 * k,
        lambda q, k, v, plan: torch.nn.functional.scaled_dot_product_attention(q, k, v),
    ],
    ids=["scaled", "nan", "no gradient of k", "no mask"],
)
def test_the_check_stops_wrong_results(wrong: object) -> None:
    setup, check = ready(TINY)
    assert callable(wrong)
    assert check.refusal(lambda q, k, v: wrong(q, k, v, setup.plan)).startswith("WRONG")


def test_one_sample_is_padded_at_its_right_end() -> None:
    case = dataclasses.replace(TINY, batch=1, length=400, padding=0.5)
    key_mask = inputs.key_mask_of(case, "cpu")
    assert key_mask is not None
    assert key_mask[0, :200].all() and not key_mask[0, 200:].any()


def test_padding_is_the_share_asked_for_on_average() -> None:
    case = dataclasses.replace(TINY, batch=5, length=400, padding=0.25)
    key_mask = inputs.key_mask_of(case, "cpu")
    assert key_mask is not None
    assert key_mask.float().mean().item() == pytest.approx(0.75)
    assert key_mask.any(dim=1).all()
