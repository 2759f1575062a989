"""The attention and the mask function called by hand: what no ordinary forward reaches."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.masking_utils import chunked_causal_mask_function, sdpa_mask

import sparsebert as sb
from sparsebert.integrations.huggingface.attached import layer_of, sparse_modules
from sparsebert.integrations.huggingface.attention import sparsebert_attention
from sparsebert.integrations.huggingface.model_rules import CAUSAL, read_mask, sparsebert_mask
from tests.huggingface.models import (
    LENGTH,
    MASK_LENGTH,
    assert_equal_in_fp64,
    build,
    random_masks,
)

LOWEST = torch.finfo(torch.float64).min


def one_module() -> tuple[nn.Module, torch.Tensor]:
    """A sparse attention module, and its mask [H, LENGTH, LENGTH]."""
    model = build("bert")
    masks = random_masks(model)
    sb.sparsify(model, masks)
    return sparse_modules(model)[0], masks[0, :, :LENGTH, :LENGTH]


def qkv(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 2, 4, LENGTH, 8, generator=generator, dtype=torch.float64).to(dtype)


def softmax_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Written out; [B, N, H, D] as transformers wants it."""
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias).masked_fill(
        ~allowed, -torch.inf
    )
    return (scores.softmax(-1).nan_to_num(0.0) @ v).transpose(1, 2)


def test_queries_of_another_number_than_keys_need_a_causal_module() -> None:
    module, mask = one_module()
    q, k, v = qkv()
    with pytest.raises(ValueError, match=r"got 5 queries and 20 keys.*not clear which rows"):
        sparsebert_attention(module, q[:, :, :5], k, v, None)
    got, _ = sparsebert_attention(module, q[:, :, -5:], k, v, None, is_causal=True)
    causal = mask & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    expected = softmax_attention(q, k, v, causal, torch.zeros(()).double())
    assert_equal_in_fp64(got, expected[:, -5:])


@pytest.mark.parametrize("weights", [False, True])
def test_queries_and_keys_follow_the_precision_of_the_values(weights: bool) -> None:
    """Under autocast, rotary embeddings leave them in fp32."""
    module, _ = one_module()
    q, k, v = qkv(torch.float32)
    settings = {"is_causal": False, "output_attentions": weights}
    low = [x.bfloat16() for x in (q, k, v)]
    got, _ = sparsebert_attention(module, q, k, low[2], None, **settings)
    expected, _ = sparsebert_attention(module, *low, None, **settings)
    assert got.dtype == torch.bfloat16 and got.equal(expected)


def test_one_layer_under_several_rules() -> None:
    """A module that several layers share, or that serves a causal and a plain call."""
    module, mask = one_module()
    layer = layer_of(module)
    band = sb.patterns.sliding_window
    rules = {None: layer.mask, CAUSAL: layer.mask & sb.patterns.causal(MASK_LENGTH)}
    rules |= {w: layer.mask & band(MASK_LENGTH, w) for w in (2, 5)}
    for _ in range(2):
        for rule, expected in rules.items():
            assert layer.under(rule).mask == expected
    q, k, v = qkv()
    none = torch.zeros(()).double()
    triangle = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    for causal in (False, True, False):
        got, _ = sparsebert_attention(module, q, k, v, None, is_causal=causal)
        allowed = mask & triangle if causal else mask
        assert_equal_in_fp64(got, softmax_attention(q, k, v, allowed, none))


