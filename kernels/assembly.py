"""Read a GPU's assembly as text: its instructions, where they jump, and the loops that count.

SASS as NVIDIA's `cuobjdump -sass` prints it, and what LLVM writes for AMD GPUs. Needs no Triton.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        opcode: with its modifiers, "LDSM.16.M88.4".
        operands: the rest of its text.
        conditional: whether it is under a predicate; of a jump on AMD GPUs, whether it is one of
            those that may not be taken.
        target: of a jump, the place of the instruction that it jumps to, if that is known.
    """

    opcode: str
    operands: str = ""
    conditional: bool = False
    target: int | None = None

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def is_tensor_core(self) -> bool:
        """Whether it multiplies matrices."""
        return self.opcode.startswith(_TENSOR_CORE)

    @property
    def is_spill(self) -> bool:
        """Whether it moves a register to or from local memory (scratch on AMD GPUs)."""
        return self.base in ("STL", "LDL") or self.opcode.startswith("scratch_")

    @property
    def is_barrier(self) -> bool:
        """Whether it waits for the other warps of the program."""
        return self.base == "BAR" or self.opcode in ("s_barrier", "s_barrier_wait")


_TENSOR_CORE = (
    *("HMMA", "HGMMA", "QGMMA", "UTCHMMA", "UTCQMMA", "UTCMMA"),
    *("v_mfma", "v_wmma"),
)
_EXPONENTIALS = ("MUFU.EX2", "v_exp_f32")


def read_sass(text: str) -> list[Instruction]:
    """The instructions of one function, without the padding behind it."""
    pattern = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
    found = pattern.findall(text)
    while found and found[-1][2] == "NOP":
        found.pop()
    place = {int(address, 16): index for index, (address, *_) in enumerate(found)}
    instructions = []
    for _, predicate, opcode, operands in found:
        target = None
        if opcode.startswith(("BRA", "CALL")):
            address = re.search(r"0x([0-9a-f]+)", operands)
            target = place.get(int(address.group(1), 16)) if address else None
        # "BRA.U UP0, 0x40" has its predicate among the operands, "BRA.DIV" asks the other lanes.
        conditional = (
            bool(predicate)
            or opcode.startswith(("BRA.DIV", "BRA.CONV"))
            or re.match(r"!?U?P\d", operands) is not None
        )
        instructions.append(Instruction(opcode, operands.strip(), conditional, target))
    return instructions


def read_gcn(text: str) -> list[Instruction]:
    """The instructions of LLVM's assembly for an AMD GPU."""
    found: list[tuple[str, str, str | None]] = []
    place = {}
    for line in text.splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            place[label.group(1)] = len(found)
        elif match := re.match(r"\t([a-z]\w+)(?:\s+((\.LBB\w+)?[^;]*))?", line):
            opcode, operands, jumps_to = match.groups()
            found.append((opcode, (operands or "").strip(), jumps_to))
    return [
        Instruction(
            opcode,
            operands,
            opcode.startswith("s_cbranch"),
            place.get(jumps_to) if jumps_to else None,
        )
        for opcode, operands, jumps_to in found
    ]


def main_loops(instructions: Sequence[Instruction], per_thread: int) -> list[tuple[int, int]]:
    """The first and last instruction of each innermost loop that computes every exponential.

    Args:
        per_thread: the exponentials that a thread computes in one turn of such a loop.

    They come in the order of the source.
    """
    count, exponentials = 0, [0]  # among the instructions before each
    for instruction in instructions:
        count += instruction.opcode.startswith(_EXPONENTIALS)
        exponentials.append(count)
    spans = [
        (instruction.target, end)
        for end, instruction in enumerate(instructions)
        if instruction.target is not None
        and instruction.target <= end
        and exponentials[end] - exponentials[instruction.target] >= max(1, per_thread)
    ]
    # The shortest: a seldom taken detour stands far behind its loop and jumps back into it.
    inner: list[tuple[int, int]] = []
    for span in sorted(spans, key=lambda span: span[1] - span[0]):
        if all(span[1] < first or last < span[0] for first, last in inner):
            inner.append(span)
    return sorted(inner)


def copies_in_flight(body: Sequence[Instruction]) -> int | None:
    """Groups of asynchronous copies under way at every product of a loop; None without copies.

    0: each turn waits for its copies and multiplies only then, so that the program's gathers and
    its arithmetic take turns. With one group for K and one for V, 2 means that the next step's
    rows come while this step's are multiplied.
    """
    if not any(instruction.base == "LDGDEPBAR" for instruction in body):
        return None
    groups, at_products = 0, []
    for instruction in (*body, *body):  # the second turn begins with what the first left under way
        if instruction.base == "LDGDEPBAR":
            groups += 1
        elif instruction.base == "DEPBAR" and (
            left := re.match(r"SB0, 0x([0-9a-f]+)", instruction.operands)
        ):
            groups = min(groups, int(left.group(1), 16))
        elif instruction.is_tensor_core:
            at_products.append(groups)
    second = at_products[len(at_products) // 2 :]
    return min(second, default=0)
