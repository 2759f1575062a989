"""What all kernels share: finding a program's tile, gathering rows, testing bits."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, TARGET: tl.constexpr):
    """a @ b + acc, accumulated in fp32."""
    if TARGET == "interpreter":  # which cannot multiply bf16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def finite(maximum):
    """A maximum that can be subtracted: 0 where it is -inf, for -inf - -inf is NaN.

    Every loop with a running maximum takes it through here; scores that are -inf then become
    exp(-inf - 0) = 0. The backward loops have the LSE, which is +inf for a row with nothing to
    attend (see `delta_kernel`), so that all its probabilities are exp(s - inf) = 0.
    """
    return tl.where(maximum == -float("inf"), 0.0, maximum)


@triton.jit
def exponential(x, maximum, IS_FP32: tl.constexpr):
    """exp of x - maximum, both in the unit of `log_unit`; `maximum` broadcasts, see `finite`."""
    if IS_FP32:
        return tl.exp2((x - maximum) * 1.4426950408889634)  # log2(e)
    return tl.exp2(x - maximum)


@triton.jit
def log_unit(IS_FP32: tl.constexpr):
    """The unit of logarithms inside the kernels: base 2, so that a score costs a single FMA.

    Natural for fp32 inputs: one more product after the difference, but less rounding before it,
    which there would show.
    """
    return 1.0 if IS_FP32 else 1.4426950408889634  # log2(e)


@triton.jit
def find_work(items_ptr, first_item, num_items, heads_per_item, SPLIT: tl.constexpr):
    """This program's work item and part of it, its head and batch, and which scratch is its.

    SPLIT programs share the rows of an item. Programs of one batch and head are neighbours, so
    that they share its keys in the cache.
    """
    program = tl.program_id(0)
    part = program % SPLIT
    program = program // SPLIT
    item_ptr = items_ptr + (first_item + program % num_items).to(tl.int64) * 8
    space = program // num_items
    head = tl.load(item_ptr + 6).to(tl.int32) + space % heads_per_item
    return item_ptr, part, head, space // heads_per_item, space


@triton.jit
def row_ptrs(
    base_ptr,
    index,
    stride,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Pointers [index, BLOCK_D] to rows of a tensor whose last dimension is contiguous.

    `stride` is in units of ALIGN elements: so the compiler sees aligned, wide loads without a
    compilation for each new stride. A row takes less than 4 GiB (`launch.with_contiguous_rows`).
    """
    d = tl.arange(0, BLOCK_D)[None, :]
    if TARGET != "cuda":
        return base_ptr + (index.to(tl.int64) * stride * ALIGN)[:, None] + d
    # Left to itself, Triton computes a pointer for each row and sends it through shared memory to
    # the threads that load the row, and LLVM makes a product of 64 x 64 bits of it. Here only the
    # index goes there, and ptxas makes one instruction of the two.
    ITEM: tl.constexpr = base_ptr.dtype.element_ty.primitive_bitwidth // 8
    address = tl.inline_asm_elementwise(
        """{ .reg .b64 offset;
        mul.wide.u32 offset, $1, $2; add.s64 $0, offset, $3; }""",
        "=l,r,r,l",
        [index[:, None], stride * (ALIGN * ITEM), (base_ptr + d).to(tl.int64)],
        dtype=tl.int64,
        is_pure=True,
        pack=1,
    )
    pointers = tl.multiple_of(address.to(base_ptr.dtype), [ALIGN * ITEM, ALIGN * ITEM])
    return tl.max_contiguous(pointers, [1, BLOCK_D])


@triton.jit
def is_real(key_mask_ptr, keys, valid):
    """Whether keys are real by the key mask, whose bytes are in pairs (`launch.int16_key_mask`).

    `valid` is None if all keys are; the others are not real. Not loaded as bytes: of all types
    that a product's operands depend on, Triton takes the smallest for their own, and then chooses
    a layout that doubles the instructions.
    """
    if valid is None:
        pair = tl.load(key_mask_ptr + (keys >> 1))
    else:
        pair = tl.load(key_mask_ptr + (keys >> 1), mask=valid, other=0)
    return ((pair.to(tl.int32) >> ((keys & 1) * 8)) & 0xFF) != 0


