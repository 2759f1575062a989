"""The host's side of a launch: what is computed from the tensors of a call."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton

from .backward import delta_kernel
from .configs import block_d, launch_config
from .merge import merge_kernel
from .program import Side

_DELTA_ROWS = 32  # rows per program of the delta kernel
_MERGE_ROWS = 16  # rows per program of the merge kernel


def run_tiles(kernel: Any, name: str, side: Side, spaces: int, arguments: dict[str, Any]) -> None:
    """Launch `kernel` once for each tile height of `side`, for every (batch, listed head)."""
    q = arguments["q_ptr"]
    head_dim = q.shape[-1]
    arch = architecture(q.device)
    for height, first_item, num_items in side.groups:
        config = launch_config(
            name, arch, height, head_dim, q.element_size(), arguments["HAS_DROPOUT"]
        )
        kernel[(num_items * spaces * (height // config.block_m),)](
            **arguments,
            items_ptr=side.items,
            rows_ptr=side.rows,
            slots_ptr=side.slots,
            cols_ptr=side.cols,
            words_ptr=side.words,
            first_item=first_item,
            num_items=num_items,
            num_slots=side.num_slots,
            HEAD_DIM=head_dim,
            HEIGHT=height,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            BLOCK_D=block_d(head_dim),
            PRECISION=dot_precision(q.dtype, arch),
            TARGET=target_of(arch),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )


def run_merge(
    side: Side,
    spaces: int,
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
    merge_kernel[(triton.cdiv(num_merges, _MERGE_ROWS) * spaces,)](
        part_ptr=part,
        part_lse_ptr=part_lse,
        out_ptr=out,
        lse_ptr=lse,
        merges_ptr=side.merges,
        num_merges=num_merges,
        heads_per_item=heads_per_item,
        num_slots=side.num_slots,
        num_heads=num_heads,
        num_rows=num_rows,
        HAS_LSE=lse is not None,
        HEAD_DIM=head_dim,
        BLOCK_R=_MERGE_ROWS,
        BLOCK_D=block_d(head_dim),
        num_warps=4,
    )


def run_delta(
    o: torch.Tensor, grad_o: torch.Tensor, lse: torch.Tensor, grad_lse: torch.Tensor | None
) -> torch.Tensor:
    """LSE and delta of each query, fp32 [B, H, N, 2]; see `delta_kernel`."""
    batch, heads, q_len, head_dim = o.shape
    stats = lse.new_empty(*lse.shape, 2)
    align = alignment(o, grad_o)
    delta_kernel[(triton.cdiv(q_len, _DELTA_ROWS) * batch * heads,)](
        o_ptr=o,
        grad_o_ptr=grad_o,
        lse_ptr=lse,
        grad_lse_ptr=None if grad_lse is None else grad_lse.contiguous(),
        stats_ptr=stats,
        **strides("o", o, align),
        **strides("g", grad_o, align),
        num_heads=heads,
        q_len=q_len,
        HAS_GRAD_LSE=grad_lse is not None,
        HEAD_DIM=head_dim,
        BLOCK_R=_DELTA_ROWS,
        BLOCK_D=block_d(head_dim),
        ALIGN=align,
        num_warps=4,
    )
    return stats


def with_contiguous_rows(x: torch.Tensor) -> torch.Tensor:
    """x itself, or a copy if its last dimension is not contiguous, which no kernel loads well."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def alignment(*tensors: torch.Tensor) -> int:
    """The largest power of two, up to 16 bytes, that divides all strides but the last."""
    align = 16 // tensors[0].element_size()
    for x in tensors:
        align = math.gcd(align, *x.stride()[:-1])
    return align


def strides(prefix: str, x: torch.Tensor, align: int) -> dict[str, int]:
    """The stride arguments of x [B, H, N, D], in units of `align` elements."""
    b, h, n, _ = x.stride()
    return {
        f"stride_{prefix}b": b // align,
        f"stride_{prefix}h": h // align,
        f"stride_{prefix}n": n // align,
    }


def dot_precision(dtype: torch.dtype, arch: str) -> str:
    """How fp32 inputs are multiplied: tf32 only if torch's own setting asks for it.

    Else in full precision; on NVIDIA GPUs as three tf32 products, which keep the error at fp32's
    level and run on tensor cores.
    """
    if dtype == torch.float32 and target_of(arch) == "cuda":
        return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    return "ieee"


def target_of(arch: str) -> str:
    """What kind of compiler makes code for `arch`: "cuda", "hip" or "interpreter"."""
    if arch == "interpreter":
        return arch
    return "cuda" if arch.startswith("sm") else "hip"


@functools.cache
def architecture(device: torch.device) -> str:
    """The key of the launch table: "sm90", "gfx942", ...; "interpreter" on the CPU."""
    if device.type == "cpu":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm{properties.major}{properties.minor}"
