"""The paper's importance analysis: which kinds of positions a model keeps.

>>> import torch, sparsebert as sb
>>> from sparsebert.dam.importance import group_importance
>>> dam = sb.DifferentiableAttentionMask(1, 2, 16)
>>> sorted(group_importance(dam.probabilities()))
['diagonal', 'neighbourhood', 'others', 'special']
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsebert.support import checks

GROUPS = ("diagonal", "neighbourhood", "special", "others")

_NAME = "position_groups"


def position_groups(
    seq_len: int, *, special_tokens: Sequence[int] = (0, -1), neighbourhood: int = 1
) -> dict[str, torch.Tensor]:
    """The four groups of positions, bool [N, N] each; every position is in exactly one.

    Args:
        seq_len: N.
        special_tokens: positions of [CLS] and [SEP]; negative ones count from the end.
        neighbourhood: largest distance abs(i - j) that counts as a neighbour.

    Groups, a position in several belonging to the first:

        diagonal: i = j.
        special: rows and columns of the special tokens.
        neighbourhood: 1 <= abs(i - j) <= neighbourhood.
        others: the rest.

    Raises:
        ValueError: a special token outside the sequence.
    """
    n = checks.integer(_NAME, "seq_len", seq_len, 1)
    checks.integer(_NAME, "neighbourhood", neighbourhood, 1)
    tokens = checks.positions(_NAME, "special_tokens", special_tokens, n)
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    diagonal = i == j
    is_special = torch.zeros(n, dtype=torch.bool)
    is_special[tokens] = True
    special = (is_special[:, None] | is_special[None, :]) & ~diagonal
    near = ((i - j).abs() <= neighbourhood) & ~diagonal & ~special
    groups = {"diagonal": diagonal, "neighbourhood": near, "special": special}
    return groups | {"others": ~(diagonal | near | special)}


def group_importance(
    probabilities: torch.Tensor,
    *,
    special_tokens: Sequence[int] = (0, -1),
    neighbourhood: int = 1,
) -> dict[str, float]:
    """Mean probability in each group of positions, over all layers and heads.

    Args:
        probabilities: [..., N, N], from 0 to 1 (`DifferentiableAttentionMask.probabilities`, a
            mask's `dense()`, or attention probabilities).
        special_tokens, neighbourhood: see `position_groups`.

    A group without positions (no special tokens, N = 1) is left out.
    """
    groups = position_groups(
        probabilities.shape[-1], special_tokens=special_tokens, neighbourhood=neighbourhood
    )
    mean = probabilities.detach().double().reshape(-1, *probabilities.shape[-2:]).mean(0).cpu()
    return {name: mean[group].mean().item() for name, group in groups.items() if group.any()}
