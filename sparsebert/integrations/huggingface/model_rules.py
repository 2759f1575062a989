"""The rules of a model beside the sparse mask: padding, causality, windows, 4-D masks.

transformers asks the **mask function** once per forward for the mask of the padding and of the
model's own rule (bidirectional, causal, sliding window), and hands the result to the **attention
function** in every layer. Building the usual [B, 1, N, N] there would hide what is static, so the
mask function answers with what the attention function can use, in the sizes and the content of
one tensor:

    None                       bidirectional or, if the module is, causal; no padding
    [B, 1 + r, 1, 1, s, 1, M]  the rule r: 0 none, 1 causal, 1 + w abs(i - j) <= w; and which keys
                               are real tokens; M = 0 for no padding
    [B, 1, 1, 1, s, N + 1, T]  any other mask, in the first N rows and, of the T tokens so far, for
                               those whose keys are there (the last M: sliding-window caches drop
                               what left the window); and in the last row which are real tokens

s is 2 where a sequence may begin with padding, else 1; and 3 where several sequences, without
padding, may be packed into one: then the last row says which tokens begin one. These are views,
cheap, and like nothing that models make. (A tensor passes through any model code; an object of our
own may not.) What does not come from the mask function:

    [B, M] or [B, 1, 1, M]     which keys are real tokens, bidirectional (N > 1)
    [B, 1 or H, N, M]          all of it, from the user

where those of four dimensions are bool or additive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)

from sparsebert.integrations.huggingface.padding import (
    first_of_each,
    first_tokens,
    may_begin_with_padding,
    packed_begins,
)
from sparsebert.masks import AttentionMask, patterns
from sparsebert.support.tensors import may_hold_any

CAUSAL = 0
"""The model's own rule, as an int: None for none, CAUSAL, or the window's w from 1 up."""


def rule_mask(rule: int, length: int) -> AttentionMask:
    """A model's own rule as a mask [1, 1, N, N]."""
    if rule == CAUSAL:
        return patterns.causal(length)
    if rule >= length - 1:  # a short sequence, all within the window
        return patterns.dense(length)
    return patterns.sliding_window(length, rule)


_PADDED, _PACKED = 2, 3  # where sequences may begin, see above

_PADDING_BELOW = -1000.0
"""In an additive mask of padding alone: older models write -10000 (MarkupLM)."""

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

_STATIC_CACHE = (
    "sparsebert: a static key/value cache does not say which rows of the mask apply; use "
    "transformers' default cache, which grows (no cache_implementation), or use_cache=False"
)


def unsupported(arguments: dict[str, Any]) -> str | None:
    """What a layer passes that our attention would have to ignore, if it does."""
    for name, what in _REFUSED.items():
        if arguments.get(name) is not None:
            return f"{what} ({name})"
    return None


def refuse_unsupported(module: nn.Module, arguments: dict[str, Any]) -> None:
    """Raise ValueError if the layer passes what our attention would have to ignore."""
    if what := unsupported(arguments):
        raise ValueError(
            f"sparsebert: {type(module).__name__} uses {what}, which the sparse attention does "
            "not support; call sparsebert.densify(model) to run it dense"
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
    if attention_mask is not None and attention_mask.dim() == 7:  # of `_encode`
        raise ValueError(_STATIC_CACHE)  # `generate` makes masks beforehand for such caches alone
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(
            "sparsebert: attention_mask must be [B, N] (1 = a real token) or a full mask "
            f"[B, 1, N, N], got shape {list(attention_mask.shape)}"
        )
    if mask_function is bidirectional_mask_function:
        return None if attention_mask is None else _encode(None, attention_mask)
    total = kv_offset + kv_length
    if isinstance(q_offset, torch.Tensor) or q_offset + q_length != total:
        raise ValueError(_STATIC_CACHE)
    device = kwargs.get("device", "cpu")
    # With allow_is_bidirectional_skip, transformers promises nothing but a window and padding.
    window = local_size if allow_is_bidirectional_skip else None
    if (mask_function is causal_mask_function or window) and not kv_offset:
        if attention_mask is None:
            attention_mask = torch.empty((batch_size, 0), dtype=torch.bool, device=device)
        return _encode(window or CAUSAL, attention_mask)
    full = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **{**kwargs, "allow_is_causal_skip": False},
    )
    assert full is not None  # no other skip was allowed
    if attention_mask is None:
        if total == q_length and not kwargs.get("use_vmap") and _sees_the_last(local_size, kwargs):
            begins = packed_begins(full[:, 0])
            if may_hold_any(begins[:, 1:], wait=True):
                return _encode(None, begins, full[:, 0], _PACKED)
        attention_mask = torch.ones((batch_size, total), dtype=torch.bool, device=device)
    check_key_mask(attention_mask, batch_size, total)
    return _encode(None, attention_mask, functional.pad(full[:, 0], (kv_offset, 0)))


def _sees_the_last(local_size: int | None, arguments: dict[str, Any]) -> bool:
    """Whether a token of a model attends to the one before it, if that is of its sequence.

    Not where a chunk begins.
    """
    chunked = getattr(arguments.get("config"), "attention_chunk_size", None)
    return not chunked and (local_size is None or local_size > 1)


