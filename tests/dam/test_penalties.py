"""What a mask to be learned costs: L1 and the expected executed area."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.dam.dams import STRUCTURES, make


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
