"""The kernels on a real GPU: `pytest -m gpu`; skipped where there is none.

The contract cases with new memory poisoned, and the plans that run there: of the compiler, for the
card at hand, by their times.
"""

import math

import pytest
import torch

import sparsebert as sb
from sparsebert import dropout, patterns
from sparsebert.testing import expected_attention

pytest.importorskip("triton")
from tests.kernels.kernel_cases import RESULTS, run
from tests.kernels.test_attention import CASES, LARGE

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_contract_cases(name, monkeypatch):
    run((CASES | LARGE)[name], monkeypatch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("features", ["plain", "key mask", "dropout", "key mask and dropout"])
@pytest.mark.parametrize("pattern", ["longformer", "strided", "star"])
def test_plans_by_time_for_this_card(pattern, features, dtype):
    """By way of `sparse_attention`, as a user calls it."""
    mask = patterns.build(pattern, 512)
    plan = sb.compile_plan(mask, objective="time").to("cuda")
    q, grad_o = torch.randn(2, 2, 4, 512, 64, device="cuda").to(dtype)
    k, v = torch.randn(2, 2, 2, 512, 64, device="cuda").to(dtype)
    key_mask = keep = None
    if "key mask" in features:
        key_mask = torch.rand(2, 512, device="cuda") < 0.8
        k, v = (x.masked_fill(~key_mask[:, None, :, None], math.nan) for x in (k, v))
    p = 0.1 if "dropout" in features else 0.0
    if p:
        torch.manual_seed(1)
        seed = dropout.draw_seed("cuda")
        keep = dropout.keep_mask(2, 4, 512, 512, p, seed=seed, device="cuda")
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    torch.manual_seed(1)
    o, lse = sb.sparse_attention(*inputs, plan, key_mask=key_mask, dropout_p=p, return_lse=True)
    gradients = torch.autograd.grad(o, inputs, grad_o)
    expected = expected_attention(
        q, k, v, mask, key_mask=key_mask, keep_mask=keep, dropout_p=p, grad_o=grad_o
    )
    outcomes = expected.outcomes(dict(zip(RESULTS, (o, lse, *gradients), strict=True)))
    assert all(outcome.passed for outcome in outcomes), "; ".join(map(str, outcomes))
