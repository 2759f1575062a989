"""The oracle itself, against loops over single elements."""

import math
import typing

import pytest
import torch

import sparsebert as sb


def by_hand(q, k, v, allowed, scale, factor):
    """Attention by Python floats, one query at a time; allowed and factor are [B, H, N, M]."""
    batch, heads, q_len, dim = q.shape
    group = heads // k.shape[1]
    o = torch.zeros(q.shape, dtype=torch.float64)
    lse = torch.full(q.shape[:3], -math.inf, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(q_len):
                keys = [j for j in range(k.shape[2]) if allowed[b, h, i, j]]
                if not keys:
                    continue
                kv = h // group
                scores = [
                    scale * sum(float(q[b, h, i, d]) * float(k[b, kv, j, d]) for d in range(dim))
                    for j in keys
                ]
                total = sum(math.exp(s) for s in scores)
                lse[b, h, i] = math.log(total)
                for j, s in zip(keys, scores, strict=True):
                    weight = math.exp(s) / total * float(factor[b, h, i, j])
                    o[b, h, i] += weight * v[b, kv, j].double()
    return o, lse


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_equals_a_loop_over_elements(kv_heads, dropout_p):
    q = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, 7, 3, dtype=torch.float64)
    mask = torch.rand(4, 5, 7) < 0.4
    mask[:, 2] = False
    key_mask = torch.rand(2, 7) < 0.7
    keep = torch.rand(2, 4, 5, 7) < 0.5 if dropout_p else None
    allowed = mask[None] & key_mask[:, None, None, :]
    factor = keep / (1 - dropout_p) if dropout_p else torch.ones_like(allowed)
    expected_o, expected_lse = by_hand(q, k, v, allowed, 0.7, factor)
    o, lse = sb.reference_attention(
        q, k, v, mask, scale=0.7, key_mask=key_mask, return_lse=True, keep_mask=keep,
        dropout_p=dropout_p,
    )  # fmt: skip
    torch.testing.assert_close(o, expected_o, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-13, atol=1e-13)


def test_gradients_by_finite_differences():
    inputs = [torch.randn(1, h, n, 3, dtype=torch.float64) for h, n in ((4, 5), (2, 6), (2, 6))]
    mask = torch.rand(4, 5, 6) < 0.5
    mask[:, 1] = False
    keep = torch.rand(1, 4, 5, 6) < 0.6

    def run(q, k, v):
        o, lse = sb.reference_attention(
            q, k, v, mask, return_lse=True, keep_mask=keep, dropout_p=0.4
        )
        return o, lse.masked_fill(lse == -math.inf, 0.0)

    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_takes_an_attention_mask_of_one_layer():
    q, k, v = torch.randn(3, 1, 2, 6, 4)
    mask = sb.patterns.sliding_window(6, window=1)
    expected = sb.reference_attention(q, k, v, mask.dense()[0])
    assert sb.reference_attention(q, k, v, mask).equal(expected)
    with pytest.raises(ValueError, match=r"2 layers; pick one, mask.layer\(i\)"):
        sb.reference_attention(q, k, v, sb.AttentionMask.stack_layers([mask, mask]))


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        (torch.zeros(6, 6), TypeError, "mask must be bool"),
        (torch.ones(5, 6, dtype=torch.bool), ValueError, r"expected \[2 or 1, 6, 6\]"),
        (torch.ones(3, 6, 6, dtype=torch.bool), ValueError, "3 heads, q has 2"),
    ],
)
def test_refuses_masks_that_do_not_fit(mask, error, match):
    q, k, v = torch.randn(3, 1, 2, 6, 4)
    with pytest.raises(error, match=match):
        sb.reference_attention(q, k, v, mask)


def test_dropout_needs_both_arguments():
    q, k, v = torch.randn(3, 1, 2, 6, 4)
    with pytest.raises(ValueError, match="go together"):
        sb.reference_attention(q, k, v, torch.ones(6, 6, dtype=torch.bool), dropout_p=0.1)


@pytest.mark.parametrize("function", [sb.sparse_attention, sb.reference_attention])
def test_type_checkers_know_what_comes_back(function):
    """A Tensor, not "a Tensor or a tuple": overloads, with the parameters of the function."""
    returned = {}
    parameters = typing.get_type_hints(function)
    for overload in typing.get_overloads(function):
        hints = typing.get_type_hints(overload)
        assert list(hints) == list(parameters)
        assert all(hints[x] == parameters[x] for x in hints if x not in ("return", "return_lse"))
        returned[hints["return_lse"]] = hints["return"]
    pair = tuple[torch.Tensor, torch.Tensor]
    assert returned == {
        typing.Literal[False]: torch.Tensor,
        typing.Literal[True]: pair,
        bool: torch.Tensor | pair,
    }


@pytest.mark.parametrize(
    ("heads", "kv_heads", "message"),
    [(3, 2, "not a multiple of k's H_kv=2"), (0, 1, "H=0 heads"), (2, 0, "H_kv=0")],
)
def test_head_counts_that_do_not_go_together(heads, kv_heads, message):
    q, k = torch.zeros(1, heads, 4, 2), torch.zeros(1, kv_heads, 4, 2)
    with pytest.raises(ValueError, match=message):
        sb.reference_attention(q, k, k, torch.ones(4, 4, dtype=torch.bool))