def test_chunks_are_no_window() -> None:
    """Chunked attention gives a local size too, but promises no window."""
    rule = chunked_causal_mask_function(6, torch.zeros(2, dtype=torch.long))
    settings = {"batch_size": 2, "q_length": LENGTH, "kv_length": LENGTH, "mask_function": rule}
    given = sparsebert_mask(**settings, local_size=6, allow_is_causal_skip=True)
    read = read_mask(given, True, LENGTH, LENGTH)
    assert read.rule is None and read.key_mask is None and read.full_mask is not None
    expected = sdpa_mask(**settings, allow_is_causal_skip=False)
    assert read.full_mask.equal(expected.expand_as(read.full_mask))


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("forbidden", [LOWEST, -torch.inf])
def test_an_additive_mask_that_leaves_a_row_nothing(weights: bool, forbidden: float) -> None:
    module, mask = one_module()
    q, k, v = qkv().requires_grad_()
    additive = torch.zeros(2, 1, LENGTH, LENGTH, dtype=torch.float64)
    additive[0, :, 7] = forbidden
    additive[1, :, :, 3] = forbidden
    additive[1, :, 4, 4] = -2.5  # and a bias, which is none
    got, _ = sparsebert_attention(module, q, k, v, additive, output_attentions=weights)
    assert not got[0, 7].any()
    bias = additive.masked_fill(additive < -10, 0.0)
    expected = softmax_attention(q, k, v, mask & (additive >= -10), bias)
    assert_equal_in_fp64(got, expected)
    for gradient in torch.autograd.grad(got.sum(), (q, k, v)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", ["additive", "bool", "none"])
def test_a_position_bias_beside_a_mask(kind: str) -> None:
    module, mask = one_module()
    q, k, v = qkv()
    bias = torch.randn(1, 4, LENGTH, LENGTH, dtype=torch.float64)
    allowed = torch.rand(2, 1, LENGTH, LENGTH) < 0.7
    slope = torch.linspace(-1, 0, LENGTH, dtype=torch.float64).expand(2, 1, LENGTH, -1)
    given, summed = None, bias
    if kind == "additive":
        given, summed = slope.masked_fill(~allowed, LOWEST), bias + slope
    if kind == "bool":
        given = allowed
    allowed = mask if given is None else mask & allowed
    got, _ = sparsebert_attention(module, q, k, v, given, position_bias=bias, is_causal=False)
    assert_equal_in_fp64(got, softmax_attention(q, k, v, allowed, summed))


def test_an_additive_padding_mask_is_not_taken_the_wrong_way_round() -> None:
    module, _ = one_module()
    additive = torch.zeros(2, LENGTH).masked_fill(torch.arange(LENGTH) > 15, -torch.inf)
    for weights in (False, True):
        with pytest.raises(ValueError, match=r"must be bool, .* write attention_mask == 0"):
            sparsebert_attention(module, *qkv(), additive, output_attentions=weights)


@pytest.mark.parametrize("additive", [LOWEST, -torch.inf, -10000.0, None])
@pytest.mark.parametrize("weights", [True, False])
def test_padding_in_four_dimensions_is_padding(additive: float | None, weights: bool) -> None:
    """As LayoutLM makes it, on the left too; and MarkupLM, with -10000."""
    module, mask = one_module()
    q, k, v = qkv()
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[0, :6] = real[1, -3:] = False
    given = real[:, None, None, :]
    if additive is not None:
        given = torch.zeros(given.shape, dtype=torch.float64).masked_fill(~given, additive)
    settings = {"is_causal": False, "output_attentions": weights}
    got, _ = sparsebert_attention(module, q, k, v, given, **settings)
    expected, _ = sparsebert_attention(module, q, k, v, real, **settings)
    assert_equal_in_fp64(got[real], expected[real])
    none = torch.zeros(()).double()
    alone = softmax_attention(
        *(x[:1, :, 6:] for x in (q, k, v)), mask[:, : LENGTH - 6, : LENGTH - 6], none
    )
    assert_equal_in_fp64(got[:1, 6:], alone)


def test_queries_that_a_model_drops_are_the_first() -> None:
    """Gemma 4 asks its upper layers for the last tokens alone, under a mask for all."""
    module, _ = one_module()
    q, k, v = qkv()
    rule = chunked_causal_mask_function(6, torch.zeros(2, dtype=torch.long))
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[1, :3] = False
    for padding in (None, real):
        given = sparsebert_mask(2, LENGTH, LENGTH, mask_function=rule, attention_mask=padding)
        expected, _ = sparsebert_attention(module, q, k, v, given, is_causal=True)
        assert read_mask(given, True, LENGTH, LENGTH).full_mask is not None
        for queries in (1, 4):
            last = q[:, :, -queries:]
            got, _ = sparsebert_attention(module, last, k, v, given, is_causal=True)
            assert got.shape == (2, queries, 4, 8)
            assert_equal_in_fp64(got, expected[:, -queries:])


def test_a_four_dimensional_mask_of_one_query_is_no_padding() -> None:
    """A step with cached keys: what it hides says nothing of where the sequence begins."""
    module, mask = one_module()
    q, k, v = qkv()
    given = torch.ones(2, 1, 1, LENGTH, dtype=torch.bool)
    given[..., :5] = False
    got, _ = sparsebert_attention(module, q[:, :, -1:], k, v, given, is_causal=True)
    none = torch.zeros(()).double()
    expected = softmax_attention(q, k, v, mask & given, none)
    assert_equal_in_fp64(got, expected[:, -1:])
