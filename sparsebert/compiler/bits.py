"""Packed bit matrices: uint8 [rows, ceil(columns / 8)], bit j of a row at byte j // 8, bit j % 8."""

from __future__ import annotations

import numpy as np


def count(bits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Ones along an axis of bytes, int64."""
    return np.bitwise_count(bits).sum(axis=axis, dtype=np.int64)


def unpack(bits: np.ndarray, columns: int) -> np.ndarray:
    """bool [rows, columns]."""
    return np.unpackbits(bits, axis=-1, count=columns, bitorder="little").view(bool)


def pack(dense: np.ndarray) -> np.ndarray:
    """The inverse of `unpack`."""
    return np.packbits(dense, axis=-1, bitorder="little")


def transpose(bits: np.ndarray, columns: int) -> np.ndarray:
    """The packed transpose, [columns, ceil(rows / 8)], in blocks of bounded memory."""
    rows = len(bits)
    result = np.zeros((columns, -(-rows // 8)), dtype=np.uint8)
    step = 1024
    for start in range(0, rows, step):
        block = pack(np.ascontiguousarray(unpack(bits[start : start + step], columns).T))
        result[:, start // 8 : start // 8 + block.shape[1]] = block
    return result
