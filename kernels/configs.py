"""Launch configurations: the one place for block sizes, warps and pipeline stages.

Nothing here was timed. The numbers were chosen from the compilers' own output: a configuration
spills no registers, fits into shared memory, and takes few instructions per score (`python -m
benchmarks.kernels.codegen_report`, benchmarks/results/kernels_survey.csv). One of the surveyed
configurations spills, 8 bytes outside its loop: dK and dV of fp32 with D = 256 on Ampere. Head
sizes that are padded (16, 40, 80) were looked at on sm_80, sm_90 and sm_100 in bf16: 8 of 289
spill, 8 to 40 bytes. Ada and small Blackwells (sm_120) take Ampere's rows, where 8 of 198 spill,
at most 32 bytes. Whoever has a GPU runs `python -m benchmarks.kernels.tune_kernels` and puts the
rows that it prints into `MEASURED`, which goes before the rest.
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
        maxnreg: registers that a thread may use, so that more programs share a processor; None
            leaves it to the compiler. For NVIDIA GPUs alone.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """What Triton is told beside the constants."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if self.maxnreg is None else {**options, "maxnreg": self.maxnreg}


MERGE = LaunchConfig(block_m=1, block_n=1, num_warps=4, num_stages=1)
"""Of the merge kernel, which has no tiles."""

MEASURED: dict[tuple[str, str, int, int, int, bool, bool], LaunchConfig] = {}
"""Measured, by (kernel, architecture, tile height, padded head size, bytes of a number, key mask,
dropout)."""

# 16-bit inputs and D <= 64, by kernel and tile height; wider heads and dropout are derived.
_HALF: dict[tuple[str, int], LaunchConfig] = {
    ("forward", 16): LaunchConfig(16, 64, 1, 2),
    ("forward", 32): LaunchConfig(32, 64, 2, 2),
    ("forward", 64): LaunchConfig(64, 128, 4, 2),
    ("forward", 128): LaunchConfig(128, 128, 8, 2),
    ("dq", 16): LaunchConfig(16, 32, 1, 2),
    ("dq", 32): LaunchConfig(32, 64, 2, 2),
    ("dq", 64): LaunchConfig(64, 64, 4, 2),
    ("dq", 128): LaunchConfig(128, 64, 8, 2),
    ("dkdv", 16): LaunchConfig(16, 64, 2, 2),
    ("dkdv", 32): LaunchConfig(32, 64, 2, 2),
    ("dkdv", 64): LaunchConfig(64, 64, 4, 2),
    ("dkdv", 128): LaunchConfig(128, 64, 8, 2),
}

# What differs from it, by how tensor cores take their operands: from registers (mma.sync), or from
# shared memory (wgmma, tcgen05). Two programs then share dQ's tiles of 128 rows.
_HALF_OF_FAMILY: dict[tuple[str, str, int], LaunchConfig] = {
    ("mma_sync", "dkdv", 64): LaunchConfig(64, 32, 4, 2),
    ("wgmma", "dq", 64): LaunchConfig(64, 128, 4, 2),
    ("wgmma", "dq", 128): LaunchConfig(64, 128, 4, 2),
    ("tcgen05", "dq", 64): LaunchConfig(64, 128, 4, 2),
    ("tcgen05", "dq", 128): LaunchConfig(64, 128, 4, 2),
}

# fp32 inputs, by kernel and padded head size, for every tile height: their products need so many
# registers that a program takes 16 rows, or 32.
_SINGLE: dict[tuple[str, int], LaunchConfig] = {
    ("forward", 32): LaunchConfig(16, 64, 4, 2),
    ("forward", 64): LaunchConfig(32, 32, 4, 2),
    ("forward", 128): LaunchConfig(16, 32, 8, 2),
    ("forward", 256): LaunchConfig(16, 32, 8, 1),
    ("dq", 32): LaunchConfig(16, 32, 4, 2),
    ("dq", 64): LaunchConfig(16, 32, 4, 2),
    ("dq", 128): LaunchConfig(16, 32, 8, 2),
    ("dq", 256): LaunchConfig(16, 32, 8, 1),
    ("dkdv", 32): LaunchConfig(16, 32, 4, 2),
    ("dkdv", 64): LaunchConfig(16, 32, 4, 2),
    ("dkdv", 128): LaunchConfig(16, 32, 8, 1),
    ("dkdv", 256): LaunchConfig(16, 32, 8, 1),
}

