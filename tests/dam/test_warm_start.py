"""start_from: before any training the mask keeps the positions with the highest scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.dam.dams import STRUCTURES, make

N = 7


def scores_of(layers: int, heads: int, n: int = N, seed: int = 1) -> torch.Tensor:
    """Over many orders of magnitude, as squared effects are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layers, heads, n, n, generator=generator, dtype=torch.float64).mul(4).exp()


def highest(dam: Any, scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """bool [L, H, N, N]: whole parameters by their mean score, by a loop over them."""
    layers, heads, n = dam.num_layers, dam.num_heads, dam.seq_len
    scores = scores.double()
    if layers == 1:
        scores = scores.mean(0, keepdim=True)
    if heads == 1:
        scores = scores.mean(1, keepdim=True)
    scores = scores.expand(layers, heads, n, n)
    kept = torch.zeros(layers, heads, n, n, dtype=torch.bool)
    units = []
    for layer in range(layers):
        for head in range(heads):
            for parameter in range(int(dam.index.max()) + 1):
                where = dam.index == parameter
                mean = float(scores[layer, head][where].mean())
                units.append((-mean, layer, head, parameter, int(where.sum())))
    groups = [units]
    if dam.scope == "head":
        groups = [
            [u for u in units if u[1:3] == (layer, head)]
            for layer in range(layers)
            for head in range(heads)
        ]
    for group in groups:
        budget = round((1.0 - sparsity) * sum(u[4] for u in group), 6)
        used = 0
        for number, (_, layer, head, parameter, size) in enumerate(sorted(group)):
            used += size
            if used > budget and number > 0:
                break
            kept[layer, head] |= dam.index == parameter
    return kept


def assert_starts_with(dam: Any, expected: torch.Tensor, sparsity: float) -> None:
    mask = dam.binarize(sparsity=sparsity, allow_empty_rows=True)
    assert torch.equal(mask.dense(), expected)
    assert torch.equal(dam.probabilities() > 0.5, expected)
    assert torch.equal(dam.probabilities() >= 0.5, expected)  # the others are below
    assert torch.equal(dam.binarize(allow_empty_rows=True).dense(), expected)


@pytest.mark.parametrize("scope", ["head", "global"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 1), (2, 3)])
@pytest.mark.parametrize("name", STRUCTURES)
def test_keeps_the_highest_scores(name: str, shape: tuple[int, int], scope: str) -> None:
    scores = scores_of(2, 3)
    for sparsity in (0.05, 0.5, 0.7):
        dam = make(name, *shape, scope=scope)
        assert dam.start_from(scores, sparsity) is dam
        assert_starts_with(dam, highest(dam, scores, sparsity), sparsity)
    with torch.no_grad():
        order = dam.expand(dam.alpha).flatten(2).argsort(-1)
    assert torch.equal(
        dam.start_from(scores * 7, sparsity).expand(dam.alpha).flatten(2).argsort(-1), order
    )


def test_top_sampling_begins_with_them() -> None:
    scores = scores_of(2, 3)
    dam = make("full", 2, 3, sampling="top").start_from(scores, 0.8)
    dam.set_density(1.0 - 0.8)
    assert torch.equal(dam().detach().bool(), highest(dam, scores, 0.8))


@pytest.mark.parametrize("given", [(1, 1), (1, 3), (2, 1)])
def test_scores_that_layers_or_heads_share(given: tuple[int, int]) -> None:
    dam = make("full", 2, 3).start_from(scores_of(*given), 0.5)
    assert_starts_with(dam, highest(dam, scores_of(*given), 0.5), 0.5)


