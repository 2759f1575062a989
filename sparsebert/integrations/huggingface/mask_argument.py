"""The forms that `sparsify` takes masks in, and what it says of those that do not fit a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from sparsebert.integrations.huggingface.discovery import SelfAttention
from sparsebert.masks import AttentionMask, as_mask

Masks = AttentionMask | torch.Tensor | npt.NDArray[np.bool_]

_ABOUT_SHARED_LAYERS = " (layers that share one module, as in ALBERT, share one mask)"
_ABOUT_BATCHES = (
    "; a mask for each example of a batch, [B, H, N, N], is not static: pass it in the model's "
    "call, as attention_mask"
)
_ABOUT_PADDING = "; a mask of padding, [B, N], goes into the model's call, as attention_mask"


def whole_mask(masks: Masks | Sequence[Masks], attention: SelfAttention) -> AttentionMask:
    """`masks` in any accepted form as one AttentionMask [L or 1, H or 1, N, N].

    Raises:
        TypeError: masks that are not boolean.
        ValueError: of the wrong number, heads or shape for the attention.
    """
    layers, heads = len(attention.modules), attention.num_heads
    owner = type(attention.owner).__name__
    if isinstance(masks, (list, tuple)):
        if len(masks) != layers:
            raise ValueError(
                f"sparsify: {len(masks)} masks for {layers} attention modules of {owner}; give "
                "one for each, or a single mask, not in a list, for all" + _ABOUT_SHARED_LAYERS
            )
        each = [_as_mask(mask, f"masks[{i}]", layers, heads) for i, mask in enumerate(masks)]
        for i, mask in enumerate(each):
            if mask.num_layers != 1:
                raise ValueError(
                    f"sparsify: masks[{i}] has {mask.num_layers} layers; in a sequence each mask "
                    "is for one layer (mask.layer(i))"
                )
            if mask.shape[2:] != each[0].shape[2:]:
                raise ValueError(
                    f"sparsify: masks[{i}] is {mask.q_len} x {mask.kv_len} but masks[0] is "
                    f"{each[0].q_len} x {each[0].kv_len}; crop them to one size"
                )
        for i, mask in enumerate(each):
            _check_heads(mask, f"masks[{i}]", heads, owner)
        whole = AttentionMask.stack_layers(each)
    else:
        whole = _as_mask(masks, "masks", layers, heads)
    _check_heads(whole, "masks", heads, owner)
    if whole.num_layers not in (1, layers):
        raise ValueError(
            f"sparsify: masks has {whole.num_layers} layers but {owner} has {layers} attention "
            f"modules; give 1 (for all) or {layers}"
            + _ABOUT_SHARED_LAYERS
            + _ABOUT_BATCHES * (getattr(masks, "ndim", 0) == 4)
        )
    if whole.q_len != whole.kv_len:
        raise ValueError(
            f"sparsify: masks are {whole.q_len} x {whole.kv_len}, but self-attention needs square "
            "ones; crop them" + _ABOUT_PADDING * (getattr(masks, "ndim", 0) == 2)
        )
    return whole


def _as_mask(mask: object, name: str, layers: int, heads: int | None) -> AttentionMask:
    whole = as_mask("sparsify", name, mask, "[N, N], [H, N, N] or [L, H, N, N]")
    shape: tuple[int, ...] = getattr(mask, "shape", ())
    if len(shape) == 3 and 1 < shape[0] == layers == heads and name == "masks":
        raise ValueError(
            f"sparsify: {name} has shape {list(shape)}, and the model has {layers} layers "
            f"and {heads} heads: which is meant? Pass {name}[None] for heads, {name}[:, None] for "
            "layers"
        )
    return whole


def _check_heads(mask: AttentionMask, name: str, heads: int | None, owner: str) -> None:
    if heads is not None and mask.num_heads not in (1, heads):
        raise ValueError(
            f"sparsify: {name} has {mask.num_heads} heads but {owner} has {heads}; "
            f"give 1 (for all) or {heads}"
        )
