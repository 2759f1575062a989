"""Which modules of a HuggingFace model do self-attention, and which model builds their masks."""

from __future__ import annotations

import dataclasses
import inspect
import re

from torch import nn
from transformers import PreTrainedModel

_CROSS = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)
"""How transformers' models name their cross-attention."""


@dataclasses.dataclass(frozen=True)
class SelfAttention:
    """The self-attention of one encoder (or decoder-only model).

    Attributes:
        root: the module that was asked about, or the encoder in it.
        owner: the model that builds the attention masks of its layers.
        modules: its attention modules by name, in the order in which the model registers them.
    """

    root: nn.Module
    owner: PreTrainedModel
    modules: dict[str, nn.Module]

    @property
    def num_heads(self) -> int | None:
        """Query heads of every layer, if the configuration says it under a usual name."""
        heads = getattr(self.owner.config, "num_attention_heads", None)
        return heads if isinstance(heads, int) else None


def find_self_attention(name: str, model: nn.Module) -> SelfAttention:
    """The self-attention of `model`, or of its encoder if it is an encoder-decoder.

    Args:
        name: the function that asks, for messages.
        model: a transformers model, or a module around one.

    Raises:
        TypeError: there is no transformers model in it.
        ValueError: its attention is hand-written, has cross-attention, or belongs to several
            models.
    """
    models = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    if not models:
        raise TypeError(
            f"{name}: model must be a transformers PreTrainedModel, got {type(model).__name__}; "
            "pass the whole model, not a part of one"
        )
    root = _encoder_of(model)
    found = {key: m for key, m in root.named_modules() if _calls_interface(m)}
    if not found:
        names = ", ".join(dict.fromkeys(type(m).__name__ for m in models))
        raise ValueError(
            f"{name}: {names} has attention of its own, written out by hand, which never asks "
            "transformers' AttentionInterface, so no mask would reach it; use a model that does "
            "(BERT, RoBERTa, DistilBERT, ELECTRA, ALBERT, ModernBERT, ViT, ...)"
        )
    owners = {key: _owner(root, key) for key in found}
    parts = {id(owner): owner for owner in owners.values()}
    if len(parts) > 1:
        names = ", ".join(sorted(_name_of(model, owner) for owner in parts.values()))
        raise ValueError(
            f"{name}: {type(model).__name__} has attention in several models ({names}); "
            f"pass one of them, for example model.{names.split(', ')[0]}"
        )
    (owner,) = parts.values()
    if not owner._can_set_attn_implementation():
        raise ValueError(
            f"{name}: transformers cannot set the attention of {type(owner).__name__}, because "
            "some of it is written out by hand"
        )
    for key, module in found.items():
        if _CROSS.search(f"{key} {type(module).__name__}") or getattr(
            module, "is_cross_attention", False
        ):
            raise ValueError(
                f"{name}: {type(owner).__name__} has cross-attention ({key}); only the "
                "self-attention of encoders and of decoder-only models can be sparse"
            )
    return SelfAttention(root, owner, found)


def _encoder_of(model: nn.Module) -> nn.Module:
    """The encoder of an encoder-decoder, else the model itself."""
    if isinstance(model, PreTrainedModel) and getattr(model.config, "is_encoder_decoder", False):
        encoder = model.get_encoder()
        if isinstance(encoder, PreTrainedModel):
            return encoder
    return model


def _calls_interface(module: nn.Module) -> bool:
    """Whether the module's forward looks its attention up in transformers' registry."""
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _owner(root: nn.Module, key: str) -> PreTrainedModel:
    """The innermost PreTrainedModel around the module named `key`."""
    path = key.split(".")
    for length in range(len(path) - 1, -1, -1):
        candidate = root.get_submodule(".".join(path[:length]))
        if isinstance(candidate, PreTrainedModel):
            return candidate
    raise TypeError(
        f"the attention module {key!r} is in no transformers model; pass the whole model, "
        "not a part of one"
    )


def _name_of(model: nn.Module, part: nn.Module) -> str:
    return str(next(key for key, module in model.named_modules() if module is part))
