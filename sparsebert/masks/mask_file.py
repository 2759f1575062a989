"""The mask file: packed bits and a header in one safetensors file, every field checked on reading.

A file holds one tensor, "bits", uint8 [L, H, N, ceil(M / 8)], and in the safetensors metadata,
under the key "sparsebert-mask", a JSON object:

    version        1
    shape          [L, H, N, M]
    provenance     an object: the pattern and its parameters, settings of a training run, ...
    sha256         of the bits
    header_sha256  of the fields above, as JSON with sorted keys and no spaces

So a file cannot lose a byte or change its content or its story unnoticed.  The sums guard
against accidents, not against forgery.  Reading runs no code from the file.

The functions work on plain bits, so that `sparsebert.masks.mask` builds on this module.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, BinaryIO

import numpy as np

from sparsebert.masks.bits import Bits, padding_is_clear, row_bytes
from sparsebert.storage import require_file, write_atomically

VERSION = 1
KEY = "sparsebert-mask"

_FIELDS = {"version", "shape", "provenance", "sha256", "header_sha256"}
# safetensors' own limit on its JSON header.
_MAX_HEADER = 100_000_000


class MaskFileError(ValueError):
    """A mask file that must not be used; the message says what is wrong with it."""


def save_bits(
    path: str | os.PathLike[str], bits: Bits, kv_len: int, provenance: dict[str, Any]
) -> None:
    """Write bits [L, H, N, ceil(kv_len / 8)] to `path`.

    The file appears under its name only when it is complete: a reader sees the old file or the
    new one, and a crash leaves the old one.
    """
    header: dict[str, Any] = {
        "version": VERSION,
        "shape": [*bits.shape[:3], kv_len],
        "provenance": provenance,
        "sha256": hashlib.sha256(bits.data).hexdigest(),
    }
    header["header_sha256"] = _header_sum(header)
    from safetensors.numpy import save as to_safetensors  # not needed just to run masks

    content = to_safetensors({"bits": bits}, metadata={KEY: json.dumps(header)})
    write_atomically("AttentionMask.save", path, content)


def load_bits(path: str | os.PathLike[str]) -> tuple[Bits, int, dict[str, Any]]:
    """Read `(bits, kv_len, provenance)` from a file that `save_bits` wrote.

    Raises:
        FileNotFoundError: no such file.
        MaskFileError: not a mask file (or a directory), truncated, altered, or of a newer
            version.
    """
    require_file(path, "AttentionMask.load", "AttentionMask.save", MaskFileError)
    with open(path, "rb") as file:
        container, start = _container(path, file)
        header, shape = _header(path, container)
        span = _bits_span(path, container, shape)
        file.seek(0, os.SEEK_END)
        size = file.tell()
        if size != start + span:
            state = "truncated" if size < start + span else "followed by foreign bytes"
            raise _error(path, f"is {state}: {size} bytes where {start + span} are expected")
        file.seek(start)
        content = file.read(span)
    if hashlib.sha256(content).hexdigest() != header["sha256"]:
        raise _error(path, "is altered: the bits do not match their SHA-256 sum")
    layers, heads, rows, kv_len = shape
    bits = np.frombuffer(content, dtype=np.uint8).reshape(layers, heads, rows, row_bytes(kv_len))
    if not padding_is_clear(bits, kv_len):
        raise _error(path, f"is malformed: padding bits after key {kv_len - 1} are set")
    return bits, kv_len, header["provenance"]


def _container(path: str | os.PathLike[str], file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file, and where its tensors start."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _error(path, f"is truncated or not a mask file: {len(prefix)} bytes in all")
    length = int.from_bytes(prefix, "little")
    if not 2 <= length <= _MAX_HEADER:
        raise _error(path, "is not a mask file: it does not start as a safetensors file does")
    text = file.read(length)
    if len(text) < length:
        raise _error(
            path,
            f"is truncated or not a mask file: it ends at byte {8 + len(text)}, inside its "
            f"header of {length} bytes",
        )
    container = _json(text)
    if not isinstance(container, dict):
        raise _error(path, "is not a mask file, or its header is altered: no safetensors header")
    return container, 8 + length


def _header(
    path: str | os.PathLike[str], container: dict[str, Any]
) -> tuple[dict[str, Any], tuple[int, int, int, int]]:
    """Our own header, all fields checked, and the shape it states."""
    metadata = container.get("__metadata__")
    if not isinstance(metadata, dict) or KEY not in metadata:
        raise _error(path, f"is not a mask file: its metadata has no {KEY!r}")
    header = _json(metadata[KEY]) if isinstance(metadata[KEY], str) else None
    if not isinstance(header, dict):
        raise _error(path, f"is altered: {KEY!r} in its metadata is not a JSON object")
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise _error(path, f"is altered: version is {version!r}")
    if version > VERSION:
        raise _error(
            path,
            f"has format version {version} but this sparsebert reads up to {VERSION}; "
            "upgrade sparsebert",
        )
    if header.keys() != _FIELDS:
        odd = sorted(header.keys() ^ _FIELDS)
        raise _error(path, f"is altered: header fields missing or unknown: {', '.join(odd)}")
    if header["header_sha256"] != _header_sum(header):
        raise _error(path, "is altered: the header does not match its SHA-256 sum")
    shape = header["shape"]
    if (
        not isinstance(shape, list)
        or len(shape) != 4
        or not all(type(size) is int and size >= 1 for size in shape)
    ):
        raise _error(path, f"is malformed: shape is {shape!r}, not four positive integers")
    if not isinstance(header["provenance"], dict):
        raise _error(path, "is malformed: provenance is not an object")
    return header, (shape[0], shape[1], shape[2], shape[3])


def _bits_span(
    path: str | os.PathLike[str], container: dict[str, Any], shape: tuple[int, int, int, int]
) -> int:
    """Check the entry of the one tensor against the shape; its size in bytes."""
    tensors = sorted(container.keys() - {"__metadata__"})
    if tensors != ["bits"]:
        raise _error(path, f"is malformed: it holds the tensors {tensors}, not just 'bits'")
    layers, heads, rows, kv_len = shape
    packed = [layers, heads, rows, row_bytes(kv_len)]
    span = layers * heads * rows * row_bytes(kv_len)
    if container["bits"] != {"dtype": "U8", "shape": packed, "data_offsets": [0, span]}:
        raise _error(
            path,
            f"is mis-shaped: bits are {container['bits']!r} but the mask {list(shape)} needs U8 "
            f"{packed}, {span} bytes",
        )
    return span


def _header_sum(header: dict[str, Any]) -> str:
    fields = {name: value for name, value in header.items() if name != "header_sha256"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _json(text: str | bytes) -> Any:
    """The value that `text` holds, or None where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _error(path: str | os.PathLike[str], what: str) -> MaskFileError:
    return MaskFileError(f"AttentionMask.load: {os.fspath(path)} {what}")
