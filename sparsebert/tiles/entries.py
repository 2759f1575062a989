"""Single entries: positions of a mask that stand alone, each row's columns in a short list.

They are stored for all rows of all heads together: row r of distinct head u is row
u * num_rows + r of the list, and its columns ascend.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sparsebert.masks.bits import Bits, Int64Array

_BYTES_AT_ONCE = 1 << 22
"""Bytes of bits that are looked through at once, so that no temporary is large."""


class Entries(NamedTuple):
    """Single entries of some rows.

    Attributes:
        start: int64 [rows + 1], where each row's columns begin in `cols`.
        cols: int32, columns, ascending within a row.
    """

    start: Int64Array
    cols: np.ndarray


def no_entries(rows: int) -> Entries:
    """None, for so many rows."""
    return Entries(np.zeros(rows + 1, dtype=np.int64), np.zeros(0, dtype=np.int32))


def list_entries(bits: dict[int, Bits], num_heads: int, num_rows: int) -> Entries:
    """The ones of some heads' bits, uint8 [num_rows, ceil(M / 8)] by distinct head."""
    count = np.zeros((num_heads, num_rows), dtype=np.int64)
    for head, packed in bits.items():
        count[head] = np.bitwise_count(packed).sum(axis=1, dtype=np.int64)
    start = _starts(count.reshape(-1))
    cols = np.empty(start[-1], dtype=np.int32)
    for head, packed in bits.items():
        step = max(1, _BYTES_AT_ONCE // max(1, packed.shape[1]))
        for first in range(0, num_rows, step):
            part = packed[first : first + step]
            byte = np.flatnonzero(part != 0)
            ones = np.unpackbits(part.reshape(-1)[byte], bitorder="little").view(bool)
            place = np.flatnonzero(ones)
            begin = start[head * num_rows + first]
            column = (byte % part.shape[1] * 8)[place >> 3] + (place & 7)
            cols[begin : begin + len(place)] = column
    return Entries(start, cols)


def rows_of(entries: Entries) -> Int64Array:
    """The row of each entry, int64."""
    rows: Int64Array = np.repeat(np.arange(len(entries.start) - 1), np.diff(entries.start))
    return rows


def crop_entries(
    entries: Entries, num_heads: int, was_rows: int, num_rows: int, num_cols: int
) -> Entries:
    """Those in the first `num_rows` rows of each head and the first `num_cols` columns."""
    if not len(entries.cols):
        return no_entries(num_heads * num_rows)
    head, row = np.divmod(rows_of(entries), was_rows)
    kept = (row < num_rows) & (entries.cols < num_cols)
    count = np.bincount((head * num_rows + row)[kept], minlength=num_heads * num_rows)
    return Entries(_starts(count), entries.cols[kept])


def pick_rows(entries: Entries, kept: np.ndarray) -> Entries:
    """Those of the rows that `kept`, bool [rows], names; the other rows have none."""
    count = np.where(kept, np.diff(entries.start), 0)
    return Entries(_starts(count), entries.cols[np.repeat(kept, np.diff(entries.start))])


def join_entries(parts: list[Entries]) -> Entries:
    """Those of all parts, which have them in different rows."""
    start = _starts(sum((np.diff(part.start) for part in parts[1:]), np.diff(parts[0].start)))
    cols = np.empty(start[-1], dtype=np.int32)
    for part in parts:
        moved = np.repeat((start - part.start)[:-1], np.diff(part.start))
        cols[moved + np.arange(len(part.cols))] = part.cols
    return Entries(start, cols)


def _starts(count: np.ndarray) -> Int64Array:
    return np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