@triton.jit
def some_real_key(key_mask_ptr, cols_ptr, width, BLOCK_N: tl.constexpr):
    """One of a tile's gathered keys that is real, -1 if there is none.

    Whatever the rows of other keys hold, NaN maybe: the loops load this one instead, and need not
    test each row that they load.
    """
    found = tl.full([BLOCK_N], -1, tl.int32)
    for start in tl.range(0, width, BLOCK_N):
        keys = tl.load(cols_ptr + start + tl.arange(0, BLOCK_N))
        found = tl.maximum(found, tl.where(is_real(key_mask_ptr, keys, None), keys, -1))
    return tl.max(found, 0)


@triton.jit
def packed_ptrs(base_ptr, place, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Pointers [place, BLOCK_D] to rows of a tensor without gaps; `place` is int64."""
    return base_ptr + (place * HEAD_DIM)[:, None] + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def load_rows(
    base_ptr,
    index,
    stride,
    valid,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr,
    ALL_VALID: tl.constexpr,
    TARGET: tl.constexpr,
):
    """Rows `index` of a tensor, [index, BLOCK_D]; 0 where not `valid` and beyond HEAD_DIM."""
    pointers = row_ptrs(base_ptr, index, stride, BLOCK_D, ALIGN, TARGET)
    in_head = tl.arange(0, BLOCK_D)[None, :] < HEAD_DIM
    if ALL_VALID:
        if HEAD_DIM == BLOCK_D:
            return tl.load(pointers)
        return tl.load(pointers, mask=in_head, other=0.0)
    if HEAD_DIM == BLOCK_D:
        return tl.load(pointers, mask=valid[:, None], other=0.0)
    return tl.load(pointers, mask=valid[:, None] & in_head, other=0.0)


@triton.jit
def store_rows(
    x,  # [BLOCK_M, BLOCK_D]
    out_ptr,  # [B, length, H, D]
    part_ptr,  # fp32 [repeats, num_slots, D]
    rows,  # [BLOCK_M], -1 for an empty slot
    slots_ptr,
    slot_base,
    space,
    num_slots,
    first_place,  # batch * length, int64
    num_heads,
    head,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write a tile's result: to `out` where it is final, else to scratch, for `merge.py`.

    Returns which rows are final, and the places of the others in scratch (valid if not negative).
    """
    in_head = tl.arange(0, BLOCK_D)[None, :] < HEAD_DIM
    part = tl.full([BLOCK_M], -1, tl.int64)
    if slot_base >= 0:
        slots = tl.load(slots_ptr + tl.arange(0, BLOCK_M))
        part = tl.where(slots >= 0, space.to(tl.int64) * num_slots + slot_base + slots, -1)
        part_ptrs = packed_ptrs(part_ptr, part, HEAD_DIM, BLOCK_D)
        tl.store(part_ptrs, x, mask=(part >= 0)[:, None] & in_head)
    final = (rows >= 0) & (part < 0)
    out_ptrs = packed_ptrs(out_ptr, (first_place + rows) * num_heads + head, HEAD_DIM, BLOCK_D)
    tl.store(out_ptrs, x.to(out_ptr.dtype.element_ty), mask=final[:, None] & in_head)
    return final, part


@triton.jit
def mask_by_words(
    x,  # fp32 [BLOCK_M, BLOCK_N]
    words_ptr,  # [BLOCK_N / 32, HEIGHT]
    fill,
    HEIGHT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TARGET: tl.constexpr,
):
    """x where the bit of its row and column is set, else `fill`.

    A word's bits are stored in the order of tensor-core layouts (see `pack.WORD_ORDER`): a thread
    owns columns 8 j + 2 (lane % 4) + {0, 1}, and finds theirs in byte lane % 4 of the word. So it
    shifts a word once, and then tests constant bits of the lowest byte.
    """
    rows = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_N)[None, :]
    word = tl.load(words_ptr + rows)[:, None]
    for unit in tl.static_range(1, BLOCK_N // 32):
        next_word = tl.load(words_ptr + unit * HEIGHT + rows)[:, None]
        word = tl.where(column // 32 == unit, next_word, word)
    byte = word >> (column // 2 % 4 * 8)
    bit = 1 << (column // 8 % 4 * 2 + column % 2)
    if TARGET == "cuda":
        # The same as below. But LLVM would gather the comparisons into vectors, and take them
        # apart again, while ptxas turns this into seven predicates an instruction (R2P).
        return tl.inline_asm_elementwise(
            """{ .reg .pred p; .reg .b32 t;
            and.b32 t, $1, $2; setp.ne.b32 p, t, 0; selp.f32 $0, $3, $4, p; }""",
            "=f,r,r,f,f",
            [byte, bit, x, fill],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return tl.where((byte & bit) != 0, x, fill)
