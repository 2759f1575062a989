"""Row orders: ways to group the rows of a mask so that rows of one group share columns.

An order is a list of groups, none of which a tile may straddle: rows int32 [groups, size], size a
power of two from 16 to 128, -1 in the empty slots at the end of a group.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sparsebert.compiler import bitmatrix

SMALLEST = 16
"""Rows of the smallest tile, and of the smallest group."""

_SHORTLIST = 6
"""Growing a group of R rows looks at the 6 R rows that are closest to its first one."""

_SAMPLED_WORDS = 32
"""How close rows are to the first one is judged by about this many words of each."""

_TAKEN = 1 << 40
"""More than any row can add to a union."""


@dataclasses.dataclass(frozen=True)
class Order:
    """A way to group rows, see the module's text."""

    name: str
    rows: np.ndarray


def in_order(rows: np.ndarray, size: int) -> Order:
    """The rows as they come, `size` a group."""
    return Order("rows in order", _split(rows, min(size, _group_size(len(rows)))))


def equal_rows(words: np.ndarray, rows: np.ndarray, size: int) -> Order | None:
    """Rows that are equal bit for bit, together; None where few are."""
    used = words[rows]
    _, first, kind = np.unique(_hashes(used), return_index=True, return_inverse=True)
    if (used != used[first][kind]).any():  # two of them have the same hash by accident
        _, first, kind = np.unique(used, axis=0, return_index=True, return_inverse=True)
    if len(first) * SMALLEST > len(rows) * 2:
        return None
    key = first[kind.reshape(-1)]  # kinds in the order of their first row
    return Order("equal rows together", _split_by_key(rows, key, size))


def _hashes(words: np.ndarray) -> np.ndarray:
    """A number for each row, the same for equal rows: much quicker to compare."""
    odd = np.random.default_rng(0).integers(0, 1 << 63, words.shape[1], dtype=np.uint64) * 2 + 1
    mixed = words ^ (words >> np.uint64(32))  # high bits alone would leave little of the factors
    hashes: np.ndarray = (mixed * odd).sum(axis=1)
    return hashes


def folded(rows: np.ndarray, stride: int, strip: int, offset: int, size: int) -> Order:
    """Positions folded into a grid `stride` wide, cut into vertical strips `strip` wide.

    Groups follow a strip downwards. Strips of width 1 are residue classes, for strided masks;
    wider ones make patches, for neighbourhoods on images. `offset` is where the grid begins.
    """
    line, place = np.divmod(rows - offset, stride)
    order = np.lexsort((place, line, place // strip))
    ordered = rows[order]
    name = f"residue classes mod {stride}"
    if strip > 1:
        name = f"patches {strip} wide of a grid {stride} wide"
    return Order(name, _split_by_key(ordered, place[order] // strip, size))


def union_growth(words: np.ndarray, rows: np.ndarray, long: np.ndarray, size: int) -> Order:
    """Groups grown greedily: each takes the row that adds the fewest columns to its union.

    `long` rows, which would swallow any group, stay by themselves. A group starts with the first
    row left, and grows among the rows that add the least to that one (by a sample of columns, if
    there are many), so that the work is O(rows^2 / size + rows * size) row operations, not
    O(rows^2).
    """
    left, groups = rows, []
    sample = np.ascontiguousarray(words[:, :: max(1, words.shape[1] // _SAMPLED_WORDS)])
    while len(left):
        growth = bitmatrix.count(sample[left] & ~sample[left[0]])
        growth[0] = -1
        if len(left) > _SHORTLIST * size:
            near = np.argpartition(growth, _SHORTLIST * size)[: _SHORTLIST * size]
            near = near[np.argsort(growth[near], kind="stable")]
        else:
            near = np.argsort(growth, kind="stable")
        chosen = near[_grow(words[left[near]], size)]
        groups.append(left[chosen])
        left = np.delete(left, chosen)
    if len(long):
        groups.append(long)
    slots = [_split(group, size) for group in groups]
    return Order(f"greedy groups of {size}", np.concatenate(slots))


def _grow(candidates: np.ndarray, size: int) -> list[int]:
    """Which candidates join the first one, in the order of joining.

    What a candidate would add is counted once, then only where the union has grown.
    """
    chosen, union = [0], candidates[0].copy()
    growth = bitmatrix.count(candidates & ~union)
    growth[0] = _TAKEN
    by_word = np.ascontiguousarray(candidates.T)
    for _ in range(min(size, len(candidates)) - 1):
        best = int(growth.argmin())
        chosen.append(best)
        new = candidates[best] & ~union
        union |= new
        words = np.flatnonzero(new)
        covered = np.bitwise_count(by_word[words] & new[words, None])
        growth -= covered.sum(axis=0, dtype=np.int64)
        growth[best] = _TAKEN
    return chosen


def _split(rows: np.ndarray, size: int) -> np.ndarray:
    """Consecutive groups of `size` rows."""
    slots = np.full(-(-len(rows) // size) * size, -1, dtype=np.int32)
    slots[: len(rows)] = rows
    return slots.reshape(-1, size)


def _split_by_key(rows: np.ndarray, key: np.ndarray, size: int) -> np.ndarray:
    """Groups of `size` rows of equal key; keys in ascending order, rows in the order given."""
    _, kind, members = np.unique(key, return_inverse=True, return_counts=True)
    size = min(size, _group_size(int(members.max(initial=1))))
    groups = -(-members // size)
    first_slot = (np.cumsum(groups) - groups) * size
    order = np.argsort(kind, kind="stable")
    rank = np.arange(len(rows)) - (np.cumsum(members) - members)[kind[order]]
    slots = np.full(int(groups.sum()) * size, -1, dtype=np.int32)
    slots[first_slot[kind[order]] + rank] = rows[order]
    return slots.reshape(-1, size)


def _group_size(rows: int) -> int:
    """The smallest group that holds so many rows."""
    return max(SMALLEST, 1 << max(0, rows - 1).bit_length())
