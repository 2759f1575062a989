"""SparseSelfAttention against torch.nn.MultiheadAttention under the same boolean mask."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import sparsebert as sb

E, H, N, MASK_N, B = 32, 4, 20, 24, 3
EPS64 = torch.finfo(torch.float64).eps


def random_mask(heads: int = 1, seed: int = 1) -> torch.Tensor:
    """bool [H, N, N] with the diagonal."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(heads, MASK_N, MASK_N, generator=generator) < 0.4
    return mask | torch.eye(MASK_N, dtype=torch.bool)


def padding() -> torch.Tensor:
    """torch's sense: True = padding; none, right, middle."""
    mask = torch.zeros(B, N, dtype=torch.bool)
    mask[1, 14:] = True
    mask[2, 6:9] = True
    return mask


def pair(**kwargs: bool) -> tuple[nn.MultiheadAttention, sb.SparseSelfAttention]:
    """Both modules in fp64 with the same random parameters."""
    theirs = nn.MultiheadAttention(E, H, **{"batch_first": True, **kwargs})
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = sb.SparseSelfAttention(E, H, random_mask(H), **kwargs)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return theirs.double(), ours.double()


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_multihead_attention(per_head: bool, padded: bool, bias: bool) -> None:
    """Output and gradients of x and of every parameter; real tokens only, as elsewhere."""
    theirs, _ = pair(bias=bias)
    allowed = random_mask(H if per_head else 1)
    ours = sb.SparseSelfAttention(E, H, allowed, bias=bias).double()
    ours.load_state_dict(theirs.state_dict())
    forbidden = ~allowed[:, :N, :N]  # torch's sense, and [B * H, N, N] if per head
    forbidden = forbidden.repeat(B, 1, 1) if per_head else forbidden[0]
    key_padding_mask = padding() if padded else None
    real = ~padding() if padded else torch.ones(B, N, dtype=torch.bool)

    x = torch.randn(B, N, E, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(B, N, E, dtype=torch.float64) * real[..., None]
    expected, _ = theirs(
        x, x, x, attn_mask=forbidden, key_padding_mask=key_padding_mask, need_weights=False
    )
    got = ours(x, key_padding_mask=key_padding_mask)
    gradients = [
        torch.autograd.grad(out, (x, *module.parameters()), upstream)
        for out, module in ((expected, theirs), (got, ours))
    ]
    pairs = [(expected[real], got[real]), *zip(*gradients, strict=True)]
    for theirs_value, our_value in pairs:
        # Chains of at most E + N products, a few one after another.
        budget = 8 * (E + N) * EPS64 * max(1.0, theirs_value.abs().max().item())
        assert (our_value - theirs_value).abs().max() <= budget


def test_parameters_are_those_of_multihead_attention() -> None:
    for bias in (True, False):
        torch.manual_seed(7)
        theirs = nn.MultiheadAttention(E, H, bias=bias)
        torch.manual_seed(7)
        ours = sb.SparseSelfAttention(E, H, random_mask(), bias=bias)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for name, value in theirs.state_dict().items():
            assert ours.state_dict()[name].equal(value)


def test_layouts() -> None:
    _, ours = pair()
    x = torch.randn(B, N, E, dtype=torch.float64)
    expected = ours(x, key_padding_mask=padding())
    assert ours(x[1], key_padding_mask=padding()[1]).equal(expected[1])
    sequence_first = sb.SparseSelfAttention(E, H, random_mask(H), batch_first=False).double()
    sequence_first.load_state_dict(ours.state_dict())
    got = sequence_first(x.transpose(0, 1), key_padding_mask=padding())
    torch.testing.assert_close(got.transpose(0, 1), expected, rtol=0, atol=1e-13)


def test_short_sequences_use_the_top_left_part() -> None:
    mask = sb.AttentionMask.from_dense(random_mask(H))
    _, ours = pair()
    for length in (1, 7, N, MASK_N):
        cropped = sb.SparseSelfAttention(E, H, mask.crop(length)).double()
        cropped.load_state_dict(ours.state_dict())
        x = torch.randn(B, length, E, dtype=torch.float64)
        assert ours(x).equal(cropped(x))


def test_dead_rows_give_the_bias_of_the_output() -> None:
    mask = random_mask()
    mask[:, 5] = False
    ours = sb.SparseSelfAttention(E, H, mask)
    nn.init.normal_(ours.out_proj.bias)
    x = torch.randn(B, N, E, requires_grad=True)
    all_padding = torch.zeros(B, N, dtype=torch.bool)
    all_padding[2] = True
    out = ours(x, key_padding_mask=all_padding)
    assert out[0, 5].equal(ours.out_proj.bias)
    assert (out[2] == ours.out_proj.bias).all()
    out.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert x.grad[2].eq(0).all()


def test_dropout() -> None:
    ours = sb.SparseSelfAttention(E, H, random_mask(H), dropout=0.25)
    x = torch.randn(1, N, E)
    exact = ours.eval()(x)
    assert ours(x).equal(exact)
    ours.train()
    torch.manual_seed(1)
    draws = ours(x.expand(400, -1, -1))
    torch.manual_seed(1)
    assert ours(x.expand(400, -1, -1)).equal(draws)
    error_of_mean = draws.std(0) / 400**0.5
    assert ((draws.mean(0) - exact[0]).abs() <= 5 * error_of_mean + 1e-6).all()


def test_copies_pickles_and_moves() -> None:
    _, ours = pair()
    x = torch.randn(B, N, E, dtype=torch.float64)
    expected = ours(x)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for other in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
        assert other(x).equal(expected)
        assert other.mask == ours.mask
    assert list(ours.buffers()) == []


def test_backends_agree() -> None:
    _, ours = pair()
    x = torch.randn(B, N, E, dtype=torch.float64)
    results = []
    for backend in ("auto", "torch", "dense"):
        module = sb.SparseSelfAttention(E, H, random_mask(H), backend=backend).double()
        module.load_state_dict(ours.state_dict())
        results.append(module(x, key_padding_mask=padding()))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-13)


