"""Universal approximation without the diagonal, by construction: docs/theory.md, its second part.

The networks are written down, not trained. So that they compute what they should to their rounding
is a check of the proof: of its codes, of what a token can and cannot know.
"""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
import torch

import sparsebert as sb
from tests.theory.constructed import (
    Grid,
    Network,
    digits_of_positions,
    powers_of_the_length,
)

SIZES = ((2, 8), (3, 6), (4, 4))
"""Tokens, cells of [0, 1]. Two tokens are among them: the construction needs no third."""


def without_diagonal(tokens: int) -> sb.AttentionMask:
    return sb.patterns.dense(tokens).without_diagonal()


def ring(tokens: int) -> sb.AttentionMask:
    """Each token sees the one before it, the first the last: one position a row."""
    return sb.AttentionMask.from_dense(torch.eye(tokens, dtype=torch.bool).roll(-1, 1).T)


def chain(tokens: int) -> sb.AttentionMask:
    """A ring that is cut: the first token sees nobody."""
    allowed = ring(tokens).dense()[0, 0].clone()
    allowed[0] = False
    return sb.AttentionMask.from_dense(allowed)


def equivariant_table(tokens: int, cells: int) -> dict[Grid, list[Fraction]]:
    """Any numbers whatever, but the same for a token among the same others."""
    draw = random.Random(0)
    seen: dict[tuple[int, Grid], Fraction] = {}

    def value(grid: Grid, i: int) -> Fraction:
        others = tuple(sorted(grid[:i] + grid[i + 1 :]))
        return seen.setdefault((grid[i], others), Fraction(draw.randint(-100, 100), 100))

    grids = itertools.product(range(cells), repeat=tokens)
    return {grid: [value(grid, i) for i in range(tokens)] for grid in grids}


def free_table(tokens: int, cells: int) -> dict[Grid, list[Fraction]]:
    """Any numbers whatever, for each token of each input."""
    draw = random.Random(0)
    return {
        grid: [Fraction(draw.randint(-100, 100), 100) for _ in range(tokens)]
        for grid in itertools.product(range(cells), repeat=tokens)
    }


def off_ramps(cells: int, tokens: int, within: float) -> torch.Tensor:
    """Every grid [grids, tokens], each token at the same place of its cell."""
    grids = list(itertools.product(range(cells), repeat=tokens))
    return (torch.tensor(grids, dtype=torch.float64) + within) / cells


def check_table(
    network: Network, table: dict[Grid, list[Fraction]], at_most: float = 2e-5
) -> None:
    """Outputs are a hundredth apart; the network may be off by its rounding alone."""
    tokens = len(next(iter(table)))
    rows = [[float(y) for y in row] for row in table.values()]
    expected = torch.tensor(rows, dtype=torch.float64)
    for within in (0.001, 0.5, 0.98):
        x = off_ramps(network.cells, tokens, within)
        bound = network.rounding(x)
        assert bound < at_most
        assert (network(x) - expected).abs().max() <= bound


@pytest.mark.parametrize(("tokens", "cells"), SIZES)
def test_any_table_of_an_equivariant_function(tokens: int, cells: int) -> None:
    table = equivariant_table(tokens, cells)
    network = Network(
        without_diagonal(tokens), cells=cells, target=table.__getitem__,
        code=powers_of_the_length(tokens),
    )  # fmt: skip
    check_table(network, table)


@pytest.mark.parametrize(("tokens", "cells"), SIZES)
def test_a_continuous_function_to_the_stated_error(tokens: int, cells: int) -> None:
    """x_i times the largest token: on [0, 1] it moves by at most twice what the tokens move by.

    Each cell takes the value at its middle, half a cell away at most: 2 * 1 / (2 cells). On the
    ramps values lie between those of cells, all in [0, 1], so d_1 is bounded, too.
    """

    def target(grid: Grid) -> list[Fraction]:
        middles = [(Fraction(cell) + Fraction(1, 2)) / cells for cell in grid]
        return [middle * max(middles) for middle in middles]

    network = Network(
        without_diagonal(tokens), cells=cells, target=target, code=powers_of_the_length(tokens)
    )
    x = torch.rand(4000, tokens, dtype=torch.float64)
    flat = network.flat(x)
    error = (network(x) - x * x.max(-1, keepdim=True).values).abs()
    stated = 1 / cells + network.rounding(x[flat])
    assert error[flat].max() <= stated
    assert error[flat].max() > 0.5 / cells  # it is the cells that limit it
    assert 0 < (~flat).double().mean() < tokens * network.ramp * 1.5
    assert error.mean() <= stated + (~flat).double().mean()


@pytest.mark.parametrize(("tokens", "cells"), [(2, 4), (3, 2)])
def test_with_positions_any_table_at_all(tokens: int, cells: int) -> None:
    table = free_table(tokens, cells)
    network = Network(
        without_diagonal(tokens), cells=cells, target=table.__getitem__,
        code=digits_of_positions, positions=True,
    )  # fmt: skip
    check_table(network, table)


def test_a_sparse_mask_that_connects_all_tokens_will_do() -> None:
    """No self loops, one position a row, as many layers as the longest way has steps."""
    table = free_table(3, 2)

    def network(mask: sb.AttentionMask, layers: int) -> Network:
        return Network(
            mask, layers=layers, cells=2, target=table.__getitem__, code=digits_of_positions,
            positions=True,
        )  # fmt: skip

    check_table(network(ring(3), 2), table, at_most=1e-3)
    with pytest.raises(ValueError, match="two tokens hold"):  # one step shows one other token
        network(ring(3), 1)
    with pytest.raises(ValueError, match="two tokens hold"):  # the first token learns nothing
        network(chain(3), 3)
