"""The rules of a model beside the sparse mask: padding, causality, windows, 4-D masks.

transformers asks the **mask function** once per forward for the mask of the padding and of the
model's own rule (bidirectional, causal, sliding window), and hands the result to the **attention
function** in every layer. Building the usual [B, 1, N, N] there would hide what is static, so the
mask function answers with what the attention function can use:

    None                no padding; causal if the module is, as in transformers' SDPA
    [B, M]              bidirectional, and which keys are real tokens
    [B, 1, 1, 1, M]     causal, and which keys are real tokens
    [B, 1 + w, 1, 1, M] bidirectional within a window, abs(i - j) <= w, and which keys are real
    [B, 1, N, M]        anything else (also a 4-D mask from the user): all of it, bool or additive

(The five-dimensional ones are expanded views, cheap, and like nothing that models make; M = 0
stands for "no padding". A tensor passes through any model code; an object of our own may not.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)

from sparsebert import patterns
from sparsebert.masks import AttentionMask

CAUSAL = 0
"""The model's own rule, as an int: None for none, CAUSAL, or the window's w from 1 up."""


def rule_mask(rule: int, length: int) -> AttentionMask:
    """A model's own rule as a mask [1, 1, N, N]."""
    if rule == CAUSAL:
        return patterns.causal(length)
    if rule >= length - 1:  # a short sequence, all within the window
        return patterns.dense(length)
    return patterns.sliding_window(length, rule)


# Arguments that change the result in ways a sparse mask cannot follow, and what they belong to.
_REFUSED = {
    "softcap": "soft-capped scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "cache": "a paged cache",
    "cu_seq_lens_q": "several sequences packed into one",
    "indices": "attention to selected keys",
    "block_indices": "attention to selected blocks",
}


def refuse_unsupported(module: nn.Module, arguments: dict[str, Any]) -> None:
    """Raise ValueError if the layer passes what our attention would have to ignore."""
    for name, what in _REFUSED.items():
        if arguments.get(name) is not None:
            raise ValueError(
                f"sparsebert: {type(module).__name__} uses {what} ({name}), which the sparse "
                "attention does not support; call sparsebert.densify(model) to run it dense"
            )


def sparsebert_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_bidirectional_skip: bool = False,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The mask of one forward, as `sparsebert_attention` reads it; see the module's text.

    Arguments are those of `transformers.masking_utils.sdpa_mask`.
    """
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(
            "sparsebert: attention_mask must be [B, N] (1 = a real token) or a full mask "
            f"[B, 1, N, N], got shape {list(attention_mask.shape)}"
        )
    if mask_function is bidirectional_mask_function:
        return attention_mask
    if kv_offset or isinstance(q_offset, torch.Tensor) or q_offset + q_length != kv_length:
        raise ValueError(
            "sparsebert: a static or sliding-window key/value cache does not say which rows of "
            "the mask apply; use the default DynamicCache, or use_cache=False"
        )
    # With allow_is_bidirectional_skip, transformers promises nothing but a window and padding.
    window = local_size if allow_is_bidirectional_skip else None
    if mask_function is causal_mask_function or window:
        device = kwargs.get("device", "cpu")
        if attention_mask is None:
            attention_mask = torch.empty((batch_size, 0), dtype=torch.bool, device=device)
        return attention_mask[:, None, None, None].expand(-1, 1 + (window or 0), -1, -1, -1)
    return cast(
        torch.Tensor,
        sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            **{**kwargs, "allow_is_causal_skip": False},
        ),
    )


def read_mask(
    attention_mask: torch.Tensor | None, is_causal: bool
) -> tuple[int | None, torch.Tensor | None, torch.Tensor | None]:
    """(rule, key mask [B, M] or None, full mask [B, 1 or H, N, M] or None)."""
    if attention_mask is None:
        return (CAUSAL if is_causal else None), None, None
    if attention_mask.dim() == 2:
        return None, attention_mask, None
    if attention_mask.dim() == 5:
        key_mask = attention_mask[:, 0, 0, 0]
        return attention_mask.shape[1] - 1, key_mask if key_mask.shape[1] else None, None
    if attention_mask.dim() == 4 and (
        attention_mask.dtype == torch.bool or attention_mask.is_floating_point()
    ):
        return None, None, attention_mask
    raise ValueError(
        f"sparsebert: the attention gets a mask {attention_mask.dtype} "
        f"{list(attention_mask.shape)}, which is neither [B, M] nor [B, 1, N, M], bool (True = "
        "may attend) or additive"
    )


def check_key_mask(key_mask: torch.Tensor | None, batch: int, kv_len: int) -> None:
    """Raise ValueError unless the padding mask fits the keys."""
    if key_mask is not None and key_mask.shape != (batch, kv_len):
        raise ValueError(
            f"sparsebert: attention_mask must have shape [B={batch}, M={kv_len}], cached "
            f"keys included, got {list(key_mask.shape)}"
        )


def combine(
    allowed: torch.Tensor,
    key_mask: torch.Tensor | None,
    full_mask: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(positions that all rules allow, what is added to the scores), for attention in full.

    Args:
        allowed: bool, broadcasts to [B, H, N, M].
        key_mask: bool [B, M] or None.
        full_mask: [B, 1 or H, N, M], bool or additive, or None.
        bias: added to the scores, or None.
    """
    if key_mask is not None:
        allowed = allowed & key_mask.bool()[:, None, None, :]
    if full_mask is not None and full_mask.dtype == torch.bool:
        allowed = allowed & full_mask
    elif full_mask is not None:
        # transformers writes "forbidden" as the most negative number.
        allowed = allowed & (full_mask > torch.finfo(full_mask.dtype).min / 2)
        bias = full_mask if bias is None else bias + full_mask
    return allowed, bias
