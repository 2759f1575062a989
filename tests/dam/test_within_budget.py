"""Masks that cost no more than a budget: against all masks, and the rules of binarize."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from sparsebert.dam.priced_tiles import PricedTiles
from sparsebert.dam.structure import STRUCTURES, Layout
from sparsebert.dam.within_budget import within_budget
from tests.dam.dams import make


def tiles_of(generator: np.random.Generator, n: int, entry: float | None) -> PricedTiles:
    group = generator.integers(0, 2, (1, n, n))
    column = generator.uniform(1.0, 2.0, (1, 2))
    rest = (None, 0.0) if entry is None else (entry, 0.2)
    return PricedTiles(torch.from_numpy(group), None, torch.from_numpy(column), *rest)


def cost_of(kept: np.ndarray, tiles: PricedTiles) -> float:
    """By definition, of one head."""
    group, column = tiles.group[0].numpy(), tiles.column[0].tolist()
    total = 0.0
    for t, j in itertools.product(range(len(column)), range(len(kept))):
        entries = int((kept[:, j] & (group[:, j] == t)).sum())
        if entries:
            ways = [column[t]]
            if tiles.entry is not None:
                ways.append(tiles.entry * entries + tiles.entry_column)
            total += min(ways)
    return total


@pytest.mark.parametrize("entry", [None, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_against_all_masks(seed: int, entry: float | None) -> None:
    """Within every budget, and at most one column away from the best."""
    n, generator = 3, np.random.default_rng(seed)
    tiles, worth = tiles_of(generator, n, entry), generator.uniform(size=(1, n, n))
    may = generator.random((n, n)) < 0.9
    must = np.zeros((1, n, n), dtype=bool)
    must[0, 1, 0] = may[1, 0] = True
    masks = [
        np.array(bits, dtype=bool).reshape(n, n)
        for bits in itertools.product((0, 1), repeat=n * n)
    ]
    allowed = [m for m in masks if not (m & ~may).any() and (m | ~must[0]).all()]
    costs = np.array([cost_of(m, tiles) for m in allowed])
    worths = np.array([worth[0][m].sum() for m in allowed])
    before = 0.0
    for budget in np.linspace(costs.min(), costs.max(), 9):
        (kept,) = within_budget(worth, must, must, may, tiles, budget, True)
        assert not (kept & ~may).any() and kept[must[0]].all()
        assert cost_of(kept, tiles) <= budget + 1e-9
        got = worth[0][kept].sum()
        assert got >= worths[costs <= budget + 1e-9].max() - n
        assert got >= before
        before = got
    assert before == pytest.approx(worths.max())
    with pytest.raises(ValueError, match="what must stay"):
        within_budget(worth, must, must, may, tiles, costs.min() - 0.01, True)


@pytest.mark.parametrize("entry", [None, 0.3])
def test_no_row_is_empty(entry: float | None) -> None:
    """Rows that gather together get the same column, so that this costs little."""
    n, generator = 24, np.random.default_rng(0)
    rows = torch.from_numpy(generator.permutation(n) // 8)
    column = torch.full((1, 3), 2.0)
    rest = (None, 0.0) if entry is None else (entry, 0.1)
    tiles = PricedTiles(rows[None, :, None].expand(1, n, n), None, column, *rest)
    worth = generator.uniform(size=(1, n, n)) * np.where(rows == 0, 10.0, 0.1)[None, :, None]
    none, may = np.zeros((1, n, n), dtype=bool), ~np.eye(n, dtype=bool)
    may[5] = False  # cannot have any
    (some,) = within_budget(worth, none, none, may, tiles, 10.0, True)
    assert not some.any(1).all()
    too_much = may[None] & (generator.random((1, n, n)) < 0.5)
    (kept,) = within_budget(worth, none, too_much, may, tiles, 10.0, False)
    assert (kept.any(1) == may.any(1)).all() and not (kept & ~may).any()
    assert cost_of(kept, tiles) <= 10.0 + 1e-9
    few = none.copy()
    few[0, [1, 2], [3, 4]] = True
    (kept,) = within_budget(worth, none, few, may, tiles, 10.0, False)
    assert kept[1, 3] and kept[2, 4] and cost_of(kept, tiles) <= 10.0 + 1e-9


def test_equal_prices_take_the_best_columns() -> None:
    n, generator = 12, np.random.default_rng(0)
    rows = torch.from_numpy(generator.permutation(n) % 3)
    tiles = PricedTiles(rows[None, :, None].expand(1, n, n), None, torch.full((1, 3), 4.0))
    worth = generator.uniform(size=(1, n, n))
    none = np.zeros((1, n, n), dtype=bool)
    sums = np.stack([worth[0, rows.numpy() == t].sum(0) for t in range(3)])
    for columns in (0, 1, 7, 35, 36):
        (kept,) = within_budget(worth, none, none, ~none[0], tiles, 4.0 * columns + 1.0, True)
        best = np.zeros(3 * n, dtype=bool)
        best[np.argsort(-sums, axis=None)[:columns]] = True
        assert (kept == best.reshape(3, n)[rows.numpy()]).all()


def test_columns_that_are_worth_the_same() -> None:
    """The budget is used although no rate tells them apart."""
    n = 8
    tiles = PricedTiles(torch.zeros(1, n, n, dtype=torch.int64), None, torch.ones(1, 1))
    none = np.zeros((1, n, n), dtype=bool)
    (kept,) = within_budget(np.ones((1, n, n)), none, none, ~none[0], tiles, 3.5, False)
    assert kept.all(0).sum() == 3 == kept.any(0).sum()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("scope", ["head", "global"])
def test_binarize(structure: str, scope: str) -> None:
    n, options = 37, {"structure": structure}
    options |= {"block_size": 5} if structure == "block" else {}
    dam = make("full", layers=2, n=n, **options)
    tile = torch.arange(n) // 8
    tiles = PricedTiles(
        tile[None, :, None].expand(4, n, n), None, torch.bincount(tile)[None].expand(4, 5).double()
    )
    mask = dam.binarize(
        executed=0.3, tiles=tiles, scope=scope, without_diagonal=True, keep_tokens=[0]
    )
    dense = mask.dense()
    gathered = torch.stack([part.any(2) * part.shape[2] for part in dense.split(8, dim=2)])
    share = gathered.sum((0, 3)).double() / n**2  # [L, H]
    assert (share.mean() if scope == "global" else share.max()) <= 0.3
    assert (share.mean() if scope == "global" else share.min()) > 0.27
    assert not dense.diagonal(dim1=2, dim2=3).any() and dense.any(-1).all()
    assert dense[:, :, 1:, 0].all() and dense[:, :, 0, 1:].all()
    off = ~torch.eye(n, dtype=torch.bool)
    for part, rows in zip(dense.split(8, dim=2), off.split(8), strict=True):
        assert (part == (part.any(2, keepdim=True) & rows)).all()  # what is free is kept
    assert mask.provenance["executed"] == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"executed": 0.5}, "give both"),
        ({"tiles": 1}, "give both"),
        ({"executed": 0.5, "sparsity": 0.5, "tiles": 1}, "not several"),
        ({"executed": 1.0, "tiles": 1}, r"executed must be in \[0, 1\), got 1.0"),
        ({"executed": 0.01, "tiles": 1}, "executed=0.01, but what must stay"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    dam = make("full")
    if "tiles" in arguments:
        group = torch.zeros(1, 7, 7, dtype=torch.int64)
        arguments = {**arguments, "tiles": PricedTiles(group, None, torch.full((1, 1), 7.0))}
    with pytest.raises(ValueError, match=message):
        dam.binarize(**arguments)


def test_layouts_are_no_matter() -> None:
    """Positions that share a parameter may part: columns are chosen."""
    dam = make("toeplitz", heads=1, n=16)
    assert dam.layout == Layout("toeplitz", 16, False)
    rows = (torch.arange(16) // 4)[None, :, None].expand(1, 16, 16)
    kept = dam.binarize(executed=0.4, tiles=PricedTiles(rows, None, torch.full((1, 4), 4.0)))
    dense = kept.dense()[0, 0]
    assert (dense.unflatten(0, (4, 4)) == dense[::4, None]).all()


def test_each_head_takes_the_best_of_several() -> None:
    """Rows that share columns in order, or in turns: by heads, or for all together."""
    n = 16
    rows = torch.arange(n)
    kinds = {"in order": rows // 4, "in turns": rows % 4}
    choices = [
        PricedTiles(kind[None, :, None].expand(1, n, n), None, torch.full((1, 4), 4.0))
        for kind in kinds.values()
    ]
    dam = make("full", heads=2, n=n)
    wanted = torch.stack([kind[:, None] == rows // 4 for kind in kinds.values()])
    with torch.no_grad():
        dam.alpha.copy_(torch.where(wanted.reshape(1, 2, -1), 3.0, -3.0))
    mask = dam.binarize(executed=0.25, tiles=choices)
    assert (mask.dense()[0] == wanted).all()
    assert (dam.binarize(executed=0.25, tiles=choices[:1]).dense()[0, 0] == wanted[0]).all()
    one = dam.binarize(executed=0.25, tiles=choices, scope="global").dense()
    assert any(
        (one == dam.binarize(executed=0.25, tiles=c, scope="global").dense()).all()
        for c in choices
    )
    too_dear = PricedTiles(choices[0].group, None, torch.full((1, 4), 400.0))
    assert dam.binarize(executed=0.25, tiles=[too_dear, *choices]) == mask
    with pytest.raises(ValueError, match="what must stay"):
        dam.binarize(executed=0.25, tiles=[too_dear])
