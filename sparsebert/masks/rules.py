"""What patterns are made of: rules on positions, keys drawn at random, checks and warnings."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np

from sparsebert.masks.bits import (
    CHUNK,
    Bits,
    Bool,
    Int32Array,
    Int64Array,
    check_size,
    pack,
    row_bytes,
)
from sparsebert.masks.mask import AttentionMask
from sparsebert.support.checks import integer

Rule = Callable[[Int32Array, Int32Array], Bool]
"""Whether query i may attend to key j: of i [rows, 1] and j [1, N], bool [rows, N]."""


def mask_of_rule(name: str, n: int, rule: Rule, **parameters: int) -> AttentionMask:
    """The pattern `name` of n tokens; its record has the parameters.

    Raises ValueError if the mask would be too large, see `check_size`.
    """
    check_size(name, 1, n, n)
    return mask_of_bits(from_rule(n, rule), n, {"pattern": name, "seq_len": n, **parameters})


def mask_of_bits(bits: Bits, n: int, record: dict[str, Any]) -> AttentionMask:
    """The mask of these bits; warns if its parameters make it forbid nothing."""
    mask = AttentionMask.from_packed(bits, n, record, bitorder="little")
    sizes = {
        k: v for k, v in record.items() if k not in ("pattern", "seq_len", "seed", "num_heads")
    }
    if sizes and n > 1 and sizes.get("density") != 1.0 and mask.density == 1.0:
        given = ", ".join(f"{name}={value}" for name, value in sizes.items())
        warn(
            f"{record['pattern']}: {given} forbid nothing among {n} tokens; ask for less, or "
            f"write patterns.dense({n}) if that is meant"
        )
    return mask


def distance(i: Int32Array, j: Int32Array) -> Int32Array:
    """abs(i - j)."""
    gap: Int32Array = np.abs(i - j)
    return gap


def count(where: str, argument: str, value: int, least: int) -> int:
    """A number of tokens or heads, at least `least`; positions are 32-bit."""
    return integer(where, argument, value, least, 2**31 - 1)


def check_seed(where: str, value: int) -> int:
    """The argument `seed`, 64 bits."""
    return integer(where, "seed", value, 0, 2**64 - 1)


def warn(message: str) -> None:
    """A warning that points to the first line outside of the masks' modules."""
    level = 2  # 1 is this function
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(__package__ + "."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def from_rule(n: int, rule: Rule) -> Bits:
    """Bits [N, ceil(N / 8)] of rule(i, j), some rows at a time."""
    keys = np.arange(n, dtype=np.int32)[None, :]
    bits = np.empty((n, row_bytes(n)), dtype=np.uint8)
    step = max(1, CHUNK // n)
    for start in range(0, n, step):
        queries = np.arange(start, min(n, start + step), dtype=np.int32)[:, None]
        bits[start : start + step] = pack(rule(queries, keys))
    return bits


def draw_keys(
    counts: Int64Array,
    number: int,
    seed: int,
    head: int,
    key_of: Callable[[Int64Array], Int64Array] = lambda rank: rank,
) -> Bits:
    """Bits [N, ceil(N / 8)]: for each row, `number` different keys, all choices equally likely.

    Row i has counts[i] candidates, the keys key_of(0), ..., key_of(counts[i] - 1), and gets all
    of them if there are no more than `number`.

    The draw is the same on every machine and in every version.  Head h takes the 64-bit words
    of NumPy's ``Philox(key=seed, counter=h << 192)`` (a published counter-based generator; the
    raw stream of a NumPy bit generator does not change) and uses their upper 32 bits u.  For
    k keys out of c, Floyd's algorithm takes the steps j = c - k, ..., c - 1; each step takes
    one word for every row, in order of rows, and draws the candidate
    t = floor(u * (j + 1) / 2**32).  t joins the row's set; or j does, if t is in it already.
    """
    n = len(counts)
    words = np.random.Philox(key=seed, counter=head << 192)
    bits = np.zeros((n, row_bytes(n)), dtype=np.uint8)
    size = np.minimum(counts, number)
    for step in range(int(size.max())):
        last = counts - size + step  # j
        upper = words.random_raw(n) >> np.uint64(32)
        drawn = ((upper * (last + 1).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
        rows = np.flatnonzero(step < size)  # the others have all their keys and draw in vain
        key, last_key = key_of(drawn)[rows], key_of(last)[rows]
        taken = (bits[rows, key >> 3] >> (key & 7).astype(np.uint8)) & 1
        key = np.where(taken, last_key, key)
        bits[rows, key >> 3] |= np.uint8(1) << (key & 7).astype(np.uint8)
    return bits
