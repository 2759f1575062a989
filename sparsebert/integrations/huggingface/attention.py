"""What transformers' attention layers call under the name "sparsebert", and what it reads there.

A model's static rule (see `model_rules`) is intersected with the sparse mask once and compiled
into the plan. Whatever a plan cannot express - a 4-D mask, a position bias, a decoder's step with
cached keys, a request for the attention weights - takes the dense route: `dense_attention`, same
result, no saving.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import output_capturing

from sparsebert.api import sparse_attention
from sparsebert.integrations.huggingface.attached import AttachedLayer, LayerMask
from sparsebert.integrations.huggingface.configs import IMPLEMENTATION
from sparsebert.integrations.huggingface.dense import dense_attention
from sparsebert.integrations.huggingface.model_rules import (
    Rules,
    check_key_mask,
    combine,
    read_mask,
    refuse_unsupported,
    rule_rows,
    sparsebert_mask,
)
from sparsebert.integrations.huggingface.padding import ToFront, rows_from_first
from sparsebert.mask_plans import plan_for, rows_for

# transformers' record of what the caller wants returned; not a public name.
_collector: Any = getattr(output_capturing, "_active_collector", None)


def sparsebert_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sparse attention in the form that transformers' layers call.

    Args:
        module: the calling layer, with its `LayerMask`.
        query: [B, H, N, D]; key, value: [B, H_kv, M, D], M > N if earlier keys are cached.
        attention_mask: see `model_rules`.
        scaling: factor of the scores; None means D ** -0.5.
        dropout: dropout of the probabilities (transformers passes 0.0 outside training).
        is_causal: overrides `module.is_causal`, and counts only where attention_mask is None.
        position_bias: added to the scores (T5 and its kin).

    Returns the output [B, N, H, D], and the attention weights if the caller wants them.
    """
    layer = getattr(module, IMPLEMENTATION, None)
    if not isinstance(layer, AttachedLayer):
        raise ValueError(
            f"sparsebert: {type(module).__name__} has no mask, though its model is set to the "
            f"'{IMPLEMENTATION}' attention; call sparsebert.sparsify(model, masks)"
        )
    refuse_unsupported(module, kwargs)
    q_len, kv_len = query.shape[2], key.shape[2]
    if query.dtype != value.dtype:  # under autocast, rotary embeddings can leave q and k in fp32
        query, key = query.to(value.dtype), key.to(value.dtype)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    rules = read_mask(attention_mask, is_causal, q_len, kv_len)
    check_key_mask(rules.key_mask, query.shape[0], kv_len)
    tokens = rules.offset + kv_len
    if not isinstance(layer, LayerMask):
        allowed = rule_rows(rules, tokens - q_len, q_len, kv_len, query.device)
        return _all_scores(
            query, key, value, allowed, rules, position_bias, scaling, dropout, kwargs
        )
    if layer.first_call is not None:
        layer.first_call.saw(module, query, key, value)
    _check_length(layer, tokens)
    first = rules.first if layer.positions == "sequence" else None
    whole = q_len == tokens and rules.full_mask is None and position_bias is None
    if whole and not _weights_wanted(kwargs):
        plan = plan_for(
            layer.under(rules.rule),
            q_len,
            kv_len,
            query.device,
            head_dim=query.shape[-1],
            heads=query.shape[1],
        )
        key_mask = rules.key_mask
        move = None if first is None else ToFront(first, q_len)
        if move is not None and key_mask is not None:
            query, key, value = (move.tokens(x) for x in (query, key, value))
            key_mask = move.mask(key_mask)
        out = sparse_attention(
            query,
            key,
            value,
            plan,
            scale=scaling,
            key_mask=key_mask,
            dropout_p=dropout,
            backend=layer.backend,
        )
        out = out if move is None else move.back(out)
        return out.transpose(1, 2).contiguous(), None

    if q_len != kv_len and not is_causal:
        raise ValueError(
            f"sparsebert: {type(module).__name__} got {q_len} queries and {kv_len} keys, and it "
            "is not clear which rows of the mask apply; self-attention can be sparse, and causal "
            "models with cached keys, but not cross-attention and prefix tuning"
        )
    # Cached keys come first: the queries are the last rows.
    plans, start = layer.under(rules.rule), tokens - q_len
    if first is None:
        allowed = rows_for(plans, start, q_len, tokens, query.device)[None, ..., rules.offset :]
    else:
        allowed = rows_from_first(plans, first, start, q_len, rules.offset, kv_len)
    return _all_scores(query, key, value, allowed, rules, position_bias, scaling, dropout, kwargs)


def _all_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    allowed: torch.Tensor,
    rules: Rules,
    position_bias: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The dense route, over what both `allowed` and the model's masks allow."""
    allowed, bias = combine(allowed, rules.key_mask, rules.full_mask, position_bias)
    out, weights = dense_attention(
        query,
        key,
        value,
        allowed,
        bias=bias,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout_p=dropout,
        need_weights=_weights_wanted(kwargs),
    )
    return out.transpose(1, 2).contiguous(), weights


def _check_length(layer: LayerMask, tokens: int) -> None:
    """Raise ValueError unless the mask, or a part of it, is for so many tokens."""
    length = layer.plans.length
    if tokens > length:
        remedy = "truncate the input, or sparsify with longer masks"
        if layer.only_whole:  # an image
            remedy = (
                "sparsify with masks for this input; in front of a grid's patches num_special "
                "makes room for [CLS] and its like"
            )
        raise ValueError(
            f"sparsebert: a sequence of {tokens} tokens, but the masks cover {length}; {remedy}"
        )
    if tokens < length and layer.only_whole:
        raise ValueError(
            f"sparsebert: a sequence of {tokens} tokens, but the masks are for {length}, and "
            + layer.only_whole
        )


def _weights_wanted(kwargs: dict[str, Any]) -> bool:
    """Whether the caller asked for attention weights (`output_attentions=True`)."""
    if kwargs.get("output_attentions"):
        return True
    # Some layers, GPT-2's for one, keep the request to themselves.
    if _collector is None:
        return False
    wanted = _collector.global_var if torch.compiler.is_compiling() else _collector.get()
    return wanted is not None and any(name.endswith("attentions") for name in wanted)


def register() -> None:
    """Let transformers know our attention by its name."""
    AttentionInterface.register(IMPLEMENTATION, sparsebert_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sparsebert_mask)
