"""What the kernels are tried on: a band in tiles of chosen heights, in one of these dtypes."""

from __future__ import annotations

import numpy as np
import torch

from sparsebert.backends.triton_pack import pack_program
from sparsebert.kernels.program import KernelProgram
from sparsebert.tiles.build import TileGroup, build_tile_set

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def band(length: int, half_width: int) -> np.ndarray:
    """bool [length, length]: True where |i - j| <= half_width."""
    position = np.arange(length)
    return np.abs(position[:, None] - position) <= half_width


def band_program(
    length: int, heights: tuple[int, ...], *, half_width: int = 16, parts: int = 1
) -> KernelProgram:
    """The band in tiles, its rows divided among the given heights, its columns into `parts`."""
    dense = band(length, half_width)
    groups = []
    for height, rows in zip(heights, np.array_split(np.arange(length), len(heights)), strict=True):
        rows = np.pad(rows, (0, -len(rows) % height), constant_values=-1).reshape(-1, height)
        for part in range(parts):
            bits = np.packbits(dense & (np.arange(length) % parts == part), -1, "little")
            groups.append(TileGroup(0, bits, rows))
    tiles = build_tile_set(groups, 1, length, length)
    return pack_program(tiles, tiles, np.zeros(1, dtype=np.int64))