def test_rows_keep_their_likeliest() -> None:
    """What `binarize` adds unless empty rows are allowed, as the docstring says."""
    scores = torch.full((1, 1, N, N), 1e-3)
    scores[..., 0, :] = 1.0
    dam = make("full", 1, 1).start_from(scores, 0.8)
    assert not dam.binarize(sparsity=0.8, allow_empty_rows=True).dense().any(-1).all()
    assert dam.binarize(sparsity=0.8).dense().any(-1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scope", ["head", "global"])
def test_equal_scores(dtype: torch.dtype, scope: str) -> None:
    """Ties and near ties at the border still have their side, in the precision of alpha."""
    ties = torch.ones(1, 2, N, N, dtype=torch.float64)
    near = ties + torch.arange(2 * N * N, dtype=torch.float64).view(1, 2, N, N) * 1e-15
    zeros = torch.zeros(1, 2, N, N)
    zeros[..., :3] = scores_of(1, 2)[..., :3].float()
    for scores, sparsity in ((ties, 0.5), (near, 0.5), (zeros, 0.3), (zeros, 0.9)):
        dam = make("full", 1, 2, dtype=dtype, scope=scope).start_from(scores, sparsity)
        p = dam.probabilities()
        expected = dam.binarize(sparsity=sparsity, allow_empty_rows=True).dense()
        groups = expected.reshape(2 if scope == "head" else 1, -1)
        share = int((1.0 - sparsity) * groups.shape[1] + 1e-9)
        assert groups.sum(1).tolist() == [share] * len(groups)
        assert torch.equal(p > 0.5, expected) and torch.equal(p < 0.5, ~expected)
        for given, kept in zip(scores.reshape(groups.shape), groups, strict=True):
            assert given[kept].min() >= given[~kept].max()
    first = make("full", 1, 1).start_from(ties, 0.5).probabilities() > 0.5
    assert first.flatten().nonzero().flatten().tolist() == list(range(24))


def test_positions_without_any_score_come_last() -> None:
    scores = torch.zeros(1, 1, 3, 3)
    scores[0, 0, 1] = torch.tensor([1e-30, 1.0, 1e3])
    alpha = make("full", 1, 1, 3).start_from(scores, 0.5).alpha.detach().view(3, 3)
    assert alpha[1].min() > alpha[[0, 2]].max() and alpha.isfinite().all()


def test_one_parameter() -> None:
    for scope in ("head", "global"):
        dam = make("full", 1, 1, 1, scope=scope).start_from(torch.full((1, 1, 1, 1), 3.0), 0.5)
        assert dam.alpha.isfinite().all() and dam.probabilities().item() > 0.5
    block = make("block", 1, 1, 2).start_from(scores_of(1, 1, 2), 0.5)
    assert block.alpha.numel() == 1 and block.probabilities().min() > 0.5


def test_spread() -> None:
    """The standard deviation of alpha; of one group up to the width of its border."""
    for spread in (0.1, 1.0, 3.0):
        dam = make("full", 2, 3, scope="global").start_from(scores_of(2, 3), 0.5, spread=spread)
        assert float(dam.alpha.detach().std()) == pytest.approx(spread, rel=1e-9)


def test_scores_of_any_kind_of_number() -> None:
    """A mask, counts, bf16; averaged in fp64 where heads share the mask."""
    kept = scores_of(2, 3) > 1.0
    for scores in (kept, kept.int() * 3, kept.bfloat16(), kept.float().requires_grad_()):
        dam = make("full", 1, 3).start_from(scores, 0.6)
        assert_starts_with(dam, highest(dam, kept, 0.6), 0.6)
    fine = 1.0 + scores_of(2, 3).float().argsort(-1) * 2.0**-20
    dam = make("full", 1, 3).start_from(fine, 0.6)
    assert_starts_with(dam, highest(dam, fine, 0.6), 0.6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 0.0}, r"sparsity must be in \(0, 1\), got 0.0"),
        ({"sparsity": 1.0}, r"sparsity must be in \(0, 1\), got 1.0"),
        ({"sparsity": float("nan")}, "sparsity must be in"),
        ({"spread": 0.0}, r"spread must be in \(0, inf\), got 0.0"),
        ({"spread": float("inf")}, "spread must be in"),
        ({"scores": torch.ones(N, N)}, r"must be \[layers, heads, 7, 7\].*got \[7, 7\]"),
        ({"scores": torch.ones(2, 3, 8, 8)}, r"got \[2, 3, 8, 8\]; crop or compute them at"),
        ({"scores": torch.ones(3, 3, N, N)}, "scores of 3 layers for a mask of 2; give 1 or 2"),
        ({"scores": torch.ones(2, 2, N, N)}, "scores of 2 heads for a mask of 3; give 1 or 3"),
        ({"scores": -torch.ones(2, 3, N, N)}, "negative, infinite or NaN"),
        ({"scores": torch.full((2, 3, N, N), float("nan"))}, "negative, infinite or NaN"),
        ({"scores": torch.full((2, 3, N, N), float("inf"))}, "negative, infinite or NaN"),
        ({"scores": torch.zeros(2, 3, N, N)}, "all scores are 0"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    dam = make("full", 2, 3)
    before = dam.alpha.detach().clone()
    with pytest.raises(ValueError, match=message):
        dam.start_from(**{"scores": scores_of(2, 3), "sparsity": 0.5, **change})
    with pytest.raises(TypeError, match="scores must be a tensor, got ndarray"):
        dam.start_from(np.ones((2, 3, N, N)), 0.5)
    assert torch.equal(dam.alpha, before)
