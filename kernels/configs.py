"""Launch configurations: the one place for block sizes, warps, pipeline stages and registers.

Nothing here was timed. The numbers were chosen from the compilers' own output, Triton 3.6 and 3.9
(`python -m benchmarks.kernels.codegen_report`, benchmarks/results/kernels_survey.csv): a
configuration spills no registers in its loops or hardly any (RDNA 3 and wide fp32 heads on CDNA
apart), fits into shared memory, has the next step's rows under way while it multiplies, and then
takes few instructions per score and leaves room for other programs on its processor. Whoever has a
GPU runs `python -m benchmarks.gpu.tune_kernels` and puts the rows that it prints into `MEASURED`,
which goes before the rest.
"""

from __future__ import annotations

import dataclasses
import functools

TILE_KERNELS = ("forward", "dq", "dkdv")
"""The kernels that run tiles, and have launch configurations."""


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

# 16-bit inputs, by kernel and padded head size (64: up to 64) and tile height. Taller tiles are
# shared by programs of 64 rows, which take no more instructions than taller programs.
_HALF: dict[tuple[str, int, int], LaunchConfig] = {
    ("forward", 64, 16): LaunchConfig(16, 32, 1, 3),
    ("forward", 64, 32): LaunchConfig(32, 32, 1, 3),
    ("forward", 64, 64): LaunchConfig(64, 64, 4, 3),
    ("forward", 128, 16): LaunchConfig(16, 32, 1, 3, 255),  # else ptxas takes 168, and spills
    ("forward", 128, 32): LaunchConfig(32, 32, 2, 3),
    ("forward", 128, 64): LaunchConfig(64, 32, 4, 3),
    ("forward", 256, 16): LaunchConfig(16, 32, 4, 2),
    ("forward", 256, 32): LaunchConfig(32, 32, 4, 2),
    ("dq", 64, 16): LaunchConfig(16, 32, 1, 3),
    ("dq", 64, 32): LaunchConfig(32, 64, 2, 3),
    ("dq", 64, 64): LaunchConfig(64, 64, 4, 3),
    ("dq", 128, 16): LaunchConfig(16, 32, 2, 3),
    ("dq", 128, 32): LaunchConfig(32, 32, 2, 3),
    ("dq", 128, 64): LaunchConfig(64, 32, 4, 3),
    ("dq", 256, 16): LaunchConfig(16, 32, 4, 2),
    ("dq", 256, 32): LaunchConfig(32, 32, 4, 2),
    ("dkdv", 64, 16): LaunchConfig(16, 64, 2, 3),
    ("dkdv", 64, 32): LaunchConfig(32, 64, 2, 3),
    ("dkdv", 64, 64): LaunchConfig(64, 64, 4, 3),
    ("dkdv", 128, 16): LaunchConfig(16, 32, 2, 3),
    ("dkdv", 128, 32): LaunchConfig(32, 32, 2, 3),
    ("dkdv", 128, 64): LaunchConfig(64, 32, 4, 3),
    ("dkdv", 256, 16): LaunchConfig(16, 32, 4, 2),
    ("dkdv", 256, 32): LaunchConfig(32, 32, 8, 2),
}

# 16-bit inputs and heads up to 64 on RDNA, whose products take many registers, on gfx11 twice as
# many as on gfx12: there dK and dV spill in their loops with every configuration that was tried,
# and dQ of 16 rows with every one but such as take two to four times the instructions.
_HALF_RDNA: dict[tuple[str, int], LaunchConfig] = {
    ("forward", 16): LaunchConfig(16, 32, 1, 1),
    ("forward", 32): LaunchConfig(32, 32, 2, 1),
    ("forward", 64): LaunchConfig(64, 32, 4, 1),
    ("dq", 16): LaunchConfig(16, 32, 1, 1),
    ("dq", 32): LaunchConfig(32, 32, 4, 1),
    ("dq", 64): LaunchConfig(64, 32, 8, 1),
    ("dkdv", 16): LaunchConfig(16, 32, 2, 1),
    ("dkdv", 32): LaunchConfig(32, 32, 8, 1),
    ("dkdv", 64): LaunchConfig(64, 32, 8, 1),
}

# fp32 inputs, by kernel and padded head size, for every tile height: their products need so many
# registers that a program takes 16 rows, or 32.
_SINGLE: dict[tuple[str, int], LaunchConfig] = {
    ("forward", 64): LaunchConfig(32, 32, 4, 3),
    ("forward", 128): LaunchConfig(16, 32, 8, 2),
    ("forward", 256): LaunchConfig(16, 32, 8, 1),
    ("dq", 64): LaunchConfig(16, 32, 4, 3),
    ("dq", 128): LaunchConfig(16, 32, 8, 2),
    ("dq", 256): LaunchConfig(16, 32, 8, 2),  # with one, operands spill in the loop
    ("dkdv", 64): LaunchConfig(16, 32, 4, 3),
    ("dkdv", 128): LaunchConfig(16, 32, 8, 1),
    ("dkdv", 256): LaunchConfig(16, 32, 8, 1),
}