def test_compiles_into_one_graph() -> None:
    torch._dynamo.reset()
    _, ours = pair()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for length in (N, 13):
        x = torch.randn(B, length, E, dtype=torch.float64, requires_grad=True)
        gradients = [torch.autograd.grad(run(x).square().sum(), x)[0] for run in (compiled, ours)]
        torch.testing.assert_close(*gradients)


def test_repr_shows_the_mask() -> None:
    mask = sb.patterns.sliding_window(16, window=1)
    text = repr(sb.SparseSelfAttention(E, H, mask))
    assert "mask=[1, 16, 16] at density 17.97%" in text


@pytest.mark.parametrize("bias", [False, True])
def test_parameters_are_where_and_what_was_asked_for(bias: bool) -> None:
    for dtype, device in ((torch.float64, "cpu"), (torch.bfloat16, "meta")):
        ours = sb.SparseSelfAttention(E, H, random_mask(), bias=bias, dtype=dtype, device=device)
        made = dict(ours.named_parameters())
        assert len(made) == (4 if bias else 2)
        assert {(x.dtype, x.device.type) for x in made.values()} == {(dtype, device)}


def test_defaults() -> None:
    """Those of torch's module, except that the batch comes first."""
    ours = sb.SparseSelfAttention(E, H, random_mask())
    assert (ours.dropout, ours.batch_first, ours.backend) == (0.0, True, "auto")
    assert ours.in_proj_bias is not None and ours.out_proj.bias is not None
    x = torch.randn(B, N, E)
    assert torch.equal(ours.train()(x), ours.eval()(x))
    text = repr(ours)
    assert "embed_dim=32, num_heads=4" in text
    assert "dropout=0.0, batch_first=True, backend='auto'" in text


def test_the_smallest_module() -> None:
    ours = sb.SparseSelfAttention(8, 1, torch.ones(1, 1, dtype=torch.bool))
    x = torch.randn(1, 8)
    value = torch.nn.functional.linear(x, ours.in_proj_weight[16:], ours.in_proj_bias[16:])
    torch.testing.assert_close(ours(x), ours.out_proj(value))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((E, 5, random_mask()), ValueError, "embed_dim=32 is not a multiple of num_heads=5"),
        ((E, 0, random_mask()), ValueError, "num_heads=0 but must be at least 1"),
        ((E, H, random_mask(3)), ValueError, "mask has 3 heads but num_heads=4"),
        ((E, H, random_mask().int()), TypeError, "True = may attend, got a tensor torch.int32"),
        ((E, H, None), TypeError, "mask must be an AttentionMask .* got NoneType"),
        ((E, H, random_mask()[None].repeat(2, 1, 1, 1)), ValueError, "pass mask.layer"),
        ((E, H, random_mask()[:, :5]), ValueError, r"mask is 5 x 24, .* mask.crop\(5, 5\)"),
    ],
)
def test_bad_construction(
    arguments: tuple[int, int, torch.Tensor], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        sb.SparseSelfAttention(*arguments)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
        sb.SparseSelfAttention(E, H, random_mask(), dropout=1)
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'gpu'"):
        sb.SparseSelfAttention(E, H, random_mask(), backend="gpu")


def test_bad_inputs() -> None:
    ours = sb.SparseSelfAttention(E, H, random_mask())
    x = torch.randn(B, N, E)
    with pytest.raises(ValueError, match="x has N=25 but the mask covers N=24"):
        ours(torch.randn(1, 25, E))
    with pytest.raises(ValueError, match=r"x must be \[B, N, E\] or \[N, E\] with E=32"):
        ours(torch.randn(B, N, E + 1))
    with pytest.raises(ValueError, match=r"x must be \[B, N, E\] or \[N, E\] with E=32"):
        ours(torch.randn(1, B, N, E))
    with pytest.raises(ValueError, match=r"x must be \[N, B, E\] or \[N, E\] with E=32"):
        sb.SparseSelfAttention(E, H, random_mask(), batch_first=False)(torch.randn(B, N, 5))
    with pytest.raises(ValueError, match="need_weights=True is not supported"):
        ours(x, need_weights=True)
    with pytest.raises(TypeError, match=r"must be bool .* True = padding, got torch\.int64"):
        ours(x, key_padding_mask=torch.ones(B, N, dtype=torch.long))
    with pytest.raises(ValueError, match=r"must have shape \[3, 20\].* got \[3, 24\]"):
        ours(x, key_padding_mask=torch.ones(B, 24, dtype=torch.bool))
