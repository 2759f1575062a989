"""What transformers calls under the name "sparsebert": one mask function, one attention function.

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

A static rule is intersected with the sparse mask once and compiled into the plan. Whatever a plan
cannot express - a 4-D mask, a position bias, a decoder's step with cached keys, a request for the
attention weights - takes the dense route: `dense_attention`, same result, no saving.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.masking_utils import (
    AttentionMaskInterface,
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)
from transformers.utils import output_capturing

from sparsebert import patterns
from sparsebert.integrations.dense_route import dense_attention
from sparsebert.masks import AttentionMask
from sparsebert.ops import sparse_attention
from sparsebert.plan_cache import MaskPlans, plan_for, rows_for

# transformers' record of what the caller wants returned; not a public name.
_collector: Any = getattr(output_capturing, "_active_collector", None)

IMPLEMENTATION = "sparsebert"
"""The name in `config._attn_implementation`, and of the submodule that holds a layer's mask."""

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


@dataclasses.dataclass(frozen=True)
class ConfigSwap:
    """A model's configuration, and the copy that stands in for it while the model is sparse.

    The copy names our implementation. Configurations are often shared (by two models built from
    one, by encoder and decoder), and the others must not change with it.
    """

    original: PreTrainedConfig
    copy: PreTrainedConfig
    before: dict[str, Any]  # the original's attributes when it was copied


CAUSAL = 0
"""The model's own rule, as an int: None for none, CAUSAL, or the window's w from 1 up."""


class LayerMask(nn.Module):
    """The sparse mask of one attention module (or of several with the same mask).

    Attached as a submodule; it has no parameters and no buffers, so state_dicts are unchanged.
    """

    def __init__(
        self, masks: AttentionMask, index: int, backend: str, configs: tuple[ConfigSwap, ...]
    ) -> None:
        super().__init__()
        self.masks = masks  # of the whole model, to be saved
        self.backend = backend
        self.configs = configs  # to be put back
        self.plans = MaskPlans(masks.layer(index))
        self.ruled: dict[int, MaskPlans] = {}

    @property
    def mask(self) -> AttentionMask:
        """[1, H or 1, N, N], as given, without the model's own rules."""
        return self.plans.mask

    def under(self, rule: int | None) -> MaskPlans:
        """The mask's plans where the model's own rule holds too."""
        if rule is None:
            return self.plans
        _intersect(self, rule)
        return self.ruled[rule]

    def extra_repr(self) -> str:
        mask = self.mask
        return (
            f"[{mask.num_heads}, {mask.q_len}, {mask.kv_len}] at density {mask.density:.2%}, "
            f"backend={self.backend!r}"
        )


@torch.compiler.assume_constant_result
def _intersect(layer: LayerMask, rule: int) -> None:
    """See to it that `layer.ruled` has the mask under `rule`; torch.compile does not look in."""
    if rule not in layer.ruled:
        n = layer.mask.q_len
        other = patterns.causal(n) if rule == CAUSAL else patterns.sliding_window(n, rule)
        layer.ruled[rule] = MaskPlans(layer.mask & other)


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
        attention_mask: see this module's text.
        scaling: factor of the scores; None means D ** -0.5.
        dropout: dropout of the probabilities (transformers passes 0.0 outside training).
        is_causal: overrides `module.is_causal`, and counts only where attention_mask is None.
        position_bias: added to the scores (T5 and its kin).

    Returns the output [B, N, H, D], and the attention weights if the caller wants them.
    """
    layer = getattr(module, IMPLEMENTATION, None)
    if not isinstance(layer, LayerMask):
        raise ValueError(
            f"sparsebert: {type(module).__name__} has no mask, though its model is set to the "
            f"'{IMPLEMENTATION}' attention; call sparsebert.sparsify(model, masks)"
        )
    for name, what in _REFUSED.items():
        if kwargs.get(name) is not None:
            raise ValueError(
                f"sparsebert: {type(module).__name__} uses {what} ({name}), which the sparse "
                "attention does not support; call sparsebert.densify(model) to run it dense"
            )
    q_len, kv_len = query.shape[2], key.shape[2]
    if kv_len > layer.plans.length:
        raise ValueError(
            f"sparsebert: a sequence of {kv_len} tokens, but the masks cover "
            f"{layer.plans.length}; truncate the input, or sparsify with longer masks"
        )
    if query.dtype != value.dtype:  # under autocast, rotary embeddings can leave q and k in fp32
        query, key = query.to(value.dtype), key.to(value.dtype)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    rule, key_mask, full_mask = _read_mask(attention_mask, is_causal)
    if key_mask is not None and key_mask.shape != (query.shape[0], kv_len):
        raise ValueError(
            f"sparsebert: attention_mask must have shape [B={query.shape[0]}, M={kv_len}], cached "
            f"keys included, got {list(key_mask.shape)}"
        )
    need_weights = _weights_wanted(kwargs)

    if q_len == kv_len and full_mask is None and position_bias is None and not need_weights:
        out = sparse_attention(
            query,
            key,
            value,
            plan_for(layer.under(rule), q_len, kv_len, query.device, layer.backend),
            scale=scaling,
            key_mask=key_mask,
            dropout_p=dropout,
            backend=layer.backend,
        )
        return cast(torch.Tensor, out).transpose(1, 2).contiguous(), None

    if q_len != kv_len and not is_causal:
        raise ValueError(
            f"sparsebert: {type(module).__name__} got {q_len} queries and {kv_len} keys, and it "
            "is not clear which rows of the mask apply; self-attention can be sparse, and causal "
            "models with cached keys, but not cross-attention and prefix tuning"
        )
    # Cached keys come first: the queries are the last rows.
    allowed = rows_for(layer.under(rule), kv_len - q_len, q_len, kv_len, query.device)[None]
    bias = position_bias
    if key_mask is not None:
        allowed = allowed & key_mask[:, None, None, :]
    if full_mask is not None and full_mask.dtype == torch.bool:
        allowed = allowed & full_mask
    elif full_mask is not None:
        # transformers writes "forbidden" as the most negative number.
        allowed = allowed & (full_mask > torch.finfo(full_mask.dtype).min / 2)
        bias = full_mask if bias is None else bias + full_mask
    out, weights = dense_attention(
        query,
        key,
        value,
        allowed,
        bias=bias,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout_p=dropout,
        need_weights=need_weights,
    )
    return out.transpose(1, 2).contiguous(), weights


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


def _read_mask(
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


def _weights_wanted(kwargs: dict[str, Any]) -> bool:
    """Whether the caller asked for attention weights (`output_attentions=True`)."""
    if kwargs.get("output_attentions"):
        return True
    # Some layers, GPT-2's for one, keep the request to themselves.
    if _collector is None:
        return False
    wanted = _collector.global_var if torch.compiler.is_compiling() else _collector.get()
    return wanted is not None and any(name.endswith("attentions") for name in wanted)


AttentionInterface.register(IMPLEMENTATION, sparsebert_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sparsebert_mask)
