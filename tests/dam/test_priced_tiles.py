"""Expected costs in tiles of any rows, against all outcomes of small masks one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

from sparsebert.dam.priced_tiles import PricedTiles
from sparsebert.dam.structure import first_in_group
from tests.dam.dams import STRUCTURES, make


def some_tiles(dam: object, entry: float | None = None) -> PricedTiles:
    """Groups of any rows, other ones in other columns, and prices without rhyme or reason."""
    n, heads = dam.seq_len, dam.num_layers * dam.num_heads  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(3)
    group = torch.randint(3, (heads, n, n), generator=generator)
    layout = dam.layout  # type: ignore[attr-defined]
    first = torch.stack([torch.from_numpy(first_in_group(layout, g.numpy())) for g in group])
    column = 1 + torch.rand(heads, 3, generator=generator, dtype=torch.float64)
    return PricedTiles(group, first, column, entry, 0.0 if entry is None else 0.3)


def cost_of(mask: torch.Tensor, tiles: PricedTiles, head: int) -> torch.Tensor:
    """What each column of each group costs, [2, groups, N]: gathered, or with entries alone."""
    costs = torch.zeros(2, 3, len(mask), dtype=torch.float64)
    for i, j in mask.nonzero().tolist():
        group = int(tiles.group[head, i, j])
        costs[0, group, j] = tiles.column[head, group]
        if tiles.entry is not None:
            costs[1, group, j] = max(costs[1, group, j].item(), tiles.entry_column)
    if tiles.entry is not None:
        for i, j in mask.nonzero().tolist():
            costs[1, int(tiles.group[head, i, j]), j] += tiles.entry
    return costs


@pytest.mark.parametrize("entry", [None, 0.4])
@pytest.mark.parametrize("name", STRUCTURES)
def test_expected_cost(name: str, entry: float | None) -> None:
    """The sum over all outcomes, each with its probability; of two ways the cheaper one."""
    n = 3 if name == "full" else 4
    dam = make(name, heads=2, n=n)
    tiles = some_tiles(dam, entry)
    total = torch.zeros((), dtype=torch.float64)
    for head in range(2):
        p = torch.sigmoid(dam.alpha[0, head])
        expected = torch.zeros(2, 3, n, dtype=torch.float64)
        for outcome in itertools.product((0.0, 1.0), repeat=len(p)):
            kept = torch.tensor(outcome, dtype=torch.float64)
            chance = torch.where(kept > 0, p, 1 - p).prod()
            expected = expected + chance * cost_of(kept[dam.index], tiles, head)
        total = total + (expected[0] if entry is None else expected.amin(0)).sum()
    got = dam.penalty("plan", tiles=tiles)
    torch.testing.assert_close(got, total, rtol=1e-12, atol=0)
    grads = [torch.autograd.grad(x, dam.alpha, retain_graph=True)[0] for x in (got, total)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", STRUCTURES)
def test_gradient(name: str) -> None:
    dam = make(name, heads=2, n=5)
    tiles = some_tiles(dam, entry=0.4)

    def cost(alpha: torch.Tensor) -> torch.Tensor:
        return tiles.expected(dam.expand(functional.logsigmoid(-alpha)))

    assert torch.autograd.gradcheck(cost, (dam.alpha.detach().requires_grad_(),))


def test_one_kind_of_groups_for_all_heads() -> None:
    dam = make("full", layers=2, heads=2, n=5)
    rows = torch.tensor([1, 0, 1, 0, 0])[None, :, None].expand(1, 5, 5)
    one = PricedTiles(rows, None, torch.tensor([[2.0, 3.0]]))
    all_ = PricedTiles(rows.repeat(4, 1, 1), None, one.column.repeat(4, 1))
    p = dam.probabilities()
    even, odd = ((1 - (1 - p[:, :, i]).prod(2)).sum() for i in ([1, 3, 4], [0, 2]))
    for tiles in (one, all_):
        got = dam.penalty("plan", tiles=tiles)
        torch.testing.assert_close(got, 2 * even + 3 * odd, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """Sure positions have finite values and gradients; sums are not those of 16 bits."""
    exact = make("full", n=40)
    dam = make("full", n=40, dtype=dtype)
    with torch.no_grad():
        values = torch.where(exact.alpha > 0, 30.0, -30.0)
        exact.alpha.copy_(values)
        dam.alpha.copy_(values)
    tiles = PricedTiles(torch.zeros(1, 40, 40, dtype=torch.int64), None, torch.ones(1, 1))
    got = dam.penalty("plan", tiles=tiles)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact.penalty("plan", tiles=tiles), rtol=0, atol=1e-3)
    got.backward()
    assert dam.alpha.grad.isfinite().all()


def test_moving_keeps_what_is_no_tensor() -> None:
    tiles = some_tiles(make("full"), entry=0.4).to(torch.device("meta"))
    assert tiles.group.device.type == tiles.column.device.type == "meta"
    assert (tiles.entry, tiles.entry_column) == (0.4, 0.3)


def test_errors() -> None:
    dam = make("full")
    with pytest.raises(ValueError, match="needs the tiles of a plan"):
        dam.penalty("plan")
    with pytest.raises(ValueError, match="the others take none"):
        dam.penalty("expected_l1", tiles=some_tiles(dam))