# What would spill by the rules, by family, kernel, tile height (0: any), padded head size, bytes
# of a number and dropout.
_EXCEPTIONS: dict[tuple[str, str, int, int, int, bool], LaunchConfig] = {
    ("mma_sync", "forward", 16, 64, 4, True): LaunchConfig(16, 32, 2, 2),
    ("mma_sync", "forward", 16, 128, 2, True): LaunchConfig(16, 32, 4, 2),
    ("mma_sync", "forward", 32, 64, 2, False): LaunchConfig(32, 128, 2, 2),
    ("mma_sync", "forward", 64, 32, 2, False): LaunchConfig(64, 128, 4, 1),
    ("mma_sync", "forward", 64, 32, 2, True): LaunchConfig(64, 64, 4, 1),
    ("mma_sync", "forward", 64, 128, 2, False): LaunchConfig(64, 32, 4, 2),
    ("mma_sync", "forward", 128, 128, 2, False): LaunchConfig(128, 32, 8, 2),
    ("mma_sync", "dq", 64, 64, 2, True): LaunchConfig(64, 32, 4, 1),
    ("mma_sync", "dq", 64, 128, 2, False): LaunchConfig(32, 32, 2, 2),
    ("mma_sync", "dq", 128, 128, 2, True): LaunchConfig(64, 32, 4, 2),
    ("mma_sync", "dkdv", 64, 32, 2, True): LaunchConfig(64, 32, 4, 1),
    ("mma_sync", "dkdv", 64, 128, 2, False): LaunchConfig(32, 32, 4, 2),
    ("mma_sync", "dkdv", 128, 64, 2, False): LaunchConfig(128, 32, 8, 2),
    ("mma_sync", "dkdv", 128, 128, 2, False): LaunchConfig(32, 32, 4, 2),
    ("mma_sync", "dq", 0, 128, 4, False): LaunchConfig(16, 32, 4, 1),
    ("mma_sync", "dq", 0, 128, 4, True): LaunchConfig(16, 32, 4, 1),
    ("mma_sync", "dkdv", 0, 256, 4, True): LaunchConfig(16, 32, 8, 2),
    ("wgmma", "dq", 0, 128, 4, True): LaunchConfig(16, 32, 4, 1),
    ("tcgen05", "dq", 0, 128, 4, True): LaunchConfig(16, 32, 4, 1),
    ("tcgen05", "forward", 0, 256, 4, False): LaunchConfig(16, 32, 8, 2),
    ("tcgen05", "forward", 128, 64, 2, False): LaunchConfig(64, 128, 4, 2),
    ("tcgen05", "forward", 128, 64, 2, True): LaunchConfig(64, 64, 4, 2),
    ("tcgen05", "dq", 64, 32, 2, False): LaunchConfig(64, 128, 4, 1),
    ("tcgen05", "dq", 128, 32, 2, False): LaunchConfig(64, 128, 4, 1),
    ("tcgen05", "dq", 64, 128, 2, False): LaunchConfig(64, 128, 4, 2),
    ("tcgen05", "dq", 128, 128, 2, False): LaunchConfig(64, 128, 4, 2),
    ("tcgen05", "dkdv", 128, 64, 2, True): LaunchConfig(64, 32, 4, 2),
}

_MIN_BLOCK_N = 32
_ACCUMULATORS = 64  # per thread with mma.sync, whose operands need registers as well

_SHARED_LIMITS = {
    "sm80": 163, "sm86": 99, "sm89": 99, "sm90": 227, "sm100": 227, "sm120": 99, "gfx942": 64,
}  # fmt: skip


