"""Bad input is refused with the argument, the expectation, what came, and what to do."""

import math

import pytest
import torch

import sparsebert as sb


@pytest.fixture
def plan():
    return sb.compile_plan(sb.patterns.sliding_window(16, window=2), target="cpu")


def tensors(heads=4, length=16, dim=8, dtype=torch.float32):
    return [torch.zeros(2, heads, length, dim, dtype=dtype) for _ in range(3)]


def refuse(error, match, *args, **kwargs):
    with pytest.raises(error, match=match):
        sb.sparse_attention(*args, **kwargs)


def test_heads_that_do_not_fit():
    three = sb.AttentionMask.stack_heads([sb.patterns.star(16)] * 3)
    refuse(ValueError, "q has H=4 heads but the plan has 3; .* 1 head", *tensors(), three)


def test_a_mask_that_does_not_fit_is_not_compiled(monkeypatch):
    """That may take long."""
    monkeypatch.setattr("sparsebert.api.plan_on", lambda *arguments: pytest.fail("compiled"))
    three = sb.AttentionMask.stack_heads([sb.patterns.random(16, 0.3, seed=s) for s in range(3)])
    refuse(ValueError, "q has H=4 heads but the plan has 3", *tensors(), three)
    refuse(ValueError, r"N=12 but .*mask.crop\(12\)", *tensors(length=12), sb.patterns.star(16))


def test_length(plan):
    refuse(
        ValueError,
        r"q has N=12 but the plan covers N=16 and k has M=12 .*; .*mask.crop\(12\)",
        *tensors(length=12),
        plan,
    )
    refuse(ValueError, "N=20 but the plan covers N=16.*longer sequence", *tensors(length=20), plan)
    q, k, v = *tensors(length=16)[:1], *tensors(length=10)[:2]
    refuse(ValueError, r"k has M=10 but the plan covers M=16; .*crop\(16, 10\)", q, k, v, plan)


def test_plan_of_another_kind(plan):
    refuse(
        TypeError, r"must be an AttentionPlan .* got a tensor torch.bool \[2, 4, 16, 16\]; .*from",
        *tensors(), torch.ones(2, 4, 16, 16, dtype=torch.bool),
    )  # fmt: skip
    refuse(TypeError, "got NoneType", *tensors(), None)
    layers = sb.AttentionMask.stack_layers([sb.patterns.star(16)] * 2)
    refuse(ValueError, r"mask of 2 layers; .*mask.layer\(i\)", *tensors(), layers)


def test_dtypes_and_shapes(plan):
    q, k, v = tensors()
    refuse(TypeError, r"q must be fp16, bf16, fp32 or fp64, got torch.int64; .*q.float\(\)",
           q.long(), k.long(), v.long(), plan)  # fmt: skip
    refuse(TypeError, r"q is torch.float32 but v is torch.float16; convert", q, k, v.half(), plan)
    refuse(ValueError, r"q must be a tensor \[B, H, N, D\], got .*\[4, 16, 8\]", q[0], k, v, plan)
    refuse(ValueError, r"got .*; .*q\[None\] is a batch of one", q[0], k, v, plan)
    refuse(ValueError, r"got .*; .*k\[None, None\] is", q, k[0, 0], v, plan)
    refuse(ValueError, r"got .*; .*reshape", q, k, v[None], plan)
    refuse(ValueError, r"got ndarray; make it one, torch\.as_tensor\(v\)", q, k, v.numpy(), plan)
    refuse(ValueError, "got list", [1], k, v, plan)
    refuse(ValueError, "k has shape .* but v has", q, k, v[:, :2], plan)
    refuse(ValueError, "q has B=2, D=8 but k has B=1, D=8", q, k[:1], v[:1], plan)
    refuse(ValueError, "q has H=4 heads, which is not a multiple of k's H_kv=3",
           q, k[:, :3], v[:, :3], plan)  # fmt: skip
    refuse(ValueError, "D must be at most 256, got 257", *tensors(dim=257), plan)


