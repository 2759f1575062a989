"""FlexAttention's two mask forms, mask_mod functions and BlockMask, to and from packed bits."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsebert.masks.bits import CHUNK, Bits, Bool, check_size, pack, row_bytes, unpack
from sparsebert.masks.mask_input import refused
from sparsebert.support.checks import integer

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# What torch says of an if, of int() or a list's index, and of a NumPy function, under vmap.
_DECISIONS = ("data-dependent control flow", ".item()", "doesn't have storage")

MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def bits_of_mask_mod(
    mod: MaskMod, heads: int, q_len: int, kv_len: int, device: torch.device | str
) -> Bits:
    """Evaluate mod(b=0, h, q_idx, kv_idx) everywhere, as create_mask does but some rows at a time.

    Returns bits [heads, q_len, ceil(kv_len / 8)].
    """
    from torch.nn.attention.flex_attention import create_mask, noop_mask

    heads = integer("from_mask_mod", "num_heads", heads, 1)
    q_len = integer("from_mask_mod", "q_len", q_len, 1)
    kv_len = integer("from_mask_mod", "kv_len", kv_len, 1)
    wanted = "a function (b, h, q_idx, kv_idx) -> bool tensor"
    if not callable(mod) or isinstance(mod, torch.Tensor):
        raise refused("from_mask_mod", "mod", wanted, mod, "AttentionMask.from_dense({})")
    try:
        inspect.signature(mod).bind(0, 0, 0, 0)
    except TypeError as error:
        raise TypeError(f"from_mask_mod: mod must be {wanted}: {error}") from None
    if mod is noop_mask:
        raise ValueError(
            "from_mask_mod: mod is FlexAttention's noop_mask, what a BlockMask made of lists of "
            "blocks has for a mask_mod: it allows everything, the mask is in the lists; write the "
            "blocks as a mask_mod, or patterns.dense(seq_len) for a mask that allows everything"
        )
    check_size("from_mask_mod", heads, q_len, kv_len)

    bits = np.empty((heads, q_len, row_bytes(kv_len)), dtype=np.uint8)
    step = max(1, CHUNK // (heads * kv_len))
    for start in range(0, q_len, step):
        rows = min(step, q_len - start)

        def shifted(
            b: torch.Tensor,
            h: torch.Tensor,
            q_idx: torch.Tensor,
            kv_idx: torch.Tensor,
            start: int = start,
        ) -> torch.Tensor:
            kept = mod(b, h, q_idx + start, kv_idx)
            if not isinstance(kept, torch.Tensor) or kept.dtype != torch.bool:
                what = kept.dtype if isinstance(kept, torch.Tensor) else type(kept).__name__
                raise TypeError(f"from_mask_mod: mod must return a bool tensor, got {what}")
            return kept

        try:
            dense = create_mask(shifted, 1, heads, rows, kv_len, device=device)
        except RuntimeError as error:
            if any(sign in str(error) for sign in _DECISIONS):
                raise _about_decision(mod, error) from None
            raise
        bits[:, start : start + rows] = pack(dense[0].cpu().numpy())
    return bits


def _about_decision(mod: MaskMod, error: RuntimeError) -> ValueError:
    """The error for a mask_mod that wants one position's value where it gets all positions."""
    code = getattr(inspect.unwrap(mod), "__code__", None)
    lines = [
        f" at line {frame.lineno} ({frame.line})"
        for frame in traceback.extract_tb(error.__traceback__)
        if code is not None and frame.filename == code.co_filename and frame.name == code.co_name
    ]
    return ValueError(
        f"from_mask_mod: mod takes a decision for a single position{''.join(lines[-1:])}, but it "
        "gets all of them at once, as tensors; write & for and, | for or, ~ for not, "
        "torch.where(condition, a, b) for if, a tensor table[q_idx] for a list, and torch's "
        "functions for Python's and NumPy's"
    )


def block_mask(
    bits: Bits, kv_len: int, block_size: int | tuple[int, int], device: torch.device | str
) -> BlockMask:
    """The BlockMask of bits [H, N, W]: blocks with any key, full blocks, and the bits as mask_mod.

    A block that reaches over the edge never counts as full, so its positions are always tested.
    """
    from torch.nn.attention.flex_attention import BlockMask

    edges = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    if len(edges) != 2:
        raise ValueError(f"to_block_mask: block_size={block_size} but must be one integer or two")
    block_q, block_kv = (integer("to_block_mask", "block_size", edge, 1) for edge in edges)
    heads, q_len, _ = bits.shape
    starts = np.arange(0, kv_len, block_kv)
    rows = range(0, q_len, block_q)
    counts = np.empty((1, heads, len(rows), len(starts)), dtype=np.int64)
    for head in range(heads):
        for at, row in enumerate(rows):
            part = unpack(bits[head, row : row + block_q], kv_len)
            counts[0, head, at] = np.add.reduceat(part.sum(axis=0), starts)
    full = counts == block_q * block_kv
    partial = (counts > 0) & ~full

    packed = torch.tensor(bits, device=device)

    def mask_mod(
        b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
    ) -> torch.Tensor:
        # A mask of one head serves any number of heads of q.
        head = h if heads > 1 else torch.zeros_like(h)
        return (packed[head, q_idx, kv_idx // 8] >> (kv_idx % 8)) & 1 == 1

    return BlockMask.from_kv_blocks(
        *_ordered(partial, device),
        *_ordered(full, device),
        BLOCK_SIZE=(block_q, block_kv),
        mask_mod=mask_mod,
        seq_lengths=(q_len, kv_len),
    )


def _ordered(blocks: Bool, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """How many key blocks each row of blocks has, and their indices, theirs first."""
    number = torch.from_numpy(blocks.sum(axis=-1, dtype=np.int32))
    order = torch.from_numpy(np.argsort(~blocks, axis=-1, kind="stable").astype(np.int32))
    return number.to(device), order.to(device)
