"""Reading SASS and AMD's assembly: jumps, loops, copies in flight; and occupancy."""

import pytest

from sparsebert.kernels.assembly import (
    Instruction,
    copies_in_flight,
    main_loops,
    read_gcn,
    read_sass,
)
from sparsebert.kernels.occupancy import programs_per_sm


def sass(*lines: str) -> str:
    """As `cuobjdump -sass` prints it, one instruction every 16 bytes, from 0x10 on."""
    return "\n".join(
        f"        /*{16 * place:04x}*/                   {line} ;      /* 0x000fe200000001ff */\n"
        "                                                       /* 0x000fca0000000f00 */"
        for place, line in enumerate(lines, 1)
    )


def test_reads_sass():
    read = read_sass(
        sass("MOV R1, c[0x0][0x28]", "@!P0 BRA 0x10", "@P1 EXIT", "BRA.U UP0, 0x20", "BRA 0x30",
             "NOP", "NOP")
    )  # fmt: skip
    assert read == [
        Instruction("MOV", "R1, c[0x0][0x28]"),
        Instruction("BRA", "0x10", True, 0),
        Instruction("EXIT", "", True),
        Instruction("BRA.U", "UP0, 0x20", True, 1),
        Instruction("BRA", "0x30", False, 2),
    ]


def test_reads_the_assembly_of_amd_gpus():
    read = read_gcn(
        "kernel:\n\ts_mov_b32 s0, 0\n.LBB0_1:                  ; %loop\n"
        "\tscratch_store_b32 off, v1, s3 offset:4 ; 4-byte Folded Spill\n"
        "\ts_barrier\n\ts_cbranch_scc1 .LBB0_1\n\ts_branch .LBB0_1\n\ts_endpgm\n"
    )
    assert [(i.opcode, i.target, i.conditional) for i in read] == [
        ("s_mov_b32", None, False),
        ("scratch_store_b32", None, False),
        ("s_barrier", None, False),
        ("s_cbranch_scc1", 1, True),
        ("s_branch", 1, False),
        ("s_endpgm", None, False),
    ]
    assert [i.is_spill for i in read] == [False, True, False, False, False, False]
    assert [i.is_barrier for i in read] == [False, False, True, False, False, False]


def test_opcodes_are_told_apart():
    spills = ("STL", "STL.64", "LDL.LU.128", "scratch_load_b128")
    assert all(Instruction(opcode).is_spill for opcode in spills)
    assert not any(Instruction(opcode).is_spill for opcode in ("LDG.E", "STS", "global_load_b32"))
    products = ("HMMA.16816.F32", "HGMMA.64x64x16.F32", "UTCHMMA", "v_wmma_f32_16x16x16_bf16")
    assert all(Instruction(opcode).is_tensor_core for opcode in products)
    assert not Instruction("WARPGROUP.DEPBAR.LE").is_tensor_core
    # gfx12's barrier has two halves.
    split = ("s_barrier_signal", "s_barrier_wait")
    assert [Instruction(opcode).is_barrier for opcode in split] == [False, True]
    assert Instruction("BAR.SYNC.DEFER_BLOCKING").is_barrier


def test_main_loops_are_the_innermost_that_compute_all_exponentials():
    read = read_sass(
        sass(
            "NOP",
            "LDG.E R0, [R2]",  # a loop over columns without exponentials
            "@P0 BRA 0x20",
            "MUFU.EX2 R4, R5",  # 0x40: the loop
            "MUFU.EX2 R6, R7",
            "@P1 BRA 0xa0",  # a detour
            "@P0 BRA 0x40",
            "@P2 BRA 0x10",  # a loop around it
            "EXIT",
            "BRA 0x50",  # 0xa0: the detour, back into the loop: a longer span
        )
    )
    assert main_loops(read, per_thread=2) == [(3, 6)]
    assert main_loops(read, per_thread=3) == []


COPY, WAIT_0, WAIT_2 = "LDGDEPBAR", "DEPBAR.LE SB0, 0x0", "DEPBAR.LE SB0, 0x2"
PRODUCT = "HMMA.16816.F32 R4, R8, R12, R4"


@pytest.mark.parametrize(
    ("body", "in_flight"),
    [
        ((WAIT_0, PRODUCT, PRODUCT, COPY, COPY), 0),
        ((WAIT_2, PRODUCT, PRODUCT, COPY, COPY), 2),
        ((WAIT_0, COPY, COPY, PRODUCT), 2),  # begun before the product
        ((WAIT_2, PRODUCT, "DEPBAR.LE SB0, 0x1", PRODUCT, COPY, COPY), 1),  # the least counts
        ((PRODUCT, "DEPBAR.LE SB1, 0x0"), None),
    ],
)
def test_copies_in_flight(body, in_flight):
    assert copies_in_flight(read_sass(sass(*body))) == in_flight


def test_programs_of_a_multiprocessor():
    """As NVIDIA's occupancy calculator says."""
    assert programs_per_sm("sm90", 128, 40_000, 4) == 4
    assert programs_per_sm("sm90", 129, 40_000, 4) == 3  # registers come in eights
    assert programs_per_sm("sm90", 128, 75_776, 4) == 3  # 227 KB, and 1 KB for each program
    assert programs_per_sm("sm90", 168, 18_816, 1) == 11
    assert programs_per_sm("sm90", 32, 0, 1) == 32
    assert programs_per_sm("sm90", 32, 0, 8) == 8
    assert programs_per_sm("sm86", 32, 0, 4) == 12
    assert programs_per_sm("sm80", 255, 163 * 1024, 8) == 1
    assert programs_per_sm("sm100", 64, 1000, 4, tensor_memory=256) == 2
    assert programs_per_sm("gfx942", 64, 0, 4) is None