_SHARED_LIMITS = {
    "sm80": 163, "sm86": 99, "sm89": 99, "sm90": 227, "sm100": 227, "sm103": 227, "sm110": 227,
    "sm120": 99, "sm121": 99,
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

    >>> launch_config("forward", "sm75", 64, 64, itemsize=2).num_warps
    4
    """
    width = block_d(head_dim)
    measured = MEASURED.get((kernel, arch, height, width, itemsize, has_key_mask, has_dropout))
    if measured:
        assert measured.block_m <= height, (
            f"MEASURED: {kernel}, {arch}: programs above {height} rows"
        )
        return measured
    family = family_of(arch)
    rows = min(height, 32 if width > 128 or itemsize == 4 else 64)
    if family == "rdna" and itemsize == 2 and width <= 64:
        return _HALF_RDNA[kernel, rows]
    if itemsize == 4:
        config = _SINGLE[kernel, max(width, 64)]
        config = dataclasses.replace(config, block_m=min(height, config.block_m))
    else:
        config = _HALF[kernel, max(width, 64), rows]
        if family in ("wgmma", "tcgen05") and rows == 64:
            config = _of_shared_operands(config, kernel, family, width, has_key_mask, has_dropout)
        would_spill = kernel != "forward" and (arch != "sm80" or (kernel == "dq" and has_key_mask))
        if family == "mma_sync" and rows == 64 and would_spill:
            config = dataclasses.replace(config, block_n=32)
        if has_dropout and rows > 16:
            config = _with_dropout(config, kernel, width)
        elif rows > 16:
            config = _of_few_registers(config, kernel, arch, width, has_key_mask)
    if family in ("cdna", "rdna"):
        config = dataclasses.replace(config, num_stages=1, maxnreg=None)
    if family == "cdna":  # whose warps have 64 threads; of eight a thread gets half the registers
        config = dataclasses.replace(config, num_warps=min(config.num_warps, 4))
    return config


def family_of(arch: str) -> str:
    """The kind of tensor cores: "mma_sync", "wgmma", "tcgen05", "cdna" or "rdna"."""
    if arch.startswith("gfx"):
        return "cdna" if arch.startswith("gfx9") else "rdna"
    tcgen05 = ("sm100", "sm103", "sm110")
    return "wgmma" if arch == "sm90" else "tcgen05" if arch in tcgen05 else "mma_sync"


def _of_shared_operands(
    config: LaunchConfig,
    kernel: str,
    family: str,
    width: int,
    has_key_mask: bool,
    has_dropout: bool,
) -> LaunchConfig:
    """For 64 rows on tensor cores that read their operands from shared memory."""
    if kernel == "dkdv":
        return config
    if has_key_mask and not has_dropout and width <= 64:
        # Triton takes a load of fewer elements than threads for free, and repeats that of the
        # columns and of the key mask in the tensor cores' layout: twice the instructions.
        return dataclasses.replace(config, block_n=128)
    if kernel == "forward" and family == "wgmma" and width <= 64 and not has_dropout:
        return dataclasses.replace(config, maxnreg=128)  # four programs a multiprocessor
    if kernel == "forward" and width == 128:
        return dataclasses.replace(config, block_n=64)
    return config


def _of_few_registers(
    config: LaunchConfig, kernel: str, arch: str, width: int, has_key_mask: bool
) -> LaunchConfig:
    """For more than 16 rows of the backward kernels where the rules would spill in their loops."""
    family = family_of(arch)
    is_sm120 = arch in ("sm120", "sm121")
    if is_sm120 and width == 128 and kernel == "dkdv" and has_key_mask:
        return LaunchConfig(32, 32, 4, 3)
    if config.block_m > 32:
        return config
    if (is_sm120 or family == "wgmma") and width <= 32 and kernel == "dkdv":
        return dataclasses.replace(config, block_n=32)
    if family == "wgmma" and width <= 32 and kernel == "dq" and has_key_mask:
        return dataclasses.replace(config, block_n=32, num_warps=1)
    if family == "wgmma" and width == 128 and kernel == "dq" and has_key_mask:
        return LaunchConfig(32, 64, 4, 3)
    if family == "tcgen05" and width == 128 and kernel == "dq" and has_key_mask:
        return dataclasses.replace(config, num_warps=4)
    return config


def _with_dropout(config: LaunchConfig, kernel: str, width: int) -> LaunchConfig:
    """For more than 16 rows: hashing every score takes registers of the backward kernels."""
    if width == 128 and (kernel == "dkdv" or (kernel == "dq" and config.block_m == 32)):
        return LaunchConfig(32, 32, 4, 3)
    if kernel == "dkdv" and config.block_m == 32:
        return dataclasses.replace(config, block_n=32)
    return config


def block_d(head_dim: int) -> int:
    """The power of two, 16 or more, that a head's dimension is padded to."""
    return max(16, 1 << (head_dim - 1).bit_length())
