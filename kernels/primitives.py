"""What kernels do with blocks: multiply them, gather their rows, hide keys, test bits."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from . import layout

_NEAR = tl.constexpr(layout.NEAR)

# Values that travel together are named tuples, which Triton takes apart. They are made by keyword:
# Triton's cache knows a kernel by its functions' text and not by a tuple's order of fields. A
# field may be None (a pointer that is not used), but no function may return None in Triton 3.6.


class Constants(NamedTuple):
    """What a kernel over tiles is compiled for.

    Attributes:
        HAS_KEY_MASK, HAS_DROPOUT: features in use.
        HEAD_DIM, BLOCK_D: D, and the power of two that it is padded to.
        HEIGHT: rows of a tile.
        BLOCK_M, BLOCK_N: rows of a program, gathered columns of a step.
        ALIGN: strides are in units of so many elements, see `row_ptrs`.
        PRECISION, TARGET: see `launch.dot_precision` and `launch.target_of_rows`.
    """

    HAS_KEY_MASK: tl.constexpr
    HAS_DROPOUT: tl.constexpr
    HEAD_DIM: tl.constexpr
    HEIGHT: tl.constexpr
    BLOCK_M: tl.constexpr
    BLOCK_N: tl.constexpr
    BLOCK_D: tl.constexpr
    ALIGN: tl.constexpr
    PRECISION: tl.constexpr
    TARGET: tl.constexpr


class Keys(NamedTuple):
    """The keys and values of one head, for `gather_keys`.

    Attributes:
        k_ptr, v_ptr: where the head's rows begin.
        stride_kn, stride_vn: from row to row.
        substitute: a real key, whose row is loaded in place of hidden ones; with HAS_KEY_MASK.
    """

    k_ptr: tl.tensor
    v_ptr: tl.tensor
    stride_kn: tl.tensor
    stride_vn: tl.tensor
    substitute: tl.tensor


@triton.jit
def dot(a, b, acc, CONST: tl.constexpr):
    """a @ b + acc, accumulated in fp32."""
    if CONST.TARGET == "interpreter":  # which cannot multiply bf16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc, input_precision=CONST.PRECISION)


@triton.jit
def head_ptr(base_ptr, batch, head, stride_b, stride_h, ALIGN: tl.constexpr):
    """Where one head of a tensor [B, H, N, D] begins.

    The strides are in units of ALIGN elements, see `row_ptrs`.
    """
    return base_ptr + (batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h) * ALIGN


@triton.jit
def row_ptrs(base_ptr, index, stride, CONST: tl.constexpr):
    """Pointers [index, BLOCK_D] to rows of a tensor whose last dimension is contiguous.

    `stride` is in units of ALIGN elements: so the compiler sees aligned, wide loads without a
    compilation for each new stride. A row takes less than 4 GiB (`launch.with_contiguous_rows`).
    """
    d = tl.arange(0, CONST.BLOCK_D)[None, :]
    if CONST.TARGET == "hip":
        # Triton makes a buffer load of a pointer and offsets which it sees to be small and not
        # negative; those of an empty slot, -1, are not loaded.
        offset = (index * (stride * CONST.ALIGN)) & (_NEAR - 1)
        return base_ptr + (tl.multiple_of(offset, CONST.ALIGN)[:, None] + d)
    if CONST.TARGET != "cuda":
        return base_ptr + (index.to(tl.int64) * stride * CONST.ALIGN)[:, None] + d
    # Left to itself, Triton computes a pointer for each row and sends it through shared memory to
    # the threads that load the row, and LLVM makes a product of 64 x 64 bits of it. Here only the
    # index goes there, and ptxas makes one instruction of the two.
    BYTES: tl.constexpr = CONST.ALIGN * (base_ptr.dtype.element_ty.primitive_bitwidth // 8)
    address = tl.inline_asm_elementwise(
        """{ .reg .b64 offset;
        mul.wide.u32 offset, $1, $2; add.s64 $0, offset, $3; }""",
        "=l,r,r,l",
        [index[:, None], stride * BYTES, (base_ptr + d).to(tl.int64)],
        dtype=tl.int64,
        is_pure=True,
        pack=1,
    )
    pointers = tl.multiple_of(address.to(base_ptr.dtype), [BYTES, BYTES])
    return tl.max_contiguous(pointers, [1, CONST.BLOCK_D])


@triton.jit
def packed_ptrs(base_ptr, place, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Pointers [place, BLOCK_D] to rows of a tensor without gaps; `place` is int64."""
    return base_ptr + (place * HEAD_DIM)[:, None] + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def load_rows(base_ptr, index, stride, valid, CONST: tl.constexpr):
    """Rows `index` of a tensor, [index, BLOCK_D]; 0 where not `valid` and beyond HEAD_DIM.

    `valid` is None if all are.
    """
    pointers = row_ptrs(base_ptr, index, stride, CONST)
    in_head = tl.arange(0, CONST.BLOCK_D)[None, :] < CONST.HEAD_DIM
    if valid is None:
        if CONST.HEAD_DIM == CONST.BLOCK_D:
            x = tl.load(pointers)
        else:
            x = tl.load(pointers, mask=in_head, other=0.0)
    elif CONST.HEAD_DIM == CONST.BLOCK_D:
        x = tl.load(pointers, mask=valid[:, None], other=0.0)
    else:
        x = tl.load(pointers, mask=valid[:, None] & in_head, other=0.0)
    return x


