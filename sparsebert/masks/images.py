"""Masks as small images, without a plotting library.

An image has cells, each of the same number of positions along both axes, so that equal lines of a
mask look equal wherever they are: `shares` averages over a cell, and nothing is sampled.

    >>> import numpy as np
    >>> from sparsebert.masks.bits import pack
    >>> shares(pack(np.eye(4, dtype=np.bool_)), 4, step=2)
    array([[0.5, 0. ],
           [0. , 0.5]], dtype=float32)
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sparsebert.masks.bits import CHUNK, Bits, unpack

if TYPE_CHECKING:
    from sparsebert.masks.mask import AttentionMask

_ALLOWED = np.array([8, 81, 156])  # the blue of a position that may be attended to

Image = npt.NDArray[np.uint8]
"""RGB, [rows, columns, 3]."""


def step_for(q_len: int, kv_len: int, most: int) -> int:
    """Positions along each edge of a cell, for an image of at most `most` x `most` cells."""
    return max(1, -(-max(q_len, kv_len) // most))


def shares(bits: Bits, kv_len: int, step: int) -> npt.NDArray[np.float32]:
    """The share of allowed positions in each step x step cell of one head's bits [N, W].

    Cells at the lower and right edge, which may reach beyond the mask, count what is inside.
    """
    rows = step * max(1, CHUNK // (step * kv_len))
    parts = [
        mean_cells(unpack(bits[r : r + rows], kv_len), step) for r in range(0, len(bits), rows)
    ]
    return np.concatenate(parts)


def mean_cells(values: npt.NDArray[np.generic], step: int) -> npt.NDArray[np.float32]:
    """The mean of each step x step cell of [N, M] or [N, M, channels]."""
    if step == 1:
        return values.astype(np.float32)
    rows, columns = (np.arange(0, length, step) for length in values.shape[:2])
    sums = np.add.reduceat(values, columns, axis=1, dtype=np.float32)
    sums = np.add.reduceat(sums, rows, axis=0)
    high, wide = (
        np.diff(np.append(starts, length))
        for starts, length in zip((rows, columns), values.shape[:2], strict=True)
    )
    area = np.multiply.outer(high, wide).astype(np.float32)
    return np.asarray(sums / area.reshape(area.shape + (1,) * (values.ndim - 2)))


def ink(bits: Bits, kv_len: int, step: int) -> npt.NDArray[np.float32]:
    """How dark the cells of one head's bits are drawn, 0 to 1.

    The square root of their `shares` keeps thin lines visible where a cell is many positions.
    """
    return np.sqrt(shares(bits, kv_len, step))


def mask_image(bits: Bits, kv_len: int, most: int) -> Image:
    """One head's bits, blue where positions are allowed, of at most `most` x `most` cells."""
    dark = ink(bits, kv_len, step_for(len(bits), kv_len, most))[..., None]
    return np.asarray(255 - dark * (255 - _ALLOWED)).round().astype(np.uint8)


def png(image: Image) -> bytes:
    """A PNG file of an image."""
    rows, columns, _ = image.shape
    lines = np.zeros((rows, 1 + 3 * columns), dtype=np.uint8)  # each begins with "no filter"
    lines[:, 1:] = image.reshape(rows, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def data_uri(image: Image) -> str:
    """The image for an HTML page that is to be complete in itself."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode("ascii")


def distinct_heads(mask: AttentionMask) -> list[tuple[str, AttentionMask]]:
    """The different heads of a mask, each with a label that says where it is used."""
    places: dict[bytes, list[tuple[int, int]]] = {}
    for layer in range(mask.num_layers):
        for head in range(mask.num_heads):
            places.setdefault(mask.bits[layer, head].tobytes(), []).append((layer, head))
    return [
        (_label(where, mask), mask.layer(where[0][0]).head(where[0][1]))
        for where in places.values()
    ]


def _label(places: list[tuple[int, int]], mask: AttentionMask) -> str:
    layers, heads, *_ = mask.shape
    if len(places) == layers * heads:
        return "all layers and heads"
    first = f"layer {places[0][0]}, head {places[0][1]}" if layers > 1 else f"head {places[0][1]}"
    return f"{first} and {len(places) - 1} more" if len(places) > 1 else first
