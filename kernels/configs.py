"""Launch configurations: the one table of block sizes, warps and pipeline stages.

Keys are (kernel, architecture, tile height); "default" stands for every architecture without an
entry of its own. The table is for 16-bit inputs and D <= 64; `launch_config` derives the others
from it, so that a program keeps its share of registers and shared memory. The numbers were chosen
from the compilers' own output (no spills, few instructions per score, see
`python -m benchmarks.kernels_report`), not from timings.
"""

from __future__ import annotations

import dataclasses
import functools


@dataclasses.dataclass(frozen=True)
class LaunchConfig:
    """How one kernel is launched for one tile height.

    Attributes:
        block_m: rows per program; a taller tile is shared by several programs.
        block_n: gathered columns per step, 32, 64 or 128.
        num_warps: warps per program.
        num_stages: steps in flight, this one included.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


_TABLE: dict[tuple[str, str, int], LaunchConfig] = {
    ("forward", "default", 16): LaunchConfig(16, 64, 1, 2),
    ("forward", "default", 32): LaunchConfig(32, 64, 2, 2),
    ("forward", "default", 64): LaunchConfig(64, 128, 4, 2),
    ("forward", "default", 128): LaunchConfig(128, 128, 8, 2),
    ("dq", "default", 16): LaunchConfig(16, 32, 1, 2),
    ("dq", "default", 32): LaunchConfig(32, 64, 2, 2),
    ("dq", "default", 64): LaunchConfig(64, 64, 4, 2),
    ("dq", "default", 128): LaunchConfig(128, 64, 8, 2),
    ("dkdv", "default", 16): LaunchConfig(16, 64, 2, 2),
    ("dkdv", "default", 32): LaunchConfig(32, 64, 2, 2),
    ("dkdv", "default", 64): LaunchConfig(64, 64, 4, 2),
    ("dkdv", "default", 128): LaunchConfig(128, 64, 8, 2),
}

for _kernel, _arch, _height in list(_TABLE):  # CDNA3 spills with a second stage in registers
    _TABLE[_kernel, "gfx942", _height] = dataclasses.replace(
        _TABLE[_kernel, _arch, _height], num_stages=1
    )

_MIN_BLOCK_N = 32
_ACCUMULATORS = 64  # per thread with mma.sync, whose operands need registers as well


@functools.cache
def launch_config(
    kernel: str, arch: str, height: int, head_dim: int, itemsize: int, has_dropout: bool
) -> LaunchConfig:
    """The configuration of `kernel` ("forward", "dq", "dkdv") on `arch` ("sm90", "gfx942", ...).

    >>> launch_config("forward", "sm90", 64, 64, itemsize=2, has_dropout=False).num_warps
    4
    """
    key = (kernel, arch, height)
    config = _TABLE.get(key) or _TABLE[kernel, "default", height]
    row_bytes = block_d(head_dim) * itemsize

    # Heads this wide, and fp32 with its three products, fill the registers of a small program.
    hashed_gradient = kernel == "dkdv" and has_dropout and (row_bytes > 128 or height == 32)
    if itemsize == 4 or row_bytes > 256 or hashed_gradient:
        is_large = (kernel == "dq" and itemsize == 4) or (kernel == "dkdv" and row_bytes > 256)
        num_warps = 8 if is_large and height > 16 else 4
        return LaunchConfig(min(height, 32), _MIN_BLOCK_N, num_warps, config.num_stages)

    # As many bytes in flight as with D = 64; and half the scores if each is hashed.
    block_n, num_warps = config.block_n, config.num_warps
    factor = max(1, row_bytes // 128) * (2 if has_dropout else 1)
    accumulators = config.block_m * block_d(head_dim) * (2 if kernel == "dkdv" else 1)
    crowded = block_n // factor < _MIN_BLOCK_N or accumulators > _ACCUMULATORS * 32 * num_warps
    if height < 64 and crowded:
        num_warps *= 2
    block_n = max(_MIN_BLOCK_N, block_n // factor)
    return dataclasses.replace(config, block_n=block_n, num_warps=num_warps)


def block_d(head_dim: int) -> int:
    """The power of two, 16 or more, that a head's dimension is padded to."""
    return max(16, 1 << (head_dim - 1).bit_length())
