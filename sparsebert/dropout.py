"""Attention dropout as a pure function of (seed, batch, head, query, key).

Forward, backward, a recomputed forward, every plan and every backend must drop the same
probabilities, so the decision is a counter-based hash (Philox, Salmon et al., SC 2011) and never
a stream of random numbers. Two levels keep it cheap in a kernel:

* `head_keys`: Philox4x32-10 of (batch, head) under the 64-bit seed gives one 32-bit key per
  batch and head, computed once per program;
* `keep_bits`: Philox2x32-7 of (query, key) under that key gives the 32 random bits of an element
  (seven rounds are the fewest that pass BigCrush, Table 2 of the paper).

An element is kept where its bits, as an unsigned integer, are at least `drop_threshold(p)`.
All arithmetic is on unsigned 32-bit values held in int64 tensors, so every device agrees.
"""

from __future__ import annotations

import torch

_MASK32 = 0xFFFFFFFF
_MULTIPLIER_2X32 = 0xD256D193
_WEYL = 0x9E3779B9  # the golden ratio: the key schedule of Philox2x32, first of Philox4x32
_WEYL_SECOND = 0xBB67AE85
_MULTIPLIERS_4X32 = (0xD2511F53, 0xCD9E8D57)
ROUNDS_PER_ELEMENT = 7
ROUNDS_PER_HEAD = 10
_PIECE = 1 << 17  # elements hashed at once


def draw_seed(device: torch.device | str = "cpu") -> torch.Tensor:
    """One int64 seed, shape [1], from the torch generator of `device`.

    `torch.manual_seed` reproduces it. It stays on the device, so no call waits for it.
    """
    return torch.randint(0, 2**62, (1,), dtype=torch.int64, device=device)


def drop_threshold(dropout_p: float) -> int:
    """The number of the 2**32 equally likely hash values for which an element is dropped."""
    return min(round(dropout_p * 2.0**32), _MASK32)


def head_keys(seed: torch.Tensor, batch: int, heads: int) -> torch.Tensor:
    """The 32-bit Philox key of each batch and head: int64 [batch, heads]."""
    device = seed.device
    c0 = torch.arange(batch, device=device)[:, None].expand(batch, heads)
    c1 = torch.arange(heads, device=device)[None, :].expand(batch, heads)
    c2 = c3 = torch.zeros_like(c0)
    key0, key1 = seed & _MASK32, (seed >> 32) & _MASK32
    for _ in range(ROUNDS_PER_HEAD):
        product0, product1 = c0 * _MULTIPLIERS_4X32[0], c2 * _MULTIPLIERS_4X32[1]
        c0, c2 = (
            ((product1 >> 32) & _MASK32) ^ c1 ^ key0,
            ((product0 >> 32) & _MASK32) ^ c3 ^ key1,
        )
        c1, c3 = product1 & _MASK32, product0 & _MASK32
        key0, key1 = (key0 + _WEYL) & _MASK32, (key1 + _WEYL_SECOND) & _MASK32
    return c0


def keep_bits(
    keys: torch.Tensor, query: torch.Tensor, key: torch.Tensor, threshold: int
) -> torch.Tensor:
    """True where an element is kept; `keys`, `query` and `key` are int64 and broadcast.

    `keys` are values of `head_keys`, `query` and `key` the positions in the sequence. The result
    has the broadcast shape. Runs in pieces that stay in the cache: the hash is bound by memory
    otherwise.
    """
    if _is_wrapped(keys):
        return _philox_2x32(keys, query, key) >= threshold
    shape = torch.broadcast_shapes(keys.shape, query.shape, key.shape)
    kept = torch.empty(shape, dtype=torch.bool, device=query.device)
    axis = max(range(len(shape)), key=lambda i: shape[i])
    pieces = min(shape[axis], kept.numel() // _PIECE + 1)
    inputs = [x.reshape((1,) * (len(shape) - x.dim()) + x.shape) for x in (keys, query, key)]
    split = [x.tensor_split(pieces, axis) if x.shape[axis] > 1 else [x] * pieces for x in inputs]
    for part, *of_part in zip(kept.tensor_split(pieces, axis), *split, strict=True):
        torch.ge(_philox_2x32(*of_part), threshold, out=part)
    return kept


def _philox_2x32(keys: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The first word of Philox2x32 with counter (query, key).

    The first round works on the arguments as they are, which mostly are a column and a row; from
    the second on everything has the full shape, and memory is used again.
    """
    again = not _is_wrapped(keys)
    product = query * _MULTIPLIER_2X32
    c0 = ((product >> 32) ^ (key ^ keys)).bitwise_and_(_MASK32)
    c1, free = product, torch.empty_like(c0)
    for done in range(1, ROUNDS_PER_ELEMENT):
        keys = (keys + _WEYL) & _MASK32
        product = torch.mul(c0, _MULTIPLIER_2X32, out=free if again else None)
        # Bits above the 32nd, of c1 and of the sign that is shifted in, are cut off at the end.
        c0 = torch.bitwise_right_shift(product, 32, out=c0 if again else None)
        c0.bitwise_xor_(c1).bitwise_xor_(keys).bitwise_and_(_MASK32)
        c1, free = product, c1 if done > 1 else torch.empty_like(c0)
    return c0


def _is_wrapped(x: torch.Tensor) -> bool:
    """Whether x is one of torch.func's, which no result of an operation can be written to."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def keep_mask(
    batch: int,
    heads: int,
    q_len: int,
    kv_len: int,
    dropout_p: float,
    *,
    seed: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """The dropout draw of `sparse_attention` as a dense tensor: bool [B, H, N, M], True = kept.

    With `seed=None` it takes the seed from torch's generator just as `sparse_attention` does, so
    after the same `torch.manual_seed` both see the same draw:

    >>> import torch
    >>> from sparsebert import dropout
    >>> _ = torch.manual_seed(0)
    >>> keep = dropout.keep_mask(1, 2, 64, 64, 0.1)
    >>> 0.85 < keep.float().mean() < 0.95
    tensor(True)
    """
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"keep_mask: dropout_p must be in [0, 1), got {dropout_p}")
    if seed is None:
        seed = draw_seed(device)
    keys = head_keys(seed.to(device), batch, heads)[:, :, None, None]
    query = torch.arange(q_len, device=device)[:, None]
    key = torch.arange(kv_len, device=device)[None, :]
    return keep_bits(keys, query, key, drop_threshold(dropout_p))
