"""From probabilities to a mask: thresholds, sparsity, what must stay, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.dam.dams import STRUCTURES, make


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
        ({"threshold": 0.5, "sparsity": 0.5}, r"threshold, sparsity or executed, not several"),
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
