"""The DifferentiableAttentionMask by itself: samples, structures, penalties, binarize."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import sparsebert as sb
from sparsebert.dam.schedules import SparsityController, annealed, ramp

STRUCTURES: dict[str, dict[str, Any]] = {
    "full": {"structure": "full", "symmetric": False},
    "full, symmetric": {"structure": "full"},
    "toeplitz": {"structure": "toeplitz", "symmetric": False},
    "toeplitz, symmetric": {"structure": "toeplitz"},
    "block": {"structure": "block", "symmetric": False, "block_size": 2},
    "block, symmetric": {"structure": "block", "block_size": 2},
}


def make(name: str, layers: int = 1, heads: int = 2, n: int = 7, **more: Any) -> Any:
    torch.manual_seed(0)
    more = {"init_std": 1.0, "dtype": torch.float64, **STRUCTURES[name], **more}
    return sb.DifferentiableAttentionMask(layers, heads, n, **more)


# ------------------------------------------------------------------------ structure and samples


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure(name: str) -> None:
    """Positions share a value exactly where the structure says so."""
    n = 7
    values = make(name, n=n).probabilities()[0, 0].detach().numpy()
    for i, j, k, m in itertools.product(range(n), repeat=4):
        a, b = (i, j), (k, m)
        if "symmetric" in name:
            a, b = tuple(sorted(a)), tuple(sorted(b))
        if "toeplitz" in name:
            same = a[0] - a[1] == b[0] - b[1]
        elif "block" in name:
            same = (a[0] // 2, a[1] // 2) == (b[0] // 2, b[1] // 2)
        else:
            same = a == b
        assert (values[i, j] == values[k, m]) == same


@pytest.mark.parametrize("name", STRUCTURES)
def test_sample_is_a_bernoulli_draw(name: str) -> None:
    """Hard samples are 0 or 1 and keep each position as often as its probability says."""
    dam = make(name)
    draws = 2000
    mean = torch.zeros(1, 2, 7, 7, dtype=torch.float64)
    for _ in range(draws):
        sample = dam.sample().detach()
        assert ((sample == 0) | (sample == 1)).all()
        mean += sample / draws
    p = dam.probabilities().detach()
    # Six standard deviations of a mean of draws; 98 positions.
    assert ((mean - p).abs() <= 6 * (p * (1 - p) / draws).sqrt()).all()


def test_straight_through_gradient() -> None:
    """The gradient of a hard sample is that of the unrounded one."""
    dam = make("full", temperature=0.7)
    weight = torch.randn(1, 2, 7, 7, dtype=torch.float64)
    grads = {}
    for hard in (True, False):
        dam.hard = hard
        torch.manual_seed(5)
        (grads[hard],) = torch.autograd.grad((dam.sample() * weight).sum(), dam.alpha)
    torch.manual_seed(5)
    uniform = torch.rand(dam.alpha.shape).double()
    soft = torch.sigmoid((dam.alpha + torch.log(uniform / (1 - uniform))) / 0.7)
    expected = weight.flatten(-2) * soft * (1 - soft) / 0.7
    assert torch.equal(grads[True], grads[False])
    torch.testing.assert_close(grads[False], expected.detach(), rtol=1e-6, atol=1e-9)


def test_noise() -> None:
    """torch.manual_seed repeats `sample`; `forward` has a stream of its own."""
    dam = make("full", n=16)
    torch.manual_seed(3)
    first = dam.sample()
    assert not torch.equal(first, dam.sample())
    torch.manual_seed(3)
    assert torch.equal(first, dam.sample())
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(
        dam.sample(generator=generator), dam.sample(generator=generator.manual_seed(1))
    )
    # forward does not touch torch's generator, a copy goes on alike, and so does a restored one
    dam(), dam()
    other = make("full", n=16, seed=123)
    other.load_state_dict(dam.state_dict())
    twin = copy.deepcopy(dam)
    state = torch.get_rng_state()
    expected = dam()
    assert torch.equal(twin(), expected) and torch.equal(other(), expected)
    assert not torch.equal(dam(), expected)
    assert torch.equal(state, torch.get_rng_state())


def test_modes() -> None:
    """Evaluation draws nothing; without noise a sample is the probabilities."""
    dam = make("full, symmetric")
    p = dam.probabilities()
    assert torch.equal(dam.eval()(), (p > 0.5).double())
    dam.hard = False
    assert torch.equal(dam(), p)
    assert torch.equal(make("full", hard=False, noise=False)(), make("full").probabilities())
    rounded = make("full", noise=False)()
    assert torch.equal(rounded.detach(), (make("full").probabilities() > 0.5).double())


@pytest.mark.parametrize("name", STRUCTURES)
def test_shorter_lengths(name: str) -> None:
    """A shorter sequence sees the top-left part of the same draw."""
    whole, part = make(name, layers=2, seed=4), make(name, layers=2, seed=4)
    assert torch.equal(whole()[..., :5, :5], part(5))
    assert torch.equal(whole.probabilities()[..., :3, :3], part.probabilities(3))
    with pytest.raises(ValueError, match=r"8 tokens, but the mask covers seq_len=7"):
        whole(8)


def test_first_probability() -> None:
    dam = sb.DifferentiableAttentionMask(1, 4, 32, init_probability=0.9)
    assert dam.expected_density == pytest.approx(0.9, abs=1e-3)
    assert dam.probabilities().std() > 0


# ---------------------------------------------------------------------------------- penalties


@pytest.mark.parametrize("name", STRUCTURES)
def test_l1(name: str) -> None:
    dam = make(name)
    p, expected = dam.probabilities(), dam.penalty()
    torch.testing.assert_close(expected, p.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(dam.penalty(reduction="mean"), p.mean(), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="none was drawn yet"):
        dam.penalty("l1")
    sample = dam()
    assert dam.penalty("l1").item() == sample.sum().item()
    assert dam.penalty("l1", sample=sample[..., :3, :3]) == sample[..., :3, :3].sum()
    (got,) = torch.autograd.grad(dam.penalty("l1"), dam.alpha, retain_graph=True)
    (wanted,) = torch.autograd.grad(sample.sum(), dam.alpha)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tile_rows", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("name", STRUCTURES)
def test_executed_area_is_the_expectation(name: str, tile_rows: int) -> None:
    """Against the sum over all outcomes of a small mask, each with its probability."""
    n = 3 if name == "full" else 4
    dam = make(name, heads=1, n=n)
    p = torch.sigmoid(dam.alpha[0, 0])
    index = dam.index
    area = torch.zeros((), dtype=torch.float64)
    for outcome in itertools.product((0.0, 1.0), repeat=len(p)):
        kept = torch.tensor(outcome, dtype=torch.float64)
        chance = torch.where(kept > 0, p, 1 - p).prod()
        mask = kept[index]
        executed = 0.0
        for tile in mask.split(tile_rows):
            executed += len(tile) * tile.amax(0).sum().item()
        area = area + chance * executed
    got = dam.penalty("executed_area", tile_rows=tile_rows)
    torch.testing.assert_close(got, area, rtol=1e-12, atol=0)
    grads = [torch.autograd.grad(x, dam.alpha, retain_graph=True)[0] for x in (got, area)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-13)


def test_executed_area_of_sure_positions() -> None:
    """Finite values and gradients where probabilities round to 0 and 1."""
    dam = make("full", dtype=torch.float32)
    with torch.no_grad():
        dam.alpha.copy_(torch.where(dam.alpha > 0, 200.0, -200.0))
    area = dam.penalty("executed_area", tile_rows=4)
    kept = (dam.alpha > 0).unflatten(-1, (7, 7))
    expected = 4 * kept[..., :4, :].any(-2).sum() + 3 * kept[..., 4:, :].any(-2).sum()
    assert area.item() == expected.item()
    area.backward()
    assert dam.alpha.grad.isfinite().all()


def test_executed_area_prefers_shared_columns() -> None:
    """Of two masks of one density the one whose rows share columns costs less."""
    spread, shared = (make("full", heads=1, n=16) for _ in range(2))
    i, j = torch.arange(16)[:, None], torch.arange(16)[None, :]
    with torch.no_grad():
        spread.alpha.copy_(torch.where(i == j, 9.0, -9.0).flatten())
        shared.alpha.copy_(torch.where(j == 3, 9.0, -9.0).expand(16, 16).flatten())
    assert spread.penalty().item() == pytest.approx(shared.penalty().item())
    ratio = spread.penalty("executed_area") / shared.penalty("executed_area")
    assert ratio.item() == pytest.approx(16, rel=0.1)


# ----------------------------------------------------------------------------------- binarize


def test_binarize_by_threshold() -> None:
    dam = make("full", layers=2)
    p = dam.probabilities().detach()
    expected = (p > 0.3) | (p == p.amax(-1, keepdim=True))
    assert torch.equal(dam.binarize(threshold=0.3).dense(), expected)
    kept = dam.binarize(threshold=0.9, allow_empty_rows=True)
    assert torch.equal(kept.dense(), p > 0.9)
    assert not kept.dense().any(-1).all() and dam.binarize(threshold=0.9).dense().any(-1).all()
    assert dam.binarize() == dam.binarize(threshold=0.5)


def test_binarize_at_the_threshold_and_without_the_diagonal() -> None:
    """A probability must be above the threshold; a forbidden diagonal is, at any probability."""
    dam = make("full", n=4)
    eye = torch.eye(4, dtype=torch.bool)
    with torch.no_grad():
        dam.alpha.zero_()  # probability 0.5, exactly
    assert not dam.binarize(threshold=0.5, allow_empty_rows=True).dense().any()
    assert dam.binarize(threshold=0.4999, allow_empty_rows=True).dense().all()
    kept = dam.binarize(threshold=0.4999, without_diagonal=True).dense()
    assert torch.equal(kept, (~eye).expand_as(kept))
    with torch.no_grad():
        dam.alpha[:] = torch.where(eye, 5.0, -5.0).flatten()
    assert torch.equal(dam.binarize(threshold=0.5).dense(), eye.expand_as(kept))
    kept = dam.binarize(threshold=0.5, without_diagonal=True, allow_empty_rows=True).dense()
    assert not kept.any()


@pytest.mark.parametrize("scope", ["head", "global"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75, 0.8])
def test_binarize_by_sparsity(scope: str, sparsity: float) -> None:
    """Exactly the most probable positions, after each row's best."""
    dam = make("full", layers=2, heads=3, n=10)
    p = dam.probabilities().detach().flatten(0, 1)
    best = p == p.amax(-1, keepdim=True)
    ranked = torch.where(best, 2 + p, p)
    groups = ranked.flatten(1) if scope == "head" else ranked.reshape(1, -1)
    count = round((1 - sparsity) * groups.shape[1])
    least = groups.sort(descending=True).values[:, count - 1 : count]
    expected = (groups >= least).reshape(2, 3, 10, 10)
    mask = dam.binarize(sparsity=sparsity, scope=scope)
    assert torch.equal(mask.dense(), expected)
    assert mask.sparsity == pytest.approx(sparsity)


