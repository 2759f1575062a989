"""Launch configurations: the one table of block sizes, warps and pipeline stages.

Keys are (kernel, architecture, tile height); "default" stands for every architecture without an
entry of its own. The numbers of the table are for 16-bit inputs and D <= 64; `launch_config`
derives wider heads and fp32 from them, by halving the step so that what is in flight stays the
same. They were chosen from the compilers' own output (no spills, fewest instructions per score,
see `python -m benchmarks.kernels_report`), not from timings.
"""

from __future__ import annotations

import dataclasses
import functools


@dataclasses.dataclass(frozen=True)
class LaunchConfig:
    """How one kernel is launched for one tile height.

    Attributes:
        block_n: gathered columns per step, 32, 64 or 128.
        num_warps: warps per program.
        num_stages: steps in flight, this one included.
    """

    block_n: int
    num_warps: int
    num_stages: int


_TABLE: dict[tuple[str, str, int], LaunchConfig] = {
    ("forward", "default", 16): LaunchConfig(64, 1, 2),
    ("forward", "default", 32): LaunchConfig(64, 2, 2),
    ("forward", "default", 64): LaunchConfig(128, 4, 2),
    ("forward", "default", 128): LaunchConfig(128, 8, 2),
    ("dq", "default", 16): LaunchConfig(64, 1, 2),
    ("dq", "default", 32): LaunchConfig(64, 2, 2),
    ("dq", "default", 64): LaunchConfig(64, 4, 2),
    ("dq", "default", 128): LaunchConfig(64, 8, 2),
    ("dkdv", "default", 16): LaunchConfig(64, 1, 2),
    ("dkdv", "default", 32): LaunchConfig(64, 2, 2),
    ("dkdv", "default", 64): LaunchConfig(64, 4, 2),
    ("dkdv", "default", 128): LaunchConfig(64, 8, 2),
}

_MIN_BLOCK_N = 32


@functools.cache
def launch_config(
    kernel: str, arch: str, height: int, head_dim: int, itemsize: int
) -> LaunchConfig:
    """The configuration of `kernel` ("forward", "dq", "dkdv") on `arch` ("sm90", "gfx942", ...).

    >>> launch_config("forward", "sm90", 64, head_dim=64, itemsize=2).num_warps
    4
    """
    key = (kernel, arch, height)
    config = _TABLE.get(key) or _TABLE[kernel, "default", height]
    row_bytes = block_d(head_dim) * itemsize
    block_n = config.block_n
    while row_bytes > 128 and block_n > _MIN_BLOCK_N:
        row_bytes, block_n = row_bytes // 2, block_n // 2
    return dataclasses.replace(config, block_n=block_n)


def block_d(head_dim: int) -> int:
    """The power of two, 16 or more, that a head's dimension is padded to."""
    return max(16, 1 << (head_dim - 1).bit_length())
