"""The host's side of a launch: what is computed from the tensors of a call."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from . import layout
from .architecture import architecture
from .configs import MERGE, block_d, launch_config
from .direct_launch import LARGEST_GRID, Launcher
from .dkdv import dkdv_kernel
from .dq import dq_kernel
from .forward import forward_kernel
from .merge import merge_kernel
from .program import Side

_LAUNCHERS = {
    "forward": Launcher(forward_kernel),
    "dq": Launcher(dq_kernel),
    "dkdv": Launcher(dkdv_kernel),
    "merge": Launcher(merge_kernel),
}
_ROWS = ("q_ptr", "k_ptr", "v_ptr", "grad_o_ptr")
_MERGE_ROWS = 16  # rows per program of the merge kernel


def run_tiles(name: str, side: Side, repeats: int, arguments: dict[str, Any]) -> None:
    """Launch a kernel for each group of `side`; its work is done `repeats` times.

    That is for each batch, and for each head if one list of work serves all heads.
    """
    q = arguments["q_ptr"]
    head_dim = q.shape[-1]
    heads = arguments["heads_per_item"]
    batch = repeats // heads
    arch = architecture(q.device)
    arguments |= {
        "records_ptr": side.records,
        "cols_ptr": side.cols,
        "words_ptr": side.words,
        "num_slots": side.num_slots,
        "HEAD_DIM": head_dim,
        "BLOCK_D": block_d(head_dim),
        "PRECISION": dot_precision(q.dtype, arch, head_dim),
        "TARGET": target_of_rows(arch, arguments),
    }
    for group in side.groups:
        config = launch_config(
            name, arch, group.height, head_dim, q.element_size(), arguments["HAS_KEY_MASK"],
            arguments["HAS_DROPOUT"],
        )  # fmt: skip
        arguments |= {
            "first_record": group.first,
            "HEIGHT": group.height,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
        }
        programs = group.items * (group.height // config.block_m)
        most = LARGEST_GRID[2]
        for first_batch in range(0, batch, most):
            arguments["first_batch"] = first_batch
            grid = (programs, heads, min(batch - first_batch, most))
            _LAUNCHERS[name](grid, arguments, config)


def run_merge(
    side: Side,
    repeats: int,
    heads_per_item: int,
    part: torch.Tensor,
    out: torch.Tensor,
    part_lse: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> None:
    """Write the rows of `out` [B, rows, H, D] that no tile covers alone; see `merge.py`."""
    num_merges = side.merges.shape[0]
    if not num_merges:
        return
    _, num_rows, num_heads, head_dim = out.shape
    arguments = {
        "part_ptr": part,
        "part_lse_ptr": part_lse,
        "out_ptr": out,
        "lse_ptr": lse,
        "merges_ptr": side.merges,
        "num_merges": num_merges,
        "heads_per_item": heads_per_item,
        "num_slots": side.num_slots,
        "num_heads": num_heads,
        "num_rows": num_rows,
        "HAS_LSE": lse is not None,
        "HEAD_DIM": head_dim,
        "BLOCK_R": _MERGE_ROWS,
        "BLOCK_D": block_d(head_dim),
    }
    programs = triton.cdiv(num_merges, _MERGE_ROWS) * repeats
    _LAUNCHERS["merge"]((programs, 1, 1), arguments, MERGE)


def with_contiguous_rows(x: torch.Tensor) -> torch.Tensor:
    """x [B, H, N, D] itself, or a copy if the kernels do not load such rows.

    They want each row contiguous, and rows less than 4 GiB apart (`primitives.row_ptrs`).
    """
    contiguous = x.stride(-1) == 1 or x.shape[-1] == 1
    near = x.stride(-2) * x.element_size() < 2**32
    # Not contiguous(), which leaves a single row its stride, whatever that is.
    return x if contiguous and near else x.clone(memory_format=torch.contiguous_format)


def int16_key_mask(key_mask: torch.Tensor) -> torch.Tensor:
    """A key mask, bool [B, M], as int16 [B, M / 2 rounded up]; a copy only if M is odd, or so."""
    batch, length = key_mask.shape
    # Memory that torch did not allocate may begin anywhere.
    places = (length, key_mask.stride(0), key_mask.storage_offset(), key_mask.data_ptr())
    if key_mask.stride(1) != 1 or any(place % 2 for place in places):
        padded = key_mask.new_zeros(batch, max(2, length + length % 2))
        padded[:, :length] = key_mask
        key_mask = padded
    return key_mask.view(torch.int16)


def alignment(*tensors: torch.Tensor) -> int:
    """By how many elements all rows are aligned: a power of two, up to 16 bytes.

    It divides all strides but the last, and where the tensors begin.
    """
    itemsize = tensors[0].element_size()
    align = 16 // itemsize
    for x in tensors:
        align = math.gcd(align, x.data_ptr() // itemsize, *x.stride()[:-1])
    return align


def strides(prefix: str, x: torch.Tensor, align: int) -> dict[str, int]:
    """The stride arguments of x [B, H, N, D], in units of `align` elements."""
    b, h, n, _ = x.stride()
    return {
        f"stride_{prefix}b": b // align,
        f"stride_{prefix}h": h // align,
        f"stride_{prefix}n": n // align,
    }


def dot_precision(dtype: torch.dtype, arch: str, head_dim: int) -> str:
    """How fp32 inputs are multiplied: tf32 only if torch's own setting asks for it.

    Else in full precision. On NVIDIA GPUs and for D <= 64 that is three tf32 products, which keep
    the error at fp32's level and run on tensor cores. For wider heads their operands do not fit
    into the registers, and plain fp32 arithmetic (IEEE) takes as many instructions.
    """
    if dtype != torch.float32 or target_of(arch) != "cuda":
        return "ieee"
    width = block_d(head_dim)
    # Not allow_tf32, which raises an error after the setting was made in torch's newer way.
    if torch.backends.cuda.matmul.fp32_precision == "tf32" and width <= 128:
        return "tf32"
    return "tf32x3" if width <= 64 else "ieee"


def target_of(arch: str) -> str:
    """What runs kernels on `arch`: the compiler for "cuda" or "hip", or the "interpreter"."""
    if arch == "cpu":
        return "interpreter"
    return "cuda" if arch.startswith("sm") else "hip"


def target_of_rows(arch: str, arguments: dict[str, Any]) -> str:
    """The same for a kernel that loads rows: "hip_far" where their offsets take 64 bits."""
    target = target_of(arch)
    if target != "hip":
        return target
    rows = [arguments[name] for name in _ROWS if name in arguments]
    spans = [(x.shape[-2] - 1) * x.stride(-2) + x.shape[-1] for x in rows]
    return "hip" if max(spans) <= layout.NEAR else "hip_far"
