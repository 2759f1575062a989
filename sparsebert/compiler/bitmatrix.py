"""Packed bit matrices as 64-bit words: uint64 [rows, ceil(columns / 64)].

Bit j of a row is bit j % 64 of word j // 64: the little-endian bytes of a mask, eight at a time,
so that one numpy operation handles 64 entries.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparsebert.masks.bits import Bits, Int64Array, pack, row_bytes, unpack

Words = npt.NDArray[np.uint64]


def to_words(packed: Bits) -> Words:
    """Mask bytes, uint8 [rows, bytes], as words."""
    padded = np.zeros((len(packed), -(-packed.shape[1] // 8) * 8), dtype=np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view("<u8")


def to_bytes(words: Words, columns: int) -> Bits:
    """The inverse of `to_words`: uint8 [rows, ceil(columns / 8)]."""
    return words.view(np.uint8)[:, : row_bytes(columns)]


def count(words: Words) -> Int64Array:
    """Ones along the last axis, int64."""
    total: Int64Array = np.bitwise_count(words).sum(axis=-1, dtype=np.int64)
    return total


def take(words: Words, slots: np.ndarray) -> Words:
    """The rows that `slots` [...] names, zeros where it is negative: uint64 [..., words]."""
    taken: Words = words[slots]
    taken[slots < 0] = 0
    return taken


def columns_with(rows: Words, at_least: int | np.ndarray) -> Words:
    """Columns that at least `at_least` of the rows have: [..., R, words] -> [..., words].

    R is a power of two, `at_least` is 1 or more, for all or for each [...]. Rows are added up
    column by column in carry-save form: plane p of a sum is a row of bits, bit p of each column's
    count. Counts are compared by subtracting: what borrows in the end is less.
    """
    planes = [rows]
    while planes[0].shape[-2] > 1:
        left = [plane[..., 0::2, :] for plane in planes]
        right = [plane[..., 1::2, :] for plane in planes]
        total, carry = [], np.zeros_like(left[0])
        for a, b in zip(left, right, strict=True):
            either = a ^ b
            total.append(either ^ carry)
            carry = (a & b) | (carry & either)
        planes = [*total, carry]
    needed = np.asarray(at_least)[..., None]
    less = np.zeros_like(planes[0][..., 0, :])
    for place in range(int(needed.max(initial=0)).bit_length()):
        bit = np.where(needed >> place & 1, ~np.uint64(0), np.uint64(0))
        absent = ~planes[place][..., 0, :] if place < len(planes) else ~np.uint64(0)
        less = (absent & (bit | less)) | (bit & less)
    for plane in planes[int(needed.max(initial=0)).bit_length() :]:
        less &= ~plane[..., 0, :]
    return ~less


def column_range(start: int, stop: int, num_words: int) -> Words:
    """One row of words whose bits start .. stop - 1 are set."""
    inside = np.zeros(num_words * 64, dtype=bool)
    inside[start:stop] = True
    row: Words = to_words(pack(inside[None]))[0]
    return row


def transpose(packed: Bits, columns: int) -> Bits:
    """The transpose of mask bytes, [columns, ceil(rows / 8)], in blocks of bounded memory."""
    rows = len(packed)
    result = np.zeros((columns, row_bytes(rows)), dtype=np.uint8)
    step = 1024
    for start in range(0, rows, step):
        block = pack(np.ascontiguousarray(unpack(packed[start : start + step], columns).T))
        result[:, start // 8 : start // 8 + block.shape[1]] = block
    return result
