"""Compile a kernel for a named GPU without having one, and read what came out.

Triton compiles ahead of time for any target; on NVIDIA targets its own `cuobjdump` then tells
registers, spills and the instructions of each loop. Needs `TRITON_INTERPRET` unset, because the
interpreter replaces the kernels.
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

from .configs import LaunchConfig, block_d, launch_config
from .delta import delta_kernel
from .dkdv import dkdv_kernel
from .dq import dq_kernel
from .forward import forward_kernel
from .launch import dot_precision, target_of
from .merge import merge_kernel

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm86": GPUTarget("cuda", 86, 32),
    "sm89": GPUTarget("cuda", 89, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "sm120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

KERNELS = {
    "forward": forward_kernel,
    "dq": dq_kernel,
    "dkdv": dkdv_kernel,
    "delta": delta_kernel,
    "merge": merge_kernel,
}

_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_POINTERS = {
    "key_mask_ptr": "*i16", "seed_ptr": "*i64", "items_ptr": "*i64", "rows_ptr": "*i32",
    "slots_ptr": "*i32", "cols_ptr": "*i32", "words_ptr": "*i32", "merges_ptr": "*i32",
    "lse_ptr": "*fp32", "stats_ptr": "*fp32", "part_o_ptr": "*fp32", "part_lse_ptr": "*fp32",
    "part_ptr": "*fp32", "part_dq_ptr": "*fp32", "part_dk_ptr": "*fp32", "part_dv_ptr": "*fp32",
    "grad_lse_ptr": "*fp32",
}  # fmt: skip
_FLOATS = {"scale", "keep_scale"}


@dataclasses.dataclass(frozen=True)
class Specialisation:
    """One compiled form of a kernel: everything that changes its code.

    "delta" and "merge" have no tiles; their `height` is the rows of a program.
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
        if self.kernel in ("delta", "merge"):
            return LaunchConfig(block_m=1, block_n=1, num_warps=4, num_stages=1)
        return self.config or launch_config(
            self.kernel,
            self.arch,
            self.height,
            self.head_dim,
            self.dtype.itemsize,
            self.has_dropout,
        )

    @property
    def precision(self) -> str:
        """How its products are computed with torch's default settings."""
        return dot_precision(self.dtype, self.arch, self.head_dim)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A main loop, known by its exponentials.

    `per_1000` is instructions of a warp (on AMD GPUs, of a wavefront) per 1,000 entries of the
    score matrix.
    """

    instructions: int
    per_1000: float
    tensor_core: int
    mix: dict[str, int]

    @property
    def serialised(self) -> bool:
        """Whether every wgmma is waited for at once, which ptxas falls back to (C7515)."""
        return self.mix.get("HGMMA", 0) > 0 and self.mix.get("WARPGROUP", 0) >= self.mix["HGMMA"]


@dataclasses.dataclass(frozen=True)
class Code:
    """What the compiler made of a specialisation; `None` where a target has no such number."""

    spec: Specialisation
    registers: int | None
    spill_bytes: int | None
    shared_bytes: int
    tensor_core: int
    async_copies: int
    loops: tuple[Loop, ...]


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
        "HAS_GRAD_LSE": True,
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
        options={
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
            "enable_fp_fusion": True,
        },
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
        sass = _cuobjdump("-sass", cubin)
    lines = _sass_instructions(sass)
    registers = re.search(r"REG:(\d+)", usage)
    stack = re.search(r"STACK:(\d+)", usage)
    opcodes = [opcode for opcode, _ in lines]
    spills = sum(opcode.startswith(("STL", "LDL")) for opcode in opcodes)
    return Code(
        spec=spec,
        registers=int(registers.group(1)) if registers else None,
        spill_bytes=max(int(stack.group(1)) if stack else 0, 4 * spills),
        shared_bytes=compiled.metadata.shared,
        tensor_core=sum(_is_tensor_core(opcode) for opcode in opcodes),
        async_copies=sum(opcode.startswith("LDGSTS") for opcode in opcodes),
        loops=tuple(_loops(lines, spec)),
    )


def _read_amd(spec: Specialisation, compiled: Any) -> Code:
    assembly = compiled.asm["amdgcn"]

    def number(name: str) -> int | None:
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        return int(found.group(1)) if found else None

    lines = _gcn_instructions(assembly)
    return Code(
        spec=spec,
        registers=number("vgpr_count"),
        spill_bytes=number("private_segment_fixed_size"),
        shared_bytes=compiled.metadata.shared,
        tensor_core=sum(_is_tensor_core(opcode) for opcode, _ in lines),
        async_copies=len(re.findall(r"\b(?:global|buffer)_load_\w+ .* lds\b", assembly)),
        loops=tuple(_loops(lines, spec)),
    )


def _cuobjdump(option: str, cubin: pathlib.Path) -> str:
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, option, cubin], check=True, capture_output=True, text=True).stdout


_Instruction = tuple[str, int | None]
"""An opcode and, for a jump, the position of the instruction that it jumps to."""


def _sass_instructions(sass: str) -> list[_Instruction]:
    pattern = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
    found = pattern.findall(sass)
    position = {int(address, 16): index for index, (address, _, _) in enumerate(found)}
    lines = []
    for _, opcode, operands in found:
        target = re.search(r"0x([0-9a-f]+)", operands) if opcode.startswith("BRA") else None
        lines.append((opcode, position.get(int(target.group(1), 16)) if target else None))
    return lines


def _gcn_instructions(assembly: str) -> list[_Instruction]:
    found, position = [], {}
    for line in assembly.splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            position[label.group(1)] = len(found)
        elif instruction := re.match(r"\t([a-z]\w+)(?:\s+(\.LBB\w+))?", line):
            found.append(instruction.groups())
    return [(opcode, position.get(target)) for opcode, target in found]


def _is_tensor_core(opcode: str) -> bool:
    return opcode.startswith(("HMMA", "HGMMA", "QGMMA", "UTCHMMA", "UTCQMMA", "UTCMMA", "v_mfma"))


def _loops(lines: list[_Instruction], spec: Specialisation) -> list[Loop]:
    """Innermost loops that compute every score's exponential; their order is the source's."""
    if spec.kernel in ("delta", "merge"):
        return []
    entries = spec.launch.block_m * spec.launch.block_n
    per_thread = entries // (spec.launch.num_warps * TARGETS[spec.arch].warp_size)
    count, exponentials = 0, [0]  # among the instructions before each
    for opcode, _ in lines:
        count += opcode.startswith(("MUFU.EX2", "v_exp_f32"))
        exponentials.append(count)
    spans = [
        (target, end)
        for end, (_, target) in enumerate(lines)
        if target is not None
        and target <= end
        and exponentials[end] - exponentials[target] >= max(1, per_thread)
    ]
    # The shortest: a seldom taken detour stands far behind its loop and jumps back into it.
    inner: list[tuple[int, int]] = []
    for span in sorted(spans, key=lambda span: span[1] - span[0]):
        if all(span[1] < first or last < span[0] for first, last in inner):
            inner.append(span)
    loops = []
    for first, last in sorted(inner):
        body = [opcode for opcode, _ in lines[first : last + 1]]
        mix = collections.Counter(opcode.split(".")[0] for opcode in body)
        loops.append(
            Loop(
                instructions=len(body),
                per_1000=1000.0 * len(body) * spec.launch.num_warps / entries,
                tensor_core=sum(_is_tensor_core(opcode) for opcode in body),
                mix=dict(mix.most_common()),
            )
        )
    return loops
