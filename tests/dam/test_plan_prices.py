"""The groups and prices that a search takes from the plans of its masks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import sparsebert as sb
from sparsebert.backends.registry import planned
from sparsebert.compiler.cost.model import PassCost
from sparsebert.dam.plan_prices import price_tiles, tiles_in_order
from sparsebert.dam.structure import Layout
from sparsebert.masks import AttentionMask
from sparsebert.tiles.format import HEIGHTS
from sparsebert.tiles.outlines import singles_of_head

TARGETS = ("cpu", "sm90")


def masks(n: int) -> dict[str, AttentionMask]:
    torch.manual_seed(n)
    random = torch.rand(2, 3, n, n)
    random[0, 1] = random[0, 0]  # heads that share their tiles
    empty_rows = (random < 0.2) & (torch.arange(n) % 3 > 0)[:, None]
    shared = (torch.rand(3, 1, 1, n) < 0.2).expand(3, 2, n, n)
    return {
        "random": AttentionMask.from_dense(random < 0.1),
        "empty rows": AttentionMask.from_dense(empty_rows),
        "nothing": AttentionMask.from_dense(torch.zeros(1, 1, n, n, dtype=torch.bool)),
        "shared columns": AttentionMask.from_dense(shared),
        "strided": sb.patterns.strided(n, stride=9),
        "longformer": sb.patterns.longformer(n),
    }


@pytest.fixture(params=["native", "torch"])
def cpu_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Plans of both kinds, with single entries and without, whatever can run here."""
    monkeypatch.setitem(planned, "cpu", request.param)
    return str(request.param)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n", [1, 37, 100])
def test_every_position_has_a_price(n: int, target: str, cpu_backend: str) -> None:
    for name, mask in masks(n).items():
        tiles = price_tiles(mask, Layout("full", n, False), target, "time")
        heads = mask.num_layers * mask.num_heads
        assert tiles.group.shape == (heads, n, n), name
        assert tiles.group.min() >= 0 and int(tiles.group.max()) < tiles.column.shape[1], name
        paid = tiles.column.gather(1, tiles.group.flatten(1))
        assert (paid > 0).all() and paid.isfinite().all(), name
        alone = target == "cpu" and cpu_backend == "native"
        assert (tiles.entry is not None) == alone, name


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", masks(100))
def test_the_masks_own_cost(name: str, target: str, cpu_backend: str) -> None:
    """A sure mask costs what the tiles of its plan do, column by column.

    Where entries may stand alone, each column is decided by itself: that costs no more than the
    plan, in which a tile must pay for itself, too.
    """
    n, mask = 100, masks(100)[name]
    tiles = price_tiles(mask, Layout("full", n, False), target, "time")
    sure = torch.where(mask.dense().reshape(-1, n, n), -200.0, 0.0).double()
    cost, wanted = tiles.expected(sure).item(), 0.0
    for layer in range(mask.num_layers):
        plan = sb.compile_plan(mask.layer(layer), target=target, threads=1)
        aim, own = plan.shared_tiles.aim, plan.shared_tiles.every
        prices = dataclasses.replace(aim, tile_sets=mask.num_heads).model.forward

        def of_column(height: int, rows: int, prices: PassCost = prices) -> float:
            slots = height if target == "sm90" else rows
            return prices.column + prices.entry[height] * slots

        unit = min(of_column(height, height) / height for height in HEIGHTS[: len(prices.entry)])
        for head in plan.head_map.tolist():
            for tile in np.flatnonzero(own.head == head):
                rows = np.count_nonzero(own.row_slots(tile) >= 0)
                wanted += own.width[tile] * of_column(int(own.height[tile]), int(rows)) / unit
            alone = singles_of_head(own, head)
            wanted += alone.entries * prices.single / unit
            wanted += alone.columns * prices.single_column / unit
    if tiles.entry is None:
        assert cost == pytest.approx(wanted)
    else:
        assert mask.dense().sum().item() - 1e-6 <= cost <= wanted + 1e-6


@pytest.mark.parametrize("target", TARGETS)
def test_gathered_columns_are_free(target: str, cpu_backend: str) -> None:
    """Columns that all rows keep are tiles' columns: there another entry costs nothing more."""
    n = 64
    mask = AttentionMask.from_dense((torch.arange(n) % 8 == 0).expand(1, 1, n, n).clone())
    tiles = price_tiles(mask, Layout("full", n, False), target, "time")
    dense = mask.dense()[0]
    fewer, new = dense.clone(), dense.clone()
    fewer[0, 5, 8] = False
    new[0, 5, 9] = True
    whole, without, beyond = (
        tiles.expected(torch.where(each, -200.0, 0.0).double()).item()
        for each in (dense, fewer, new)
    )
    assert whole == pytest.approx(without)
    assert beyond > whole


def test_rows_that_share_columns_are_found(cpu_backend: str) -> None:
    """Row groups follow the mask, not the order of rows, and heads and layers have their own."""
    n = 64
    generator = np.random.default_rng(0)
    dense = np.zeros((2, 2, n, n), dtype=bool)
    kinds = np.stack([generator.permutation(n) % 4 for _ in range(4)]).reshape(2, 2, n)
    for layer, head in np.ndindex(2, 2):
        dense[layer, head] = kinds[layer, head][:, None] == np.arange(n) // 16
    mask = AttentionMask.from_dense(dense)
    tiles = price_tiles(mask, Layout("full", n, False), "cpu", "time")
    for group, kind in zip(tiles.group, kinds.reshape(-1, n), strict=True):
        mine = group.numpy()[kind[:, None] == np.arange(n) // 16]
        rows = mine.reshape(n, 16)
        assert (rows == rows[:, :1]).all()
        assert len({(int(k), int(g)) for k, g in zip(kind, rows[:, 0], strict=True)}) == 4


def test_shared_parameters_count_once() -> None:
    n = 40
    layout = Layout("toeplitz", n, True)
    tiles = price_tiles(sb.patterns.sliding_window(n, window=2), layout, "sm90", "time")
    assert tiles.first is not None and not tiles.first.all()
    group, first = tiles.group[0], tiles.first[0]
    for j in range(n):
        seen: set[tuple[int, int]] = set()
        for i in range(n):
            key = int(group[i, j]), abs(i - j)
            assert bool(first[i, j]) == (key not in seen)
            seen.add(key)


@pytest.mark.parametrize("objective", ["time", "area"])
@pytest.mark.parametrize("target", TARGETS)
def test_rows_in_order_cost_as_in_a_plan(target: str, objective: str, cpu_backend: str) -> None:
    """In blocks of 16 rows a plan has just these tiles, for the same prices."""
    n = 64
    rows = torch.arange(n) // 16
    mask = AttentionMask.from_dense((rows[:, None] == rows)[None, None])
    layout = Layout("full", n, False)
    found = price_tiles(mask, layout, target, objective)
    in_order = tiles_in_order(layout, 1, target, objective)
    sure = torch.where(mask.dense()[0], -200.0, 0.0).double()
    if (target, objective) != ("sm90", "time"):  # whose tiles are taller
        assert found.expected(sure).item() == pytest.approx(in_order.expected(sure).item())
    assert in_order.expected(sure).item() >= mask.dense().sum().item() - 1e-6
    assert (in_order.entry, in_order.entry_column) == (found.entry, found.entry_column)
