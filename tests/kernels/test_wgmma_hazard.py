"""The search for registers that are written while a wgmma reads them."""

import pytest

from sparsebert.kernels.assembly import Instruction, read_sass
from sparsebert.kernels.wgmma_hazard import Overwrite, overwrites, written_registers
from tests.kernels.test_assembly import sass

A_FROM_REGISTERS = "HGMMA.64x64x16.F32.BF16 R88, R124, gdesc[UR4].tnspB, R88, gsb0"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"


def found(*lines):
    return overwrites(read_sass(sass(*lines)))


def test_nothing_is_found_where_the_wait_comes_first():
    assert not found(A_FROM_REGISTERS, "FADD R12, R13, R14", WAIT, "MOV R124, R5", "EXIT")


@pytest.mark.parametrize(
    "writer",
    [
        "MOV R127, R5",
        "@P3 F2FP.BF16.F32.PACK_AB R125, R8, R9",
        "LDS.128 R121, [R5]",  # up to R124
        "LDSM.16.M88.4 R124, [R5]",
        "IMAD.WIDE R123, R5, R6, RZ",
        "CS2R R126, SRZ",
        "SHFL.BFLY PT, R124, R5, 0x1, 0x1f",
        "HGMMA.64x64x16.F32.BF16 R96, gdesc[UR8], RZ, !UPT",  # accumulators R96 to R127
    ],
)
def test_a_write_to_the_first_operand_before_the_wait_is_found(writer):
    assert Overwrite(0, 1, "A") in found(A_FROM_REGISTERS, writer, WAIT, "EXIT")


@pytest.mark.parametrize(
    "harmless",
    [
        "MOV R128, R5",
        "LDS.64 R122, [R5]",
        "STS.128 [R124], R124",
        "ISETP.GE.AND P0, PT, R124, R125, PT",
        "STG.E desc[UR4][R124.64], R125",
        "HGMMA.64x64x16.F32.BF16 R88, R128, gdesc[UR8].tnspB, R88, gsb0",  # adds up in its own
    ],
)
def test_reads_and_other_registers_are_not(harmless):
    assert not found(A_FROM_REGISTERS, harmless, WAIT, "EXIT")


def test_accumulators_are_looked_at_too():
    assert found(A_FROM_REGISTERS, "FMUL R90, R90, R5", WAIT) == [Overwrite(0, 1, "accumulator")]
    shared = "HGMMA.64x16x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT, gsb0"
    assert found(shared, "FMUL R31, R90, R5", WAIT) == [Overwrite(0, 1, "accumulator")]
    assert not found(shared, "FMUL R32, R90, R5", WAIT)


def test_every_way_to_the_wait_is_followed():
    """Back to a loop's head and around a branch."""
    loop = ("MOV R124, R5", WAIT, A_FROM_REGISTERS, "@P0 BRA 0x10", WAIT, "EXIT")
    assert found(*loop) == [Overwrite(2, 0, "A")]
    waits_first = (WAIT, "MOV R124, R5", A_FROM_REGISTERS, "@P0 BRA 0x10", WAIT, "EXIT")
    assert not found(*waits_first)
    around = (A_FROM_REGISTERS, "@P0 BRA 0x40", WAIT, "MOV R124, R5", WAIT, "EXIT")
    assert found(*around) == [Overwrite(0, 3, "A")]
    straight = (A_FROM_REGISTERS, "BRA 0x40", "MOV R124, R5", WAIT, "EXIT")
    assert not found(*straight)


def test_a_wait_that_lets_groups_run_on_protects_older_ones_only():
    other = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT, gsb0"
    wait_for_all_but_one = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
    write = "MOV R124, R5"
    assert not found(A_FROM_REGISTERS, other, wait_for_all_but_one, write, WAIT)
    assert found(other, A_FROM_REGISTERS, wait_for_all_but_one, write, WAIT)
    open_group = A_FROM_REGISTERS.replace(", gsb0", "")
    assert found(open_group, WAIT, write, other, WAIT) == [Overwrite(0, 2, "A")]


def test_what_instructions_write():
    def written(text):
        (instruction,) = read_sass(sass(text))
        return written_registers(instruction)

    assert written("LDG.E.128 R8, desc[UR4][R2.64]") == (8, 12)
    assert written("LDG.E.64.CONSTANT R8, desc[UR4][R2.64]") == (8, 10)
    assert written("LOP3.LUT P0, R8, R2, 0x1, RZ, 0xc0, !PT") == (8, 9)
    assert written("LOP3.LUT P0, RZ, R2, 0x1, RZ, 0xc0, !PT") is None
    assert written("HMMA.16816.F32.BF16 R8, R4, R12, R8") == (8, 12)
    assert written("DFMA R8, R4, R12, R8") == (8, 10)
    assert written("LDGSTS.E.BYPASS.128 [R3], desc[UR4][R2.64]") is None
    assert written("R2P PR, R8, 0x7e") is None
    assert written("UIADD3 UR4, UR5, 0x1, URZ") is None
    assert written("HGMMA.64x128x16.F16 R24, R4, gdesc[UR8], R24, gsb0") == (24, 56)


def test_a_wgmma_that_is_written_otherwise_is_an_error():
    with pytest.raises(ValueError, match="is no wgmma as cuobjdump writes it"):
        overwrites([Instruction("HGMMA.NEW", "R24, R4, gdesc[UR8], R24, gsb0")])
