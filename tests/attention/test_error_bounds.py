"""The error bounds of `sparsebert.testing`: right arithmetic keeps them, wrong results do not."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import sparsebert as sb
from sparsebert.testing import Arithmetic, Expected, expected_attention, route_bound
from sparsebert.testing.arithmetic import concentration

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NAMES = ("o", "lse", "dq", "dk", "dv")


@dataclasses.dataclass
class Problem:
    """Inputs of one head, their mask, and what must come of them."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    grad_o: torch.Tensor
    allowed: torch.Tensor  # [N, M]
    expected: Expected

    @classmethod
    def draw(cls, length: int, dtype: torch.dtype, density: float, seed: int = 0, dim: int = 32):
        generator = torch.Generator().manual_seed(seed)
        q, k, v, grad_o = (
            torch.randn(1, 1, length, dim, generator=generator).to(dtype) for _ in range(4)
        )
        allowed = torch.rand(length, length, generator=generator) < density
        allowed |= torch.eye(length, dtype=torch.bool)
        return cls(
            q, k, v, grad_o, allowed, expected_attention(q, k, v, allowed, grad_o=grad_o)
        )  # fmt: skip

    def run(self, allowed: torch.Tensor, backend: str = "auto") -> dict[str, torch.Tensor]:
        """What `sparse_attention` gives for a mask, which may be another than the problem's."""
        plan = sb.compile_plan(sb.AttentionMask.from_dense(allowed), target="cpu")
        inputs = [x.clone().requires_grad_() for x in (self.q, self.k, self.v)]
        o, lse = sb.sparse_attention(*inputs, plan, return_lse=True, backend=backend)
        gradients = torch.autograd.grad(o, inputs, self.grad_o)
        return {"o": o, "lse": lse, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}

    def broken(self, results: dict[str, torch.Tensor]) -> set[str]:
        """Which of the results are outside of their bounds."""
        return {x.name for x in self.expected.outcomes(results) if not x.passed}


