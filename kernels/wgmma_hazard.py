"""Look for registers that are written while a wgmma still reads them.

A wgmma (SASS: HGMMA) runs on after its instruction was issued. Until the `WARPGROUP.DEPBAR` that
waits for its group, nothing may write the registers that hold its first operand, nor touch its
accumulators; a compiler that gets this wrong makes kernels that are wrong now and then (Triton's
issues 9433, 9514, 9530 and 11781). Here every path from a wgmma to its wait is followed through
the SASS. What is found is to be looked at; that nothing is found is a help, not a proof: subwarp
divergence and what other asynchronous instructions write are not known here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from .assembly import Instruction

_Registers = tuple[int, int]
"""The first of some neighbouring registers, and the first behind them."""


class Overwrite(NamedTuple):
    """An instruction that writes registers of a wgmma which was not waited for.

    Attributes:
        wgmma, writer: their places among the instructions.
        operand: "A", its first operand; or "accumulator".
    """

    wgmma: int
    writer: int
    operand: str


def overwrites(instructions: Sequence[Instruction]) -> list[Overwrite]:
    """All that are found in one function, in the order of its instructions."""
    found = set()
    for place, instruction in enumerate(instructions):
        if instruction.base not in _WGMMA:
            continue
        held = {"accumulator": _accumulators(instruction)}
        if a := re.match(r"R\d+,\s*R(\d+),\s*gdesc", instruction.operands):
            held["A"] = (int(a.group(1)), int(a.group(1)) + 4)
        for writer in _until_the_wait(instructions, place):
            for operand, registers in held.items():
                if _overwrites(instructions[writer], operand, registers):
                    found.add(Overwrite(place, writer, operand))
    return sorted(found)


_WGMMA = ("HGMMA", "QGMMA", "IGMMA")


def _until_the_wait(instructions: Sequence[Instruction], wgmma: int) -> set[int]:
    """Every instruction that may run after a wgmma and before the wait for its group.

    A group ends with the wgmma that is marked "gsb0"; a wait lets so many groups run on.
    """
    reached = set()
    waiting = [
        (place, _ends_group(instructions[wgmma]) - 1) for place in _next(instructions, wgmma)
    ]
    seen = set(waiting)
    while waiting:
        place, younger = waiting.pop()  # groups that ended after its own; -1: nor has its own
        instruction = instructions[place]
        if instruction.opcode.startswith("WARPGROUP.DEPBAR"):
            left = re.search(r"gsb0, 0x([0-9a-f]+)", instruction.operands)
            if younger >= (int(left.group(1), 16) if left else 0):
                continue
        reached.add(place)
        if instruction.base in _WGMMA:
            younger = min(younger + _ends_group(instruction), _MOST_GROUPS)
        for following in _next(instructions, place):
            state = following, younger
            if state not in seen:
                seen.add(state)
                waiting.append(state)
    return reached


_MOST_GROUPS = 8  # no wait lets more run on


def _ends_group(instruction: Instruction) -> bool:
    return "gsb0" in instruction.operands


def _next(instructions: Sequence[Instruction], place: int) -> list[int]:
    instruction = instructions[place]
    following = [] if instruction.target is None else [instruction.target]
    ends = instruction.base in ("EXIT", "RET", "BRA") and not instruction.conditional
    if not ends and place + 1 < len(instructions):
        following.append(place + 1)
    return following


def _accumulators(wgmma: Instruction) -> _Registers:
    shape = re.match(r"\w+\.64x(\d+)x\d+\.(\w+)", wgmma.opcode)
    first = re.match(r"R(\d+)", wgmma.operands)
    if not shape or not first:
        raise ValueError(
            f"overwrites: {wgmma.opcode} {wgmma.operands} is no wgmma as cuobjdump writes it, "
            "HGMMA.64x64x16.F32.BF16 R24, ...; mend wgmma_hazard.py for this cuobjdump"
        )
    # 64 rows x so many columns in 128 threads; two numbers in a register with 16 bits.
    count = int(shape.group(1)) // (4 if shape.group(2) == "F16" else 2)
    return int(first.group(1)), int(first.group(1)) + count


def _overwrites(instruction: Instruction, operand: str, registers: _Registers) -> bool:
    written = written_registers(instruction)
    if not written or written[1] <= registers[0] or registers[1] <= written[0]:
        return False
    # Products are added up in the same accumulators, one after the other.
    adds_up = instruction.base in _WGMMA and operand == "accumulator" and written == registers
    return not adds_up


_WRITE_NOTHING = frozenset(
    (
        *("BAR", "BMOV", "BRA", "BREAK", "BRX", "BSSY", "BSYNC", "CALL", "CCTL", "DEPBAR"),
        *("DSETP", "ERRBAR", "EXIT", "FCHK", "FENCE", "FSETP", "HSETP2", "ISETP", "JMP", "JMX"),
        *("LDGDEPBAR", "LDGSTS", "MEMBAR", "NANOSLEEP", "NOP", "PLOP3", "R2P", "R2UR", "RED"),
        *("RET", "ST", "STG", "STL", "STS", "STSM", "SYNCS", "WARPGROUP", "WARPSYNC", "YIELD"),
    )
)


def written_registers(instruction: Instruction) -> _Registers | None:
    """The vector registers that it writes; None if it writes none."""
    base, opcode = instruction.base, instruction.opcode
    if base in _WRITE_NOTHING:
        return None
    # A predicate may come first: "SHFL.BFLY PT, R5, ...", "LOP3.LUT P0, RZ, ...".
    match = re.match(r"(?:!?U?P(?:\d|T),\s*)?R(\d+)", instruction.operands)
    if not match:
        return None
    first = int(match.group(1))
    if base in _WGMMA:
        return _accumulators(instruction)
    return first, first + _width(base, opcode)


def _width(base: str, opcode: str) -> int:
    """How many neighbouring registers an instruction writes."""
    if base in ("LDG", "LDS", "LD", "LDL", "LDC", "ATOM", "ATOMG", "ATOMS"):
        return 4 if ".128" in opcode else 2 if ".64" in opcode else 1
    if base == "LDSM":
        return 4 if opcode.endswith(".4") else 2 if opcode.endswith(".2") else 1
    if base in ("HMMA", "IMMA"):
        return 4
    is_double = base in ("DADD", "DFMA", "DMUL", "DMMA") or ".F64." in f"{opcode}."
    if is_double or ".WIDE" in opcode or (base == "CS2R" and ".32" not in opcode):
        return 2
    return 1
