"""pooled_scores: a position's score, pooled with those of its kind."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from sparsebert.dam.pooled_scores import pooled_scores
from tests.dam.dams import make

L, H, N = 2, 3, 6


def scores_of(seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(L, H, N, N, generator=generator, dtype=torch.float64).mul(3).exp()


def by_hand(scores: torch.Tensor, own: tuple[int, ...]) -> torch.Tensor:
    """By loops over positions, from the docstring; own: not negative, the last one wins."""
    s, found = scores.tolist(), torch.empty(L, H, N, N, dtype=torch.float64)

    def kind(i: int, j: int) -> tuple[Any, ...]:
        for token in reversed(own):
            if j == token:
                return ("column", token)
            if i == token:
                return ("row", token)
        return ("distance", j - i)

    places = [(i, j) for i in range(N) for j in range(N)]
    for layer in range(L):
        for head in range(H):
            for i, j in places:
                alike = [s[layer][head][a][b] for a, b in places if kind(a, b) == kind(i, j)]
                over = [s[a][b][i][j] for a in range(L) for b in range(H)]
                logs = (
                    math.log(s[layer][head][i][j]),
                    math.log(sum(over) / len(over)),
                    math.log(sum(alike) / len(alike)),
                )
                found[layer, head, i, j] = math.exp(sum(logs) / 3.0)
    return found


@pytest.mark.parametrize("own", [(), (0,), (0, 5), (5, 0)])
def test_by_hand(own: tuple[int, ...]) -> None:
    found = pooled_scores(scores_of(), own_tokens=own)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, by_hand(scores_of(), own), rtol=1e-12, atol=0.0)
    last = tuple(token - N if token == 5 else token for token in own)
    assert torch.equal(pooled_scores(scores_of(), own_tokens=last), found)


def test_finds_what_noise_hides() -> None:
    """A stripe in every head, under noise that lifts many single positions above it."""
    generator = torch.Generator().manual_seed(0)
    n = 40
    stripe = ((torch.arange(n)[:, None] - torch.arange(n)).abs() <= 1).double()
    noise = torch.randn(4, 6, n, n, generator=generator, dtype=torch.float64).mul(1.5).exp()
    scores = (1.0 + 9.0 * stripe) * noise
    sparsity = 1.0 - float(stripe.mean())

    def right(given: torch.Tensor) -> float:
        dam = make("full", 4, 6, n, scope="global").start_from(given, sparsity)
        kept = dam.binarize(sparsity=sparsity, allow_empty_rows=True).dense().double()
        return float((kept * stripe).sum() / (kept.sum()))

    assert right(scores) < 0.5 and right(pooled_scores(scores)) > 0.8


def test_scores_of_zero_come_last() -> None:
    """Behind a positive one of the same kind, however small."""
    scores = torch.ones(L, H, N, N, dtype=torch.float64)
    scores[0, 0, 2, 3], scores[0, 0, 3, 2] = 0.0, 1e-30
    scores[0, 0, 1, 2], scores[0, 0, 2, 1] = 1e-30, 0.0  # of the same distances
    scores[1, :, 2, 3] = scores[1, :, 3, 2] = scores[1, :, 1, 2] = scores[1, :, 2, 1] = 1.0
    found = pooled_scores(scores)
    assert found.isfinite().all() and (found > 0.0).all()
    assert found[0, 0, 2, 3] < found[0, 0, 1, 2] and found[0, 0, 2, 1] < found[0, 0, 3, 2]


def test_any_kind_of_number() -> None:
    for scores in (scores_of() > 1.0, scores_of().bfloat16(), scores_of().requires_grad_()):
        found = pooled_scores(scores)
        assert not found.requires_grad
        assert torch.equal(found, pooled_scores(scores.detach().double()))


@pytest.mark.parametrize(
    ("scores", "own", "error", "message"),
    [
        (np.ones((L, H, N, N)), (), TypeError, "must be a tensor, got ndarray"),
        (torch.ones(H, N, N), (), ValueError, r"\[layers, heads, N, N\], got \[3, 6, 6\]"),
        (torch.ones(L, H, N, 5), (), ValueError, r"got \[2, 3, 6, 5\]"),
        (torch.ones(L, 0, N, N), (), ValueError, r"got \[2, 0, 6, 6\]"),
        (-torch.ones(L, H, N, N), (), ValueError, "negative, infinite or NaN"),
        (torch.full((L, H, N, N), math.nan), (), ValueError, "negative, infinite or NaN"),
        (torch.zeros(L, H, N, N), (), ValueError, "all scores are 0"),
        (torch.ones(L, H, N, N), (6,), ValueError, "own_tokens"),
    ],
)
def test_errors(scores: Any, own: tuple[int, ...], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        pooled_scores(scores, own_tokens=own)
