"""The mask file: packed bits and a header in one safetensors file, every field checked on reading.

A file holds one tensor, "bits", uint8 [L, H, N, ceil(M / 8)], and in the safetensors metadata,
under the key "sparsebert-mask", a JSON object:

    version        1
    shape          [L, H, N, M]
    provenance     an object: the pattern and its parameters, settings of a training run, ...
    sha256         of the bits
    header_sha256  of the fields above, as JSON with sorted keys and no spaces

So a file cannot lose a byte or change its content or its story unnoticed.

The functions work on plain bits, so that `sparsebert.masks.mask` builds on this module.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sparsebert.masks.bits import Bits, padding_is_clear, row_bytes
from sparsebert.storage import CheckedFile


class MaskFileError(ValueError):
    """A mask file that must not be used; the message says what is wrong with it."""


MASK_FILE = CheckedFile(
    name="mask file",
    key="sparsebert-mask",
    version=1,
    fields=frozenset({"shape", "provenance"}),
    arrays={"bits": ("U8",)},
    writer="AttentionMask.save",
    reader="AttentionMask.load",
    error=MaskFileError,
    sums_inside=True,
)


def save_bits(
    path: str | os.PathLike[str], bits: Bits, kv_len: int, provenance: dict[str, Any]
) -> None:
    """Write bits [L, H, N, ceil(kv_len / 8)] to `path`.

    The file appears under its name only when it is complete: a reader sees the old file or the
    new one, and a crash leaves the old one.
    """
    fields = {"shape": [*bits.shape[:3], kv_len], "provenance": provenance}
    MASK_FILE.write(path, {"bits": bits}, fields)


def load_bits(path: str | os.PathLike[str]) -> tuple[Bits, int, dict[str, Any]]:
    """Read `(bits, kv_len, provenance)` from a file that `save_bits` wrote.

    Raises:
        FileNotFoundError: no such file.
        MaskFileError: not a mask file (or a directory), truncated, altered, or of a newer
            version.
    """
    header, arrays = MASK_FILE.read(path)
    shape, provenance, bits = header["shape"], header["provenance"], arrays["bits"]
    if (
        not isinstance(shape, list)
        or len(shape) != 4
        or not all(type(size) is int and size >= 1 for size in shape)
    ):
        raise MASK_FILE.wrong(
            path, f"is malformed: shape is {shape!r}, not four positive integers"
        )
    if not isinstance(provenance, dict):
        raise MASK_FILE.wrong(path, "is malformed: provenance is not an object")
    kv_len = shape[-1]
    packed = (*shape[:3], row_bytes(kv_len))
    if bits.shape != packed:
        raise MASK_FILE.wrong(
            path,
            f"is mis-shaped: bits are {list(bits.shape)} but the mask {shape} needs "
            f"{list(packed)}, {row_bytes(kv_len)} bytes a row",
        )
    if not padding_is_clear(bits, kv_len):
        raise MASK_FILE.wrong(path, f"is malformed: padding bits after key {kv_len - 1} are set")
    # The reader's memory could be made writeable again; masks never change.
    return np.frombuffer(bits.data.toreadonly(), np.uint8).reshape(packed), kv_len, provenance