@pytest.mark.parametrize("name", STRUCTURES)
@example(sparsity=1e-8, diagonal=False, token=(), scope="head")
@given(
    sparsity=st.floats(0.0, 0.7),
    diagonal=st.booleans(),
    token=st.sampled_from([(), (0,), (-1, 0)]),
    scope=st.sampled_from(["head", "global"]),
)
def test_binarize_keeps_its_promises(
    name: str, sparsity: float, diagonal: bool, token: tuple[int, ...], scope: str
) -> None:
    dam = make(name, n=9)
    options = {"without_diagonal": diagonal, "keep_tokens": token, "scope": scope}
    try:
        mask = dam.binarize(sparsity=sparsity, **options)
    except ValueError as error:
        assert "must stay" in str(error) and (token or diagonal)
        return
    dense = mask.dense()
    assert mask.sparsity >= sparsity - 1e-9
    assert dense.any(-1).all()
    assert not (diagonal and dense.diagonal(dim1=-2, dim2=-1).any())
    for t in token:
        for line in (dense[..., t, :], dense[..., :, t]):
            assert (line.sum(-1) >= 9 - diagonal).all()
    # sparser masks lie within denser ones
    denser = dam.binarize(sparsity=sparsity / 2, **options)
    assert (dense & denser.dense()).equal(dense)