def _encode(
    rule: int | None,
    real: torch.Tensor,
    full: torch.Tensor | None = None,
    begin: int | None = None,
) -> torch.Tensor:
    """See the module's text; `real` is [B, M] or, beside `full` [B, N, T], [B, T]."""
    if begin is None:
        begin = _PADDED if real.shape[1] and may_begin_with_padding(real) else 1
    rows = real[:, None] if full is None else torch.cat([full, real.bool()[:, None]], dim=1)
    kind = 0 if rule is None else 1 + rule
    return rows[:, None, None, None, None].expand(-1, 1 + kind, -1, -1, begin, -1, -1)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What holds in one call beside the sparse mask.

    Attributes:
        rule: None, CAUSAL or a window, see there.
        key_mask: [B, M], which keys are real tokens, or None; not where full_mask says it.
        full_mask: [B, 1 or H, N, M], bool or additive, or None.
        offset: how many tokens came before the first key that is there.
        first: int64 [B], columns of the sequences' first real tokens, offset included; of packed
            sequences [B, N], for each token that of its sequence; None where all begin at 0.
    """

    rule: int | None = None
    key_mask: torch.Tensor | None = None
    full_mask: torch.Tensor | None = None
    offset: int = 0
    first: torch.Tensor | None = None


def rule_rows(
    rules: Rules, start: int, q_len: int, kv_len: int, device: torch.device
) -> torch.Tensor:
    """The model's own rule alone for `q_len` queries from position `start`, bool [1, 1, N, M]."""
    if rules.rule is None:
        return torch.ones(1, 1, q_len, kv_len, dtype=torch.bool, device=device)
    queries = torch.arange(start, start + q_len, device=device)[:, None]
    ahead = torch.arange(rules.offset, rules.offset + kv_len, device=device) - queries
    return (ahead <= 0 if rules.rule == CAUSAL else ahead.abs() <= rules.rule)[None, None]


def read_mask(
    attention_mask: torch.Tensor | None, is_causal: bool, q_len: int, kv_len: int
) -> Rules:
    """What the mask function said, or the model, or the user, of N x M scores."""
    if attention_mask is None:
        return Rules(CAUSAL if is_causal else None)
    if attention_mask.dim() == 2:
        return Rules(key_mask=attention_mask, first=_first_of(attention_mask))
    if attention_mask.dim() == 7:
        rows = attention_mask[:, 0, 0, 0, 0]
        real = rows[:, -1]
        first = None
        if attention_mask.shape[4] == _PADDED:
            first = first_tokens(real)
        elif attention_mask.shape[4] == _PACKED:
            first = first_of_each(real)
        if rows.shape[1] > 1:
            offset = rows.shape[2] - kv_len
            # The queries are the last: a model may need the result of these alone (Gemma 4).
            full_mask = rows[:, None, -1 - q_len : -1, offset:]
            return Rules(full_mask=full_mask, offset=offset, first=first)
        kind = attention_mask.shape[1] - 1
        rule = kind - 1 if kind else None
        return Rules(rule, real if real.shape[1] else None, first=first)
    if attention_mask.dim() == 4 and (
        attention_mask.dtype == torch.bool or attention_mask.is_floating_point()
    ):
        if q_len == 1 or attention_mask.shape[1:3] != (1, 1):
            return Rules(full_mask=attention_mask)
        if attention_mask.dtype == torch.bool:
            real = attention_mask[:, 0, 0]
            return Rules(key_mask=real, first=_first_of(real))
        padding = attention_mask < _PADDING_BELOW
        lowest = torch.finfo(attention_mask.dtype).min
        return Rules(
            full_mask=attention_mask.masked_fill(padding, lowest),
            first=_first_of(~padding[:, 0, 0]),
        )
    raise ValueError(
        f"sparsebert: the attention gets a mask {attention_mask.dtype} "
        f"{list(attention_mask.shape)}, which is neither [B, M] nor [B, 1, N, M], bool (True = "
        "may attend) or additive"
    )


def _first_of(real: torch.Tensor) -> torch.Tensor | None:
    return first_tokens(real) if may_begin_with_padding(real) else None


def _allows(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask, bool or additive, does not forbid."""
    if mask.dtype == torch.bool:
        return mask
    # transformers writes "forbidden" as the most negative number.
    return mask > torch.finfo(mask.dtype).min / 2


def check_key_mask(key_mask: torch.Tensor | None, batch: int, kv_len: int) -> None:
    """Raise ValueError unless the padding mask fits the keys, and is one."""
    if key_mask is None:
        return
    if key_mask.is_floating_point():  # 0 and -inf would come out the wrong way round
        raise ValueError(
            f"sparsebert: attention_mask [B, M] must be bool, True = a real token, got "
            f"{key_mask.dtype}; from an additive mask (0 = keep) write attention_mask == 0"
        )
    if key_mask.shape != (batch, kv_len):
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
    if full_mask is not None:
        allowed = allowed & _allows(full_mask)
        if full_mask.dtype != torch.bool:
            bias = full_mask if bias is None else bias + full_mask
    return allowed, bias
