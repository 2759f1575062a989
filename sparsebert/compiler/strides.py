"""Strides of a mask, read off how dense it is at each distance between query and key."""

from __future__ import annotations

import numpy as np

from sparsebert.masks.bits import unpack

_SAMPLED_ROWS = 256
_IS_STRONG = 0.3
"""A distance belongs to the structure of the mask if this share of its positions is allowed."""

_LEAST_EXCESS = 0.5
"""Distances that the multiples of a stride must have beyond what chance would give them."""

_LEAST_POSITIONS = 16
"""Fewer sampled positions at a distance say nothing."""


def distance_profile(packed: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of allowed positions at each distance |i - j|, float [columns], of sampled rows.

    Also how many sampled positions have that distance, int64 [columns].
    """
    rows = np.unique(np.linspace(0, len(packed) - 1, _SAMPLED_ROWS).astype(np.int64))
    sample, column = np.nonzero(unpack(packed[rows], columns))
    found = np.bincount(np.abs(column - rows[sample]), minlength=columns)[:columns]
    # Row i has a position at distance d on its left where d <= i < d + columns, on its right where
    # i < columns - d; counting the rows for which a distance exists turns counts into shares.
    distance = np.arange(columns)
    left = np.searchsorted(rows, distance + columns) - np.searchsorted(rows, distance)
    right = np.searchsorted(rows, columns - distance)
    right[0] = 0  # the same position as on the left
    exists = left + right
    return found / np.maximum(1, exists), exists


def find_strides(packed: np.ndarray, columns: int, limit: int) -> list[int]:
    """At most `limit` strides s such that multiples of s are much denser than other distances.

    The excess of s is the sum of the profile over the multiples of s, less what as many distances
    of mean density would have; only distances up to the farthest strong one count.
    """
    profile, positions = distance_profile(packed, columns)
    strong = np.flatnonzero((profile >= _IS_STRONG) & (positions >= _LEAST_POSITIONS))
    reach = int(strong[-1]) if len(strong) else 0
    if reach < 2:
        return []
    inside = profile[1 : reach + 1]
    mean = inside.mean()
    excess = np.array([(inside[s - 1 :: s] - mean).sum() for s in range(2, reach + 1)])
    best = np.argsort(-excess, kind="stable")[:limit]
    return [int(s) + 2 for s in best if excess[s] >= _LEAST_EXCESS]
