"""The dropout draw of `sparsebert.dropout` inside a kernel, bit for bit.

Philox (Salmon et al., SC 2011): Philox4x32-10 of (batch, head) under the seed gives one key per
program, Philox2x32-7 of (query, key position) under it gives 32 bits per element.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Dropout(NamedTuple):
    """A program's dropout, for `keep`; make it with `draw_dropout`.

    Attributes:
        key: uint32, of its batch and head; 0 without dropout.
        threshold: the drop threshold less 2**31, so that it fits an int32 argument.
        keep_scale: 1 / (1 - p).
    """

    key: tl.tensor
    threshold: tl.tensor
    keep_scale: tl.tensor


@triton.jit
def draw_dropout(seed_ptr, batch, head, drop_threshold, keep_scale, HAS_DROPOUT: tl.constexpr):
    """The `Dropout` of one batch and head."""
    key = tl.zeros([], tl.uint32)
    if HAS_DROPOUT:
        key = head_key(seed_ptr, batch, head)
    return Dropout(key=key, threshold=drop_threshold, keep_scale=keep_scale)


@triton.jit
def head_key(seed_ptr, batch, head):
    """The 32-bit key of one batch and head, uint32."""
    seed = tl.load(seed_ptr).to(tl.uint64)
    key0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    key1 = (seed >> 32).to(tl.uint32)
    c0 = batch.to(tl.uint32)
    c1 = head.to(tl.uint32)
    c2 = c0 & 0
    c3 = c0 & 0
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, _mult_a(c0)), c0 * _mult_a(c0)
        high1, low1 = tl.umulhi(c2, _mult_b(c0)), c2 * _mult_b(c0)
        c0, c2 = high1 ^ c1 ^ key0, high0 ^ c3 ^ key1
        c1, c3 = low1, low0
        key0 += tl.full([], 0x9E3779B9, tl.uint32)
        key1 += tl.full([], 0xBB67AE85, tl.uint32)
    return c0


@triton.jit
def _mult_a(like):
    return tl.full(like.shape, 0xD2511F53, tl.uint32)


@triton.jit
def _mult_b(like):
    return tl.full(like.shape, 0xCD9E8D57, tl.uint32)


@triton.jit
def keep(dropout, query, column):
    """True where the element of `query` and key position `column` is kept; both broadcast."""
    key = dropout.key
    c0, c1 = tl.broadcast(query.to(tl.uint32), column.to(tl.uint32))
    multiplier = tl.full([], 0xD256D193, tl.uint32)
    for _ in tl.static_range(7):
        high = tl.umulhi(c0, tl.broadcast_to(multiplier, c0.shape))
        low = c0 * multiplier
        c0 = high ^ c1 ^ key
        c1 = low
        key += tl.full([], 0x9E3779B9, tl.uint32)
    signed = (c0 ^ tl.full([], 0x80000000, tl.uint32)).to(tl.int32, bitcast=True)
    return signed >= dropout.threshold