@triton.jit
def gather_keys(keys, cols, pairs, CONST: tl.constexpr):
    """BLOCK_N gathered columns: which are real, and their rows of k and v.

    `pairs` are their pairs of the key mask. Whatever the rows of hidden keys hold, NaN maybe: they
    are not loaded, but `keys.substitute`.
    """
    visible = cols >= 0
    if CONST.HAS_KEY_MASK:
        visible = real_of_pairs(pairs, cols)
        cols = tl.where(visible, cols, keys.substitute)
    k = load_rows(keys.k_ptr, cols, keys.stride_kn, None, CONST)
    v = load_rows(keys.v_ptr, cols, keys.stride_vn, None, CONST)
    return visible, k, v


@triton.jit
def load_key_mask(key_mask_ptr, keys):
    """The pairs of the key mask that keys are in, int32.

    Its bytes are in pairs (`launch.int16_key_mask`) and not loaded one by one: of all types that a
    product's operands depend on, Triton takes the smallest for their own, and then chooses a
    layout that doubles the instructions.
    """
    return tl.load(key_mask_ptr + (keys >> 1)).to(tl.int32)


@triton.jit
def real_of_pairs(pairs, keys):
    """Whether keys are real, by their pairs of the key mask."""
    return ((pairs >> ((keys & 1) * 8)) & 0xFF) != 0


@triton.jit
def is_real(key_mask_ptr, keys, valid):
    """Whether keys are real by the key mask; those that are not `valid` are not."""
    pairs = tl.load(key_mask_ptr + (keys >> 1), mask=valid, other=0).to(tl.int32)
    return real_of_pairs(pairs, keys)


@triton.jit
def load_words(words_ptr, CONST: tl.constexpr):
    """The bit words of a step's columns, [BLOCK_M] each: a tuple of BLOCK_N / 32."""
    words = ()
    for unit in tl.static_range(CONST.BLOCK_N // 32):
        word = tl.load(words_ptr + unit * CONST.HEIGHT + tl.arange(0, CONST.BLOCK_M))
        words = words + (word,)  # noqa: RUF005 (Triton knows no stars in tuples)
    return words


@triton.jit
def mask_by_words(x, words, fill, CONST: tl.constexpr):
    """x [BLOCK_M, BLOCK_N] where the bit of its row and column is set, else `fill`; fp32.

    `words` are those of `load_words`. A word's bits are stored in the order of tensor-core
    layouts (see `layout.WORD_ORDER`): a thread owns columns 8 j + 2 (lane % 4) + {0, 1}, and finds
    theirs in byte lane % 4 of the word. So it shifts a word once, and then tests constant bits of
    the lowest byte.
    """
    column = tl.arange(0, CONST.BLOCK_N)[None, :]
    word = words[0][:, None]
    for unit in tl.static_range(1, CONST.BLOCK_N // 32):
        word = tl.where(column // 32 == unit, words[unit][:, None], word)
    byte = word >> (column // 2 % 4 * 8)
    bit = 1 << (column // 8 % 4 * 2 + column % 2)
    if CONST.TARGET == "cuda":
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
