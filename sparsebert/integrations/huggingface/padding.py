"""Sequences that begin with padding: position 0 of a mask is their first real token.

A batch for generation is padded on the left, so that column j of the tensors is another position
in each sequence. A plan knows nothing of examples; so the tokens of each are moved, its first one
to the front and the padding behind, the plan runs, and the result is moved back: O(N D).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from sparsebert.mask_plans import MaskPlans, packed_for
from sparsebert.support.tensors import is_transformed, may_hold_any


def may_begin_with_padding(real: torch.Tensor) -> bool:
    """False where every sequence of `real` [B, M], True = a real token, is seen to begin with one.

    Ask once in a forward: this waits for a GPU.
    """
    return may_hold_any(real[:, :1] == 0, wait=True)


def packed_begins(full: torch.Tensor) -> torch.Tensor:
    """Which tokens begin a sequence, bool [B, N], if causal sequences are packed into one.

    Those that may not attend to the token before them, by the mask `full` [B, N, N].
    """
    return functional.pad(~full.diagonal(-1, 1, 2), (1, 0), value=True)


def first_of_each(begins: torch.Tensor) -> torch.Tensor:
    """The column of the first token of each token's sequence, int64 [B, N]."""
    columns = torch.arange(begins.shape[1], device=begins.device)
    return (columns * begins).cummax(dim=-1).values


def first_tokens(real: torch.Tensor) -> torch.Tensor:
    """The column of each sequence's first real token, int64 [B]; 0 where there is none."""
    return real.int().argmax(dim=-1)


class ToFront:
    """Moves the tokens of every sequence so that its first real one comes first, and back.

    The order is kept; what stood before the first token comes after the last.
    """

    def __init__(self, first: torch.Tensor, length: int) -> None:
        self._columns = torch.arange(length, device=first.device)
        self._first = first[:, None]
        self._index = (self._columns + self._first) % length  # [B, N]
        self._back = (self._columns - self._first) % length

    def mask(self, real: torch.Tensor) -> torch.Tensor:
        """A padding mask [B, N], moved."""
        return real.gather(1, self._index)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """q, k or v [B, H, N, D], moved."""
        return _moved(x, self._index, self._back)

    def back(self, o: torch.Tensor) -> torch.Tensor:
        """The output [B, H, N, D] where it belongs; zeros for the padding before the first token.

        (Moved behind the sequence, it could see real tokens.)
        """
        o = _moved(o, self._back, self._index)
        return o.masked_fill((self._columns < self._first)[:, None, :, None], 0.0)


def _moved(x: torch.Tensor, index: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    if is_transformed():  # which our function has no rules for
        return _take(x, index)
    moved: torch.Tensor = _Move.apply(x, index, back)
    return moved


def _take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x.gather(2, index[:, None, :, None].expand(x.shape))


class _Move(torch.autograd.Function):
    """Take columns in another order; the gradient takes them in the inverse order.

    (The gradient of `gather` would be a scatter, which is slower and on a GPU not deterministic.)
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, index: torch.Tensor, back: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(index, back)
        return _take(x, index)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        index, back = ctx.saved_tensors
        return _Move.apply(grad, back, index), None, None


def values_from_first(mask: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """A mask [H, N, N] as each sequence of a batch sees it, [B, H, N, N], differentiably.

    `first` is as for `rows_from_first`. What stands before the first real token is hidden by the
    padding mask.
    """
    length = mask.shape[-1]
    first = first[:, None] if first.dim() == 1 else first
    at = (torch.arange(length, device=mask.device) - first).clamp(min=0)  # [B, N]
    return mask[:, at[:, :, None], at[:, None, :]].transpose(0, 1)


def rows_from_first(
    plans: MaskPlans, first: torch.Tensor, start: int, q_len: int, offset: int, kv_len: int
) -> torch.Tensor:
    """The mask as each sequence of a batch sees it, bool [B, H, q_len, kv_len].

    Args:
        first: column of each sequence's first real token, [B]; or, where all keys are there, of
            the first token of each token's sequence, [B, N].
        start: column of the first query.
        offset: column of the first key.

    Columns before the first real token are False.
    """
    bits = packed_for(plans, first.device)  # [H, N, ceil(N / 8)]
    one = first.dim() == 1
    of_rows, first = (first[:, None],) * 2 if one else (first[:, start : start + q_len], first)
    rows = start + torch.arange(q_len, device=first.device) - of_rows  # [B, q_len]
    keys = offset + torch.arange(kv_len, device=first.device) - first  # [B, kv_len]
    inside = (rows >= 0)[:, :, None] & (keys >= 0)[:, None, :]
    rows, keys = rows.clamp(min=0), keys.clamp(min=0)
    taken = bits[:, rows]  # [H, B, q_len, W]
    at = (keys // 8)[None, :, None, :].expand(*taken.shape[:3], -1)
    allowed = taken.gather(-1, at) >> (keys % 8).to(torch.uint8)[None, :, None, :]
    return (allowed & 1).bool().transpose(0, 1) & inside[:, None]
