"""A network without the diagonal learns what one with it learns, where the own token is needed.

The task: each token gives the largest of all tokens' numbers, x uniform on [0, 1].
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import sparsebert as sb

CHANNELS = 32
BLIND = {2: 1 / 30, 4: 1 / 105}
"""The least mean squared error, by the number of tokens, if one may not look at the own x.

Given the others' largest m, max(x, m) has the variance 1/12 + 2 m^3 / 3 - m^2 / 2 - m^4 / 4. With
n - 1 others the mean of m^k is (n - 1) / (n - 1 + k), so the mean variance is 1/30 and 1/105."""


class Block(nn.Module):
    """Each token's x -> channels, one head of attention, a feed-forward layer -> a number."""

    def __init__(self, mask: sb.AttentionMask, *, residual: bool) -> None:
        super().__init__()
        self.mask, self.residual = mask, residual
        self.embed = nn.Linear(1, CHANNELS)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.mix = nn.Linear(CHANNELS, CHANNELS)
        self.head = nn.Sequential(nn.Linear(CHANNELS, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [batch, tokens]."""
        h = torch.relu(self.embed(x[..., None]))
        q, k, v = self.qkv(h)[:, None].chunk(3, -1)
        attention = self.mix(sb.sparse_attention(q, k, v, self.mask)[:, 0])
        return self.head(h + attention if self.residual else attention)[..., 0]


@functools.cache
def trained(tokens: int, *, diagonal: bool, residual: bool) -> Block:
    """Trained on fresh numbers each step, the same for each network."""
    torch.manual_seed(0)
    mask = sb.patterns.dense(tokens)
    block = Block(mask if diagonal else mask.without_diagonal(), residual=residual)
    optimizer = torch.optim.Adam(block.parameters(), lr=5e-3)
    steps = 500
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = torch.rand(128, tokens)
        optimizer.zero_grad()
        squared_errors(block, x).mean().backward()
        optimizer.step()
        schedule.step()
    return block


def squared_errors(block: Block, x: torch.Tensor) -> torch.Tensor:
    return (block(x) - x.max(-1, keepdim=True).values).square()


def measured(tokens: int, *, diagonal: bool, residual: bool) -> torch.Tensor:
    """Squared errors [inputs] of the first token."""
    block = trained(tokens, diagonal=diagonal, residual=residual)
    x = torch.rand(20_000, tokens, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return squared_errors(block, x)[:, 0].double()


@pytest.mark.parametrize("tokens", BLIND)
@pytest.mark.parametrize("diagonal", [True, False])
def test_with_and_without_the_diagonal_to_the_same_error(tokens: int, diagonal: bool) -> None:
    """A tenth of what is possible without the own token."""
    error = measured(tokens, diagonal=diagonal, residual=True).mean()
    assert error <= BLIND[tokens] / 10


def test_the_residual_connection_is_what_keeps_the_own_token() -> None:
    """Of two tokens, without it and without the diagonal, each is blind to itself."""
    errors = measured(2, diagonal=False, residual=False)
    assert errors.mean() + 5 * errors.std() / len(errors) ** 0.5 >= BLIND[2]
    block = trained(2, diagonal=False, residual=False)
    x = torch.rand(100, 2)
    other = torch.stack([torch.rand(100), x[:, 1]], 1)
    with torch.no_grad():
        assert torch.equal(block(x)[:, 0], block(other)[:, 0])
    # Of four, the query lets something through, but not enough.
    assert measured(4, diagonal=False, residual=False).mean() > BLIND[4] / 10


@pytest.mark.parametrize("tokens", BLIND)
def test_the_least_error_of_the_blind(tokens: int) -> None:
    """The numbers above, drawn instead of integrated."""
    x = torch.rand(400_000, tokens, dtype=torch.float64)
    m = x[:, 1:].amax(-1)
    variance = 1 / 12 + 2 * m**3 / 3 - m**2 / 2 - m**4 / 4
    errors = (torch.maximum(x[:, 0], m) - (1 + m**2) / 2).square()
    for drawn in (variance, errors):
        error = 5 * float(drawn.std()) / len(drawn) ** 0.5
        assert abs(float(drawn.mean()) - BLIND[tokens]) < error