def test_binarize_writes_down_where_the_mask_comes_from() -> None:
    mask = make("block").binarize(sparsity=0.4, keep_tokens=(-1,))
    assert mask.provenance["dam"]["structure"] == "block"
    assert mask.provenance["dam"]["block_size"] == 2
    assert mask.provenance["keep_tokens"] == [6] and mask.provenance["sparsity"] == 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, r"sparsity must be in"),
        ({"sparsity": math.nan}, r"sparsity must be in"),
        ({"threshold": 1.5}, r"threshold must be in"),
        ({"threshold": 0.5, "sparsity": 0.5}, r"threshold or sparsity, not both"),
        ({"sparsity": 0.9}, r"leaves 4 positions of 49, but 7 must stay.*at most 0.8571"),
        ({"sparsity": 0.8, "keep_tokens": [0]}, r"must stay"),
        ({"keep_tokens": [7]}, r"keep_tokens=7 but must be from -7 to 6"),
        ({"scope": "layer"}, r"scope must be one of"),
    ],
)
def test_binarize_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("full").binarize(**arguments)


def test_binarize_refuses_a_ruined_mask() -> None:
    dam = make("full")
    with torch.no_grad():
        dam.alpha[0, 0, 3] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        dam.binarize()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": "banded"}, "structure must be one of"),
        ({"structure": "block"}, "needs a block_size"),
        ({"block_size": 4}, "take none"),
        ({"structure": "block", "block_size": 0}, "block_size=0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"init_probability": 1.0}, r"init_probability must be in \(0, 1\)"),
        ({"init_std": -1.0}, "init_std"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_constructor_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sb.DifferentiableAttentionMask(1, 2, 8, **arguments)
    with pytest.raises(TypeError, match="num_heads must be an integer"):
        sb.DifferentiableAttentionMask(1, 2.0, 8)  # type: ignore[arg-type]


def test_penalty_errors() -> None:
    dam = make("full")
    for arguments, message in (
        ({"kind": "l2"}, "kind must be one of"),
        ({"reduction": "none"}, "reduction must be"),
        ({"kind": "expected_l1", "sample": dam.sample()}, "takes no sample"),
        ({"kind": "executed_area", "tile_rows": 0}, "tile_rows=0"),
    ):
        with pytest.raises(ValueError, match=message):
            dam.penalty(**arguments)


# ---------------------------------------------------------------------------------- schedules


def test_schedules() -> None:
    assert [annealed(4.0, 0.25, p) for p in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [4, 4, 1, 0.25, 0.25]
    assert [ramp(0.9, p) for p in (0.0, 1.0, 3.0)] == [0.0, 0.9, 0.9]
    steps = [ramp(0.9, p) for p in np.linspace(0, 1, 20)]
    assert steps == sorted(steps)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.96])
def test_controller_reaches_the_sparsity(sparsity: float, scale: float) -> None:
    """Against a task that wants some positions much, others little, by Adam as in training."""
    torch.manual_seed(0)
    dam = sb.DifferentiableAttentionMask(1, 2, 32, symmetric=False)
    worth = scale * torch.rand(dam.alpha.shape) ** 4 / dam.alpha.numel()
    controller = SparsityController(sparsity)
    optimizer = torch.optim.Adam([dam.alpha], lr=0.05)
    steps = 400
    for step in range(steps):
        progress = step / (0.7 * steps)
        weight = controller.update(dam.expected_density, progress)
        task = ((1 - dam()).flatten(-2) * worth).sum()
        optimizer.zero_grad()
        (task + weight * dam.penalty(reduction="mean")).backward()
        optimizer.step()
    assert dam.expected_density == pytest.approx(1 - sparsity, abs=0.02)
    kept = dam.binarize(sparsity=sparsity).dense().flatten(-2)
    assert worth[kept].mean() > worth[~kept].mean()


@pytest.mark.parametrize("arguments", [{"sparsity": 0.0}, {"sparsity": 1.0}, {"rate": -1.0}])
def test_controller_errors(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        SparsityController(**{"sparsity": 0.5, **arguments})
