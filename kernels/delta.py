"""The first backward kernel: what the others need of each query."""

from __future__ import annotations

import triton
import triton.language as tl

from .primitives import RowConstants, head_ptr, load_rows
from .softmax import log_unit


@triton.jit(
    do_not_specialize=[
        *("stride_ob", "stride_oh", "stride_on", "stride_gb", "stride_gh", "stride_gn"),
        *("num_heads", "q_len"),
    ]
)
def delta_kernel(
    o_ptr,  # [B, H, N, D]
    grad_o_ptr,  # [B, H, N, D]
    lse_ptr,  # fp32 [B, H, N]
    grad_lse_ptr,  # fp32 [B, H, N]; with HAS_GRAD_LSE
    stats_ptr,  # fp32 [B, H, N, 2]
    stride_ob,
    stride_oh,
    stride_on,
    stride_gb,
    stride_gh,
    stride_gn,
    num_heads,
    q_len,
    HAS_GRAD_LSE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    TARGET: tl.constexpr,
):
    """What the other kernels need of each query: its LSE in `log_unit`, and delta.

    delta = rowsum(o * grad_o) - grad_lse. A row with nothing to attend gets +inf and 0, so that
    its probabilities, exp(s - inf), are 0.
    """
    blocks = tl.cdiv(q_len, BLOCK_R)
    program = tl.program_id(0)
    batch_head = (program // blocks).to(tl.int64)
    batch, head = batch_head // num_heads, batch_head % num_heads
    rows = (program % blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = rows < q_len
    lse = tl.load(lse_ptr + batch_head * q_len + rows, mask=inside, other=-float("inf"))
    alive = lse > -float("inf")
    o_ptr = head_ptr(o_ptr, batch, head, stride_ob, stride_oh, ALIGN)
    grad_o_ptr = head_ptr(grad_o_ptr, batch, head, stride_gb, stride_gh, ALIGN)
    CONST: tl.constexpr = RowConstants(
        HEAD_DIM=HEAD_DIM, BLOCK_D=BLOCK_D, ALIGN=ALIGN, TARGET=TARGET
    )
    o = load_rows(o_ptr, rows, stride_on, alive, CONST)
    do = load_rows(grad_o_ptr, rows, stride_gn, alive, CONST)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        delta -= tl.load(grad_lse_ptr + batch_head * q_len + rows, mask=alive, other=0.0)
    lse = tl.where(alive, lse * log_unit(o.dtype == tl.float32), float("inf"))
    stats_ptrs = stats_ptr + (batch_head * q_len + rows)[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(stats_ptrs, tl.join(lse, delta), mask=inside[:, None])
