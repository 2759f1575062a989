"""The groups of positions whose importance is logged: diagonal, neighbourhood, special, others."""

from __future__ import annotations

import pytest
import torch

from sparsebert.dam.importance import group_importance, position_groups


def test_groups_split_the_positions() -> None:
    groups = position_groups(6, special_tokens=(0, -1), neighbourhood=2)
    assert torch.stack(list(groups.values())).sum(0).eq(1).all()
    assert groups["diagonal"].sum() == 6
    assert groups["special"].sum() == 4 * 6 - 4 - 2  # two rows and columns without the diagonal
    i, j = groups["neighbourhood"].nonzero(as_tuple=True)
    assert set((i - j).abs().tolist()) == {1, 2} and not {0, 5} & set(i.tolist())
    values = groups["diagonal"] * 0.5 + groups["special"] * 1.0
    mean = group_importance(values.expand(2, 3, 6, 6), neighbourhood=2)
    assert mean == {"diagonal": 0.5, "special": 1.0, "neighbourhood": 0.0, "others": 0.0}
    with pytest.raises(ValueError, match="special_tokens"):
        position_groups(4, special_tokens=(4,))


def test_groups_by_default() -> None:
    """The first and the last position are special, one position each side is near."""
    groups = position_groups(5)
    for name in ("diagonal", "neighbourhood", "special", "others"):
        given = position_groups(5, special_tokens=(0, 4), neighbourhood=1)
        assert torch.equal(groups[name], given[name])
    values = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    mean = group_importance(values)
    assert list(mean) == list(groups)
    for name, group in groups.items():
        assert mean[name] == pytest.approx(values[..., group].mean().item())
    assert set(group_importance(torch.ones(1, 1))) == {"diagonal"}  # the others have no position
