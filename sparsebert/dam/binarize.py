"""From the logits of a DAM to an AttentionMask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sparsebert.dam.priced_tiles import PricedTiles
from sparsebert.dam.within_budget import best_within_budget
from sparsebert.masks import AttentionMask
from sparsebert.support import checks

_NAME = "binarize"
SCOPES = ("head", "global")


def binary_mask(
    logits: torch.Tensor,
    index: torch.Tensor,
    *,
    threshold: float | None,
    sparsity: float | None,
    executed: float | None,
    tiles: PricedTiles | Sequence[PricedTiles] | None,
    scope: str,
    without_diagonal: bool,
    keep_tokens: Sequence[int],
    allow_empty_rows: bool,
    settings: dict[str, Any],
) -> AttentionMask:
    """The mask [L, H, N, N] of the positions with the highest probabilities.

    Args:
        logits: alpha [L, H, P], whose sigmoid is the probability.
        index: int64 [N, N], the parameter of each position.
        settings: of the module that was trained, for the mask's provenance.

    The rest, and the errors: see `DifferentiableAttentionMask.binarize`.
    """
    limits = {"threshold": threshold, "sparsity": sparsity, "executed": executed}
    if sum(value is not None for value in limits.values()) > 1:
        raise ValueError(f"{_NAME}: give threshold, sparsity or executed, not several")
    if (executed is None) != (tiles is None):
        raise ValueError(
            f"{_NAME}: executed={executed} with tiles={type(tiles).__name__}; executed is a share "
            "of what tiles compute, so give both (MaskSearch has them as `tiles`), or none"
        )
    if scope not in SCOPES:
        raise ValueError(f"{_NAME}: scope must be one of {SCOPES}, got {scope!r}")
    if threshold is None and sparsity is None and executed is None:
        threshold = 0.5
    for name, value in limits.items():
        if value is not None and not 0.0 <= value < 1.0:
            raise ValueError(f"{_NAME}: {name} must be in [0, 1), got {value}")
    n = len(index)
    tokens = checks.positions(_NAME, "keep_tokens", keep_tokens, n)
    alpha = logits.detach().double().cpu().numpy()
    if not np.isfinite(alpha).all():
        raise ValueError(
            f"{_NAME}: alpha holds NaN or infinite values; the training went wrong, go back to an "
            "earlier checkpoint"
        )
    positions = index.cpu().numpy()

    # A position may be kept (`open`), must be (`forced`), or follows its parameter.
    open_ = ~np.eye(n, dtype=bool) if without_diagonal else np.ones((n, n), dtype=bool)
    forced = np.zeros((n, n), dtype=bool)
    forced[tokens, :] = True
    forced[:, tokens] = True
    forced &= open_
    heads = alpha.reshape(-1, alpha.shape[-1])
    tokens_stay = np.broadcast_to(forced, (len(heads), n, n))
    must = tokens_stay.copy()
    if not allow_empty_rows:
        for head, values in zip(must, heads, strict=True):
            _add_likeliest(head, values[positions], open_)

    if threshold is not None:
        # In the module's own precision, so that it agrees with its probabilities.
        above = (torch.sigmoid(logits.detach()) > threshold).cpu().numpy()
        kept = above.reshape(len(heads), -1)[:, positions] & open_
        kept |= must
    else:
        groups = [[head] for head in range(len(heads))]
        if scope == "global":
            groups = [list(range(len(heads)))]
        kept = np.empty_like(must)
        for group in groups:
            some, needed = heads[group], must[group]
            if sparsity is not None:
                kept[group] = _most_probable(some, positions, open_, needed, sparsity)
            else:
                assert executed is not None and tiles is not None
                # Its sum over a column is -log of the chance that no row needs the column.
                worth = np.logaddexp(0.0, some[:, positions])
                choices = [tiles] if isinstance(tiles, PricedTiles) else tiles
                kept[group] = best_within_budget(
                    worth,
                    tokens_stay[group],
                    needed,
                    open_,
                    [each.of_heads(group) for each in choices],
                    executed * worth.size,
                    allow_empty_rows,
                )
    chosen: dict[str, Any] = {
        "dam": settings,
        "threshold": threshold,
        "sparsity": sparsity,
        **({} if executed is None else {"executed": executed}),
        "scope": scope,
        "without_diagonal": bool(without_diagonal),
        "keep_tokens": tokens,
        "allow_empty_rows": bool(allow_empty_rows),
    }
    return AttentionMask.from_dense(kept.reshape(*alpha.shape[:2], n, n), provenance=chosen)


def _add_likeliest(
    must: npt.NDArray[np.bool_], values: npt.NDArray[np.float64], open_: npt.NDArray[np.bool_]
) -> None:
    """Add to `must` [N, N] the likeliest position of every row that has none."""
    best = np.where(open_, values, -np.inf).argmax(axis=1)
    rows = np.flatnonzero(~must.any(axis=1) & open_.any(axis=1))
    must[rows, best[rows]] = True


def _most_probable(
    heads: npt.NDArray[np.float64],
    index: npt.NDArray[np.int64],
    open_: npt.NDArray[np.bool_],
    must: npt.NDArray[np.bool_],
    sparsity: float,
) -> npt.NDArray[np.bool_]:
    """bool [heads, N, N]: `must`, then whole parameters by probability, within the budget.

    Positions that share a parameter come and go together, except that the diagonal, kept tokens
    and rows' likeliest positions are single positions.
    """
    count, parameters = heads.shape
    # Rounding errors in (1 - 0.9) * N * N must not cost a position; nothing else adds one.
    rounding = 4.0 * float(np.finfo(float).eps)
    budget = int(np.floor((1.0 - sparsity + rounding) * index.size * count))
    kept = must.copy()
    used = int(kept.sum())
    if used > budget:
        raise ValueError(
            f"{_NAME}: sparsity={sparsity} leaves {budget} positions of {index.size * count}, but "
            f"{used} must stay (kept tokens, and at least one position a row); ask for at most "
            f"{1.0 - used / (index.size * count):.4f}, or allow_empty_rows=True"
        )
    free = np.stack(
        [np.bincount(index[open_ & ~head], minlength=parameters)[:parameters] for head in must]
    )  # [heads, P] positions that each parameter would add
    order = np.argsort(-heads, axis=None, kind="stable")
    taken = np.cumsum(free.reshape(-1)[order]) <= budget - used
    chosen = np.zeros(heads.size, dtype=bool)
    chosen[order[taken]] = True
    return kept | (chosen.reshape(heads.shape)[:, index] & open_)