@pytest.mark.parametrize("backend", ["auto", "torch", "dense"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 65, 200])
def test_right_results_stay_well_within(length, dtype, backend):
    for seed in range(5):
        problem = Problem.draw(length, dtype, 0.3, seed)
        for outcome in problem.expected.outcomes(problem.run(problem.allowed, backend)):
            assert outcome.passed, outcome


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [64, 2048])
def test_wrong_kernels_are_found(length, dtype):
    """One bit flipped, one column dropped, an LSE off by 1e-3, a gradient's term forgotten."""
    problem = Problem.draw(length, dtype, 0.1)
    right = problem.run(problem.allowed)
    assert problem.broken(right) == set()

    flipped = problem.allowed.clone()
    flipped[length // 3, length // 2] ^= True
    assert problem.broken(problem.run(flipped)) >= {"lse"}

    dropped = problem.allowed.clone()
    dropped[:, length // 2] = False
    assert problem.broken(problem.run(dropped)) == set(NAMES)

    assert problem.broken({"lse": right["lse"] + 1e-3}) == {"lse"}
    for name in ("dq", "dk", "dv"):
        assert problem.broken({name: right[name] * (1.0 + 2.0**-5)}) == {name}


def test_the_arithmetic_of_fp32_is_found_in_fp64():
    problem = Problem.draw(65, torch.float64, 0.3)
    narrow = {name: getattr(problem, name).float() for name in ("q", "k", "v", "grad_o")}
    results = dataclasses.replace(problem, **narrow).run(problem.allowed)
    del results["lse"]  # returned in fp32 in any case
    assert problem.broken(results) == set(results)


@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_bit_shows_in_every_result_of_fp32(seed):
    """At N = 64, where each position carries weight; any position."""
    problem = Problem.draw(64, torch.float32, 1.0, seed)
    flipped = problem.allowed.clone()
    row, col = torch.randint(64, (2,), generator=torch.Generator().manual_seed(seed))
    flipped[row, col] ^= True
    assert problem.broken(problem.run(flipped)) == set(NAMES)


def test_bounds_are_of_the_size_of_real_errors():
    """In 16 bits, where the rounding of results is the largest part, within one order."""
    problem = Problem.draw(128, torch.bfloat16, 0.5)
    outcomes = problem.expected.outcomes(problem.run(problem.allowed, "dense"))
    outcomes = [x for x in outcomes if x.name != "lse"]  # which is not stored in 16 bits
    assert all(outcome.ratio > 0.1 for outcome in outcomes), [str(x) for x in outcomes]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_features_together(dtype):
    """Grouped heads, a key mask, dropout, a gradient of the LSE, large scores, dead rows."""
    torch.manual_seed(3)
    q, grad_o = (torch.randn(2, 4, 40, 24).to(dtype) for _ in range(2))
    k, v = (torch.randn(2, 2, 50, 24).to(dtype) for _ in range(2))
    mask = torch.rand(4, 40, 50) < 0.3
    mask[:, 7] = False
    key_mask = torch.rand(2, 50) < 0.7
    k, v = (x.masked_fill(~key_mask[:, None, :, None], math.nan) for x in (k, v))
    grad_lse = torch.randn(2, 4, 40)
    grad_lse[:, :, 7] = 0.0
    plan = sb.compile_plan(sb.AttentionMask.from_dense(mask), target="cpu")
    for scale, p in ((0.2, 0.0), (0.2, 0.3), (8.0, 0.0)):
        torch.manual_seed(5)
        keep = sb.dropout.keep_mask(2, 4, 40, 50, p) if p else None
        expected = expected_attention(
            q, k, v, mask, scale=scale, key_mask=key_mask, keep_mask=keep, dropout_p=p,
            grad_o=grad_o, grad_lse=grad_lse,
        )  # fmt: skip
        for backend in ("auto", "torch", "dense"):
            torch.manual_seed(5)
            inputs = [x.clone().requires_grad_() for x in (q, k, v)]
            o, lse = sb.sparse_attention(
                *inputs, plan, scale=scale, key_mask=key_mask, dropout_p=p, return_lse=True,
                backend=backend,
            )  # fmt: skip
            gradients = torch.autograd.grad((o, lse), inputs, (grad_o, grad_lse))
            results = dict(zip(NAMES, (o, lse, *gradients), strict=True))
            for outcome in expected.outcomes(results):
                assert outcome.passed, (scale, p, backend, outcome)
        hidden = ~key_mask[:, None, :, None].expand_as(k)
        assert not expected.bound["dk"][hidden].any()
        assert not expected.bound["dv"][hidden].any()
        assert not expected.bound["o"][:, :, 7].any()
        assert not expected.bound["dq"][:, :, 7].any()
        assert expected.exact["lse"][:, :, 7].eq(-math.inf).all()


def test_attention_in_16_bit_operations_has_wider_bounds():
    """Attention written out in bf16, which stores its scores, keeps the bounds made for it."""
    problem = Problem.draw(256, torch.bfloat16, 1.0)
    inputs = [x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v)]
    scores = inputs[0] @ inputs[1].mT * 32**-0.5
    o = scores.softmax(-1) @ inputs[2]
    gradients = torch.autograd.grad(o, inputs, problem.grad_o)
    results = {"o": o, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}
    own = expected_attention(
        problem.q, problem.k, problem.v, problem.allowed, grad_o=problem.grad_o,
        arithmetic=Arithmetic.of(problem.q, stores_scores=True),
    )  # fmt: skip
    assert all(outcome.passed for outcome in own.outcomes(results))
    assert all((own.bound[name] >= problem.expected.bound[name]).all() for name in results)


def _far_apart(scores: list[float], dtype: torch.dtype = torch.float32) -> Problem:
    """Each of three queries scores its keys so; it attends to all but the first."""
    q, k = torch.ones(1, 1, 3, 1, dtype=dtype), torch.tensor(scores, dtype=dtype).view(1, 1, -1, 1)
    v, grad_o = torch.randn(1, 1, len(scores), 1).to(dtype), torch.randn(1, 1, 3, 1).to(dtype)
    allowed = torch.ones(3, len(scores), dtype=torch.bool)
    allowed[:, 0] = False
    expected = expected_attention(q, k, v, allowed, scale=1.0, grad_o=grad_o)
    return Problem(q, k, v, grad_o, allowed, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "scores",
    [
        [0.0, 0.0, -720.0],
        [0.0, 0.0, -744.0],
        [0.0, -720.0, -730.0],
        [0.0, -9e3, -8e3],
        [0.0, 80.0],
    ],
    ids=str,
)
def test_scores_that_are_far_apart_are_bounded(scores, dtype):
    """Where probabilities leave fp64's normal numbers, and far from the scores not attended."""
    torch.manual_seed(0)
    problem = _far_apart(scores, dtype)
    plan = sb.compile_plan(sb.AttentionMask.from_dense(problem.allowed), target="cpu")
    inputs = [x.clone().requires_grad_() for x in (problem.q, problem.k, problem.v)]
    o, lse = sb.sparse_attention(*inputs, plan, scale=1.0, return_lse=True)
    right = dict(
        zip(NAMES, (o, lse, *torch.autograd.grad(o, inputs, problem.grad_o)), strict=True)
    )
    for outcome in problem.expected.outcomes(right):
        assert outcome.passed, outcome
    for name in ("o", "lse", "dv"):
        assert problem.expected.bound[name].isfinite().all()
        assert problem.broken({name: right[name] + 1.0}) == {name}
    assert all(x.isfinite().all() for x in problem.expected.bound.values())


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_what_underflows_is_no_error(dtype):
    """o, of the size of the smallest numbers, is rounded to them before delta is made of it."""
    q, k = torch.zeros(1, 1, 4, 8, dtype=dtype), torch.ones(1, 1, 3, 8, dtype=dtype)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    v = torch.zeros_like(k)
    v[:, :, 0] = smallest  # a third of it is 0, so delta is; dP is not
    grad_o = torch.full_like(q, 1000.0)
    allowed = torch.ones(4, 3, dtype=torch.bool)
    expected = expected_attention(q, k, v, allowed, grad_o=grad_o)
    dp = 8 * 1000.0 * smallest
    dq = dp / 3 * 8**-0.5 * torch.ones_like(q).double()  # where it should be zero
    outcomes = expected.outcomes({"o": torch.zeros_like(q), "dq": dq.to(dtype)})
    assert all(outcome.passed for outcome in outcomes), [str(x) for x in outcomes]


def test_an_infinite_bound_bounds_nothing():
    exact = {"o": torch.zeros(2, dtype=torch.float64)}
    expected = Expected(exact, {"o": torch.tensor([1.0, math.inf], dtype=torch.float64)})
    assert [x.passed for x in expected.outcomes({"o": torch.tensor([0.5, 0.0])})] == [True]
    (outcome,) = expected.outcomes({"o": torch.tensor([0.5, 0.5])})
    assert not outcome.passed and outcome.ratio == math.inf


def test_nan_and_other_shapes_never_pass():
    problem = Problem.draw(8, torch.float32, 1.0)
    right = problem.run(problem.allowed)
    for name, result in right.items():
        for garbage in (math.nan, math.inf, -math.inf):
            wrong = result.detach().clone()
            wrong.view(-1)[3] = garbage
            (outcome,) = problem.expected.outcomes({name: wrong})
            assert not outcome.passed
            assert outcome.ratio == math.inf
    with pytest.raises(ValueError, match="o must be"):
        problem.expected.outcomes({"o": right["o"][:, :, :7]})


def test_sums_take_the_smaller_bound():
    arithmetic = Arithmetic.of(torch.empty(0))
    u = 2.0**-24
    assert arithmetic.sums(4, 8.0) == 4 * u
    assert arithmetic.sums(10_000, 8.0) == 800 * u
    assert concentration(1) == pytest.approx(math.sqrt(2 * math.log(2e9)))


def test_routes_bound_a_model_by_mean_squares():
    torch.manual_seed(0)
    exact = torch.randn(100, 100, dtype=torch.float64)
    noise = torch.randn(3, 100, 100, dtype=torch.float64) * 1e-5
    bound = route_bound(exact, [exact + noise[0], exact + noise[1]], torch.float32)
    assert 2e-5 < bound < 2.5e-5
    assert noise[2].square().mean().sqrt() < bound
    wrong = noise[2].clone()
    wrong[50] += 3e-4  # one row
    assert wrong.square().mean().sqrt() > bound
    few = exact[0, :64]
    assert 3e-5 < route_bound(few, [few + 1e-5], torch.float32) < 4e-5
    with pytest.raises(ValueError, match="has 63 elements"):
        route_bound(few[1:], [few[1:]], torch.float32)
    assert route_bound(exact, [exact * math.nan], torch.float32) == math.inf
