"""Compile a kernel for a named GPU without having one, and read what came out.

Triton compiles ahead of time for any target; on NVIDIA targets its own `cuobjdump` then tells
registers, spills and the instructions of each loop (`assembly.py`). Needs `TRITON_INTERPRET`
unset, because the interpreter replaces the kernels.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import subprocess
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .assembly import Instruction, copies_in_flight, main_loops, read_gcn, read_sass
from .configs import MERGE, LaunchConfig, block_d, launch_config
from .dkdv import dkdv_kernel
from .dq import dq_kernel
from .forward import forward_kernel
from .launch import dot_precision, target_of
from .merge import merge_kernel
from .occupancy import programs_per_sm
from .wgmma_hazard import overwrites

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm86": GPUTarget("cuda", 86, 32),
    "sm89": GPUTarget("cuda", 89, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "sm103": GPUTarget("cuda", 103, 32),
    "sm110": GPUTarget("cuda", 110, 32),
    "sm120": GPUTarget("cuda", 120, 32),
    "sm121": GPUTarget("cuda", 121, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
    "gfx1201": GPUTarget("hip", "gfx1201", 32),
}

KERNELS = {
    "forward": forward_kernel,
    "dq": dq_kernel,
    "dkdv": dkdv_kernel,
    "merge": merge_kernel,
}

_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_POINTERS = {
    "key_mask_ptr": "*i16", "seed_ptr": "*i64", "records_ptr": "*i32", "cols_ptr": "*i32",
    "words_ptr": "*i32", "merges_ptr": "*i32", "lse_ptr": "*fp32", "stats_ptr": "*fp32",
    "part_o_ptr": "*fp32", "part_lse_ptr": "*fp32", "part_ptr": "*fp32", "part_dq_ptr": "*fp32",
    "part_dk_ptr": "*fp32", "part_dv_ptr": "*fp32",
}  # fmt: skip
_FLOATS = {"scale", "keep_scale"}


@dataclasses.dataclass(frozen=True)
class Specialisation:
    """One compiled form of a kernel: everything that changes its code.

    "merge" has no tiles; its `height` is the rows of a program.
    """

    kernel: str
    arch: str
    height: int
    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16
    has_key_mask: bool = False
    has_dropout: bool = False
    config: LaunchConfig | None = None

    @property
    def launch(self) -> LaunchConfig:
        """Its launch configuration, the shipped one unless `config` is given."""
        if self.kernel == "merge":
            return MERGE
        return self.config or launch_config(
            self.kernel,
            self.arch,
            self.height,
            self.head_dim,
            self.dtype.itemsize,
            self.has_key_mask,
            self.has_dropout,
        )

    @property
    def precision(self) -> str:
        """How its products are computed with torch's default settings."""
        return dot_precision(self.dtype, self.arch, self.head_dim)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A main loop, known by its exponentials.

    Attributes:
        instructions: of one step.
        per_1000: instructions of a warp (on AMD GPUs, of a wavefront) per 1,000 entries of the
            score matrix.
        tensor_core: matrix products among them.
        barriers: how often a step waits for the program's other warps.
        spills: moves of registers to and from local memory.
        copies_in_flight: see `assembly.copies_in_flight`.
        mix: how often each opcode occurs, without modifiers.
    """

    instructions: int
    per_1000: float
    tensor_core: int
    barriers: int
    spills: int
    copies_in_flight: int | None
    mix: dict[str, int]

    @property
    def serialised(self) -> bool:
        """Whether every wgmma is waited for at once, which ptxas falls back to (C7515)."""
        return self.mix.get("HGMMA", 0) > 0 and self.mix.get("WARPGROUP", 0) >= self.mix["HGMMA"]


@dataclasses.dataclass(frozen=True)
class Code:
    """What the compiler made of a specialisation; `None` where a target has no such number.

    Attributes:
        registers: of a thread.
        spill_bytes: of a thread, anywhere in the program; see `loop_spills`.
        shared_bytes: of a program.
        programs_per_sm: how many run on a multiprocessor at once.
        instructions: of the whole program.
        tensor_core, async_copies: how many of them there are.
        hazards: registers written while a wgmma reads them, see `wgmma_hazard`.
        loops: the loop over columns that every row attends to, and the one with the bit test.
    """

    spec: Specialisation
    registers: int | None
    spill_bytes: int | None
    shared_bytes: int
    programs_per_sm: int | None
    instructions: int
    tensor_core: int
    async_copies: int
    hazards: int
    loops: tuple[Loop, ...]

    @property
    def loop_spills(self) -> int:
        """Moves of registers to and from local memory inside the main loops."""
        return sum(loop.spills for loop in self.loops)


def compile_code(spec: Specialisation) -> Code:
    """Compile one specialisation and analyse it."""
    kernel, config = KERNELS[spec.kernel], spec.launch
    constants: dict[str, Any] = {
        "HAS_KEY_MASK": spec.has_key_mask,
        "HAS_DROPOUT": spec.has_dropout,
        "HEAD_DIM": spec.head_dim,
        "HEIGHT": spec.height,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_D": block_d(spec.head_dim),
        "ALIGN": 16 // spec.dtype.itemsize,
        "PRECISION": spec.precision,
        "TARGET": target_of(spec.arch),
        "BLOCK_R": spec.height,
        "HAS_LSE": True,
        "HAS_GRAD_LSE": False,
        "grad_lse_ptr": None,
    }
    if not spec.has_key_mask:
        constants["key_mask_ptr"] = None
    if not spec.has_dropout:
        constants["seed_ptr"] = None
    signature = {name: _type_of(name, spec, constants) for name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(
        kernel, signature, {name: constants[name] for name in signature if name in constants},
        aligned,
    )  # fmt: skip
    compiled = triton.compile(
        source,
        target=TARGETS[spec.arch],
        options={**config.options, "enable_fp_fusion": True},
    )
    if "cubin" not in compiled.asm:
        return _read_amd(spec, compiled)
    return _read_nvidia(spec, compiled)


def _type_of(name: str, spec: Specialisation, constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    if name in _POINTERS:
        return _POINTERS[name]
    if name.endswith("_ptr"):
        return "*" + _DTYPES[spec.dtype]
    return "fp32" if name in _FLOATS else "i32"


def _read_nvidia(spec: Specialisation, compiled: Any) -> Code:
    with tempfile.TemporaryDirectory() as folder:
        cubin = pathlib.Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _cuobjdump("--dump-resource-usage", cubin)
        instructions = read_sass(_cuobjdump("-sass", cubin))
    found = re.search(r"REG:(\d+)", usage)
    registers = int(found.group(1)) if found else None
    stack = re.search(r"STACK:(\d+)", usage)
    spills = sum(instruction.is_spill for instruction in instructions)
    metadata = compiled.metadata
    programs = None
    if registers is not None:
        programs = programs_per_sm(
            spec.arch,
            registers,
            metadata.shared,
            spec.launch.num_warps,
            getattr(metadata, "tmem_size", 0) or 0,  # columns
        )
    return Code(
        spec=spec,
        registers=registers,
        spill_bytes=max(int(stack.group(1)) if stack else 0, 4 * spills),
        shared_bytes=metadata.shared,
        programs_per_sm=programs,
        instructions=len(instructions),
        tensor_core=sum(instruction.is_tensor_core for instruction in instructions),
        async_copies=sum(instruction.base == "LDGSTS" for instruction in instructions),
        hazards=len(overwrites(instructions)),
        loops=tuple(_loops(instructions, spec)),
    )


def _read_amd(spec: Specialisation, compiled: Any) -> Code:
    assembly = compiled.asm["amdgcn"]

    def number(name: str) -> int | None:
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        return int(found.group(1)) if found else None

    instructions = read_gcn(assembly)
    return Code(
        spec=spec,
        registers=number("vgpr_count"),
        spill_bytes=number("private_segment_fixed_size"),
        shared_bytes=compiled.metadata.shared,
        programs_per_sm=None,
        instructions=len(instructions),
        tensor_core=sum(instruction.is_tensor_core for instruction in instructions),
        async_copies=len(re.findall(r"\b(?:global|buffer)_load_\w+ .* lds\b", assembly)),
        hazards=0,
        loops=tuple(_loops(instructions, spec)),
    )


def _cuobjdump(option: str, cubin: pathlib.Path) -> str:
    """What the disassembler of the Triton in use says."""
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    done = subprocess.run([tool, option, cubin], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"compile_code: cuobjdump of Triton {triton.__version__} does not read what was "
            f"compiled ({done.stderr.strip()}); take a newer Triton for this architecture"
        )
    return done.stdout


def _loops(instructions: list[Instruction], spec: Specialisation) -> list[Loop]:
    if spec.kernel == "merge":
        return []
    entries = spec.launch.block_m * spec.launch.block_n
    per_thread = entries // (spec.launch.num_warps * TARGETS[spec.arch].warp_size)
    loops = []
    for first, last in main_loops(instructions, per_thread):
        body = instructions[first : last + 1]
        mix = collections.Counter(instruction.base for instruction in body)
        loops.append(
            Loop(
                instructions=len(body),
                per_1000=1000.0 * len(body) * spec.launch.num_warps / entries,
                tensor_core=sum(instruction.is_tensor_core for instruction in body),
                barriers=sum(instruction.is_barrier for instruction in body),
                spills=sum(instruction.is_spill for instruction in body),
                copies_in_flight=copies_in_flight(body),
                mix=dict(mix.most_common()),
            )
        )
    return loops
