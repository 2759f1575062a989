"""Packed mask bits: uint8 rows of ceil(M / 8) bytes, key j in bit j % 8 of byte j // 8.

The padding bits after key M - 1 are zero, always.  Big masks are made here some rows at a time,
so that no temporary is as large as the dense mask.
"""

import os

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

# Positions evaluated at a time: temporaries stay at some tens of megabytes at any length.
CHUNK = 1 << 21

MAX_BYTES = int(os.environ.get("SPARSEBERT_MAX_MASK_BYTES", 2**31))
"""Larger masks are not built from patterns and mask_mods: one head of 131,072 x 131,072 is 2 GiB.

The environment variable SPARSEBERT_MAX_MASK_BYTES, read when this module is imported, raises it.
"""


def check_size(where: str, heads: int, q_len: int, kv_len: int) -> None:
    """Refuse, before memory is asked for, a mask whose bits would take more than `MAX_BYTES`.

    Raises:
        ValueError: with the figure.
    """
    size = heads * q_len * row_bytes(kv_len)
    if size > MAX_BYTES:
        raise ValueError(
            f"{where}: a mask of {heads} x {q_len} x {kv_len} takes {size / 1e9:.1f} GB of bits "
            f"(one a position), more than the {MAX_BYTES / 1e9:.1f} GB that are built; use a "
            f"shorter sequence or fewer heads, or set SPARSEBERT_MAX_MASK_BYTES={size} before "
            "Python starts, if the machine has several times that memory"
        )


def row_bytes(kv_len: int) -> int:
    """Bytes of a row of `kv_len` keys."""
    return (kv_len + 7) // 8


def pack(mask: Bool) -> Bits:
    """bool [..., M] to bits [..., ceil(M / 8)]."""
    return np.packbits(mask, axis=-1, bitorder="little")


def unpack(bits: Bits, kv_len: int) -> Bool:
    """Bits [..., ceil(kv_len / 8)] to a fresh bool [..., kv_len]."""
    return np.unpackbits(bits, axis=-1, count=kv_len, bitorder="little").view(np.bool_)


def padding_is_clear(bits: Bits, kv_len: int) -> bool:
    """Whether all bits after key kv_len - 1 are zero."""
    return kv_len % 8 == 0 or not (bits[..., -1] >> np.uint8(kv_len % 8)).any()


def clear_padding(bits: Bits, kv_len: int) -> None:
    """Zero, in place, the bits after key kv_len - 1."""
    if kv_len % 8:
        bits[..., -1] &= np.uint8((1 << (kv_len % 8)) - 1)


def swap_order(bits: Bits) -> Bits:
    """The same bytes with their bits in the other order, as a fresh array."""
    return np.packbits(np.unpackbits(bits, axis=-1, bitorder="big"), axis=-1, bitorder="little")


def looks_swapped(bits: Bits) -> bool:
    """Whether bits [..., W] look as if packed with the highest bit first, as np.packbits does.

    Over the border of two bytes the right order compares neighbouring keys, the wrong one keys 15
    places apart, while inside of a byte neighbours are neighbours in both.  So the wrong order
    shows where borders look unlike the insides, and like them, and calmer, once swapped.  All
    three must hold, at nine in ten borders and with five standard deviations: random masks,
    periods of 3, 5 and 15 and whatever starts at a byte's border say nothing.
    """
    rows = bits.reshape(-1, bits.shape[-1])
    rows = rows[:: 1 + rows.size // CHUNK]
    left, right = rows[:, :-1], rows[:, 1:]
    as_is = (left >> 7) ^ (right & 1)
    swapped = (left & 1) ^ (right >> 7)
    inside = np.bitwise_count((rows ^ (rows >> 1)) & 0x7F).sum(dtype=np.int64) / (7 * rows.size)
    balance = as_is.sum(axis=0, dtype=np.int64) - swapped.sum(axis=0, dtype=np.int64)  # a border
    decided = int(np.count_nonzero(as_is != swapped))
    if not decided or np.count_nonzero(balance) < min(4, len(balance)):
        return False
    lead = int(balance.sum())  # how many more pairs of neighbours differ as the bits are
    return bool(
        lead >= max(5 * decided**0.5, 0.4 * decided)
        and np.count_nonzero(balance > 0) >= 0.9 * np.count_nonzero(balance)
        and 4 * abs(swapped.mean() - inside) < abs(as_is.mean() - inside)
    )