def test_key_mask(plan):
    def refuse_key_mask(error, match, key_mask):
        refuse(error, match, *tensors(), plan, key_mask=key_mask)

    refuse_key_mask(TypeError, r"bool \[B=2, M=16\], got .*int64.*mask.bool\(\)",
                    torch.ones(2, 16, dtype=torch.int64))  # fmt: skip
    refuse_key_mask(ValueError, r"shape \[B=2, M=16\], got .*\[2, 15\]",
                    torch.ones(2, 15, dtype=torch.bool))  # fmt: skip
    refuse_key_mask(ValueError, r"got .*\[2, 1, 1, 16\]",
                    torch.ones(2, 1, 1, 16, dtype=torch.bool))  # fmt: skip
    refuse_key_mask(ValueError, r"shape \[B=2, M=16\], got .*\[1, 16\]",  # would broadcast
                    torch.ones(1, 16, dtype=torch.bool))  # fmt: skip
    refuse_key_mask(TypeError, "got list", [True])


def test_advice_for_a_key_mask_does_not_invert_it(plan):
    """Nothing hidden is all zeros in an additive mask, and all ones in HuggingFace's."""
    q, k, v = tensors()
    for additive in (torch.zeros(2, 16), torch.tensor([0.0, -math.inf]).repeat(2, 8)):
        refuse(TypeError, "additive.* key_mask == 0$", q, k, v, plan, key_mask=additive)
    for numbers in (torch.ones(2, 16), torch.tensor([0, 1]).repeat(2, 8)):
        refuse(TypeError, r"mask\.bool\(\)$", q, k, v, plan, key_mask=numbers)
    four = torch.ones(2, 1, 1, 16, dtype=torch.bool)
    refuse(ValueError, r"take mask\[:, 0, 0\]$", q, k, v, plan, key_mask=four)
    assert sb.sparse_attention(q, k, v, plan, key_mask=four[:, 0, 0]).shape == q.shape
    refuse(TypeError, r"torch.as_tensor\(key_mask\)$", q, k, v, plan, key_mask=[[True] * 16] * 2)


def test_scale_is_a_number(plan):
    """A scale that is learned would get no gradient."""
    q, k, v = tensors()
    refuse(TypeError, "scale .* requires grad, .*multiply q by it and pass scale=1.0",
           q, k, v, plan, scale=torch.tensor(0.5, requires_grad=True))  # fmt: skip
    refuse(TypeError, "scale must be a number or None, got str", q, k, v, plan, scale="0.5")
    refuse(TypeError, r"scale must be .*float32 \[2\]", q, k, v, plan, scale=torch.ones(2))
    half = sb.sparse_attention(q, k, v, plan, scale=0.5)
    assert sb.sparse_attention(q, k, v, plan, scale=torch.tensor(0.5)).equal(half)


def test_devices(plan):
    meta = [x.to("meta") for x in tensors()]
    refuse(ValueError, r"q is on meta but the plan is on cpu; .*plan.to\('meta'\)", *meta, plan)
    q, k, v = tensors()
    refuse(ValueError, "q is on cpu but k is on meta", q, k.to("meta"), v, plan)


@pytest.mark.parametrize("dropout_p", [-0.1, 1.0, float("nan"), None, "0.1"])
def test_dropout_p(plan, dropout_p):
    refuse(ValueError, r"dropout_p must be in \[0, 1\)", *tensors(), plan, dropout_p=dropout_p)


def test_backend(plan):
    refuse(ValueError, "backend must be one of .* got 'flash'", *tensors(), plan, backend="flash")


def test_triton_says_why_it_cannot_run(plan, monkeypatch):
    def refuse_triton(match, dtype=torch.float32):
        refuse(ValueError, match, *tensors(dtype=dtype), plan, backend="triton")

    refuse_triton("takes fp16, bf16 and fp32, got torch.float64", torch.float64)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    refuse_triton("needs CUDA or HIP tensors, got cpu; .*TRITON_INTERPRET=1")
    monkeypatch.setattr("sparsebert.backends.triton._HAS_TRITON", False)
    refuse_triton(r"pip install 'sparsebert\[triton\]'")
