"""How many programs run on a streaming multiprocessor at once; NVIDIA GPUs.

Limits are those of NVIDIA's CCCL, `cuda/__device/arch_traits.h`.
"""

from __future__ import annotations

from .configs import shared_limit

_WARPS_AND_PROGRAMS = {
    "sm80": (64, 32), "sm86": (48, 16), "sm89": (48, 24), "sm90": (64, 32), "sm100": (64, 32),
    "sm103": (64, 32), "sm110": (48, 24), "sm120": (48, 24), "sm121": (48, 24),
}  # fmt: skip
"""The most warps and the most programs of a multiprocessor."""

_REGISTERS = 16384  # of each of a multiprocessor's four schedulers
_SCHEDULERS = 4
_REGISTER_UNIT = 256  # a warp's registers are allocated in multiples of this
_RESERVED = 1024  # bytes of shared memory that the system takes for each program
_SHARED_UNIT = 128
_TENSOR_MEMORY = 512  # columns


def programs_per_sm(
    arch: str, registers: int, shared_bytes: int, num_warps: int, tensor_memory: int = 0
) -> int | None:
    """The most programs that a multiprocessor of `arch` runs at once; None if it is not known.

    Args:
        registers: of a thread.
        shared_bytes: of a program, without what the system reserves.
        num_warps: of a program.
        tensor_memory: columns of tensor memory (sm_100 and its kin) that a program allocates.

    >>> programs_per_sm("sm90", registers=172, shared_bytes=75776, num_warps=4)
    2
    >>> programs_per_sm("sm90", registers=168, shared_bytes=75776, num_warps=4)
    3
    """
    if arch not in _WARPS_AND_PROGRAMS:
        return None
    warps, programs = _WARPS_AND_PROGRAMS[arch]
    of_a_warp = _rounded_up(registers * 32, _REGISTER_UNIT)
    by_registers = _REGISTERS // of_a_warp * _SCHEDULERS // num_warps
    of_a_program = _rounded_up(shared_bytes + _RESERVED, _SHARED_UNIT)
    by_shared = (shared_limit(arch) + _RESERVED) // of_a_program
    limits = [programs, warps // num_warps, by_registers, by_shared]
    if tensor_memory:
        limits.append(_TENSOR_MEMORY // tensor_memory)
    return min(limits)


def _rounded_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