def shared_limit(arch: str) -> int:
    """The shared memory that a block may use on `arch`, in bytes; a safe guess where unknown."""
    return 1024 * _SHARED_LIMITS.get(arch, 64 if arch.startswith("gfx") else 99)


@functools.cache
def launch_config(
    kernel: str,
    arch: str,
    height: int,
    head_dim: int,
    itemsize: int,
    has_key_mask: bool = False,
    has_dropout: bool = False,
) -> LaunchConfig:
    """The configuration of `kernel` ("forward", "dq", "dkdv") on `arch` ("sm90", "gfx942", ...).

    >>> launch_config("forward", "sm90", 64, 64, itemsize=2).num_warps
    4
    """
    width = block_d(head_dim)
    measured = MEASURED.get((kernel, arch, height, width, itemsize, has_key_mask, has_dropout))
    if measured:
        return measured
    family = family_of(arch)
    for of_height in (height, 0):
        key = (family, kernel, of_height, max(width, 32), itemsize, has_dropout)
        if key in _EXCEPTIONS:
            return _EXCEPTIONS[key]
    if itemsize == 4:
        config = _SINGLE[kernel, max(width, 32)]
        config = dataclasses.replace(config, block_m=min(height, config.block_m))
        if has_dropout and kernel == "dkdv" and width <= 64:  # with two stages it spills a little
            config = dataclasses.replace(config, num_stages=1)
    else:
        config = _HALF_OF_FAMILY.get((family, kernel, height), _HALF[kernel, height])
        config = _half_config(config, kernel, height, width, has_dropout)
    return _for_cdna(config, kernel, width) if family == "cdna" else config


def family_of(arch: str) -> str:
    """The kind of tensor cores: "mma_sync", "wgmma", "tcgen05" or "cdna"."""
    if arch.startswith("gfx"):
        return "cdna"
    return {"sm90": "wgmma", "sm100": "tcgen05", "sm103": "tcgen05"}.get(arch, "mma_sync")


def _half_config(
    config: LaunchConfig, kernel: str, height: int, width: int, has_dropout: bool
) -> LaunchConfig:
    """For wide heads and dropout: a program keeps its share of registers and shared memory."""
    if width > 128:
        num_warps = 8 if kernel == "dkdv" and height > 16 else 4
        return LaunchConfig(min(height, 32), _MIN_BLOCK_N, num_warps, config.num_stages)
    if kernel == "dkdv" and has_dropout and (width > 64 or height == 32):
        return LaunchConfig(min(height, 32), _MIN_BLOCK_N, 4, config.num_stages)

    # As many bytes in flight as with D = 64; and half the scores if each is hashed.
    factor = max(1, width // 64) * (2 if has_dropout else 1)
    accumulators = config.block_m * width * (2 if kernel == "dkdv" else 1)
    num_warps = config.num_warps
    crowded = (
        config.block_n // factor < _MIN_BLOCK_N or accumulators > _ACCUMULATORS * 32 * num_warps
    )
    if height < 64 and crowded:
        num_warps *= 2
    block_n = max(_MIN_BLOCK_N, config.block_n // factor)
    return dataclasses.replace(config, block_n=block_n, num_warps=num_warps)


def _for_cdna(config: LaunchConfig, kernel: str, width: int) -> LaunchConfig:
    """CDNA3 holds the second stage in registers, and spills; so do the tallest programs.

    Eight warps leave a thread half of the registers, so wide heads get four.
    """
    if config.block_m > 64:
        config = LaunchConfig(64, min(config.block_n, 64), 4, 1)
    if kernel == "dkdv" and width > 128:
        config = dataclasses.replace(config, block_m=16)
    if config.block_m <= 32:
        config = dataclasses.replace(config, num_warps=min(config.num_warps, 4))
    return dataclasses.replace(config, num_stages=1)


def block_d(head_dim: int) -> int:
    """The power of two, 16 or more, that a head's dimension is padded to."""
    return max(16, 1 << (head_dim - 1).bit_length())
