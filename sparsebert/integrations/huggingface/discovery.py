"""Which modules of a HuggingFace model do self-attention, and which model builds their masks."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sparsebert.integrations.huggingface.not_a_model import not_a_model_error

_CROSS = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)
"""How transformers' models name their cross-attention."""

_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_SOFTMAX = {"softmax", "scaled_dot_product_attention", "multi_head_attention_forward"}
"""How attention that is written out by hand is recognised: by its class's name, and by its code
(routers of experts have a softmax too, and layers of layers "attention" in their names)."""


@dataclasses.dataclass(frozen=True)
class SelfAttention:
    """The self-attention of one encoder (or decoder-only model), or the chosen part of it.

    Attributes:
        root: the module that was asked about, or the encoder in it.
        owner: the model that builds the attention masks of its layers.
        modules: its attention modules by name, in the order in which the model registers them.
        chosen: the caller named them, so that nobody else needs to judge whether they belong
            together.
        others: the owner's further attention modules, which the caller did not choose.
    """

    root: nn.Module
    owner: PreTrainedModel
    modules: dict[str, nn.Module]
    chosen: bool = False
    others: dict[str, nn.Module] = dataclasses.field(default_factory=dict)

    @property
    def num_heads(self) -> int | None:
        """Query heads of every layer, if the configuration says it under a usual name."""
        heads = getattr(self.owner.config, "num_attention_heads", None)
        return heads if isinstance(heads, int) else None


def find_self_attention(
    name: str, model: nn.Module, modules: str | nn.Module | Iterable[str | nn.Module] | None = None
) -> SelfAttention:
    """The self-attention of `model`, or of its encoder if it is an encoder-decoder.

    Args:
        name: the function that asks, for messages.
        model: a transformers model, or a module around one.
        modules: only these attention modules, or those inside these parts of the model: modules
            or their names in `model.named_modules()`.

    Raises:
        TypeError: there is no transformers model in it.
        ValueError: its attention is hand-written, has cross-attention, or is in several parts of
            which masks would reach only one; or `modules` names none.
    """
    models = (
        [m for m in model.modules() if isinstance(m, PreTrainedModel)]
        if isinstance(model, nn.Module)
        else []
    )
    if not models:
        raise not_a_model_error(name, model)
    root = _encoder_of(model) if modules is None else model
    found = {key: m for key, m in root.named_modules() if _calls_interface(m)}
    if not found:
        names = ", ".join(dict.fromkeys(type(m).__name__ for m in models))
        raise ValueError(
            f"{name}: {names} has attention of its own, written out by hand, which never asks "
            "transformers' AttentionInterface, so no mask would reach it; use a model that does "
            "(BERT, RoBERTa, DistilBERT, ELECTRA, ALBERT, ModernBERT, ViT, ...)"
        )
    chosen = found if modules is None else _chosen(name, model, found, modules)
    owners = {key: _owner(root, key) for key in chosen}
    parts = {id(owner): owner for owner in owners.values()}
    if len(parts) > 1:
        raise ValueError(
            f"{name}: {type(model).__name__} has attention in several models "
            f"({', '.join(sorted(_name_of(model, owner) for owner in parts.values()))}); "
            + (_pass_part(model, parts.values()) if modules is None else "call it once for each")
        )
    (owner,) = parts.values()
    if modules is None:
        _refuse_parts(name, model, root, owner)
    if not owner._can_set_attn_implementation():
        raise ValueError(
            f"{name}: transformers cannot set the attention of {type(owner).__name__}, because "
            "some of it is written out by hand"
        )
    for key, module in chosen.items():
        if _CROSS.search(f"{key} {type(module).__name__}") or getattr(
            module, "is_cross_attention", False
        ):
            raise ValueError(
                f"{name}: {type(owner).__name__} has cross-attention ({key}); only the "
                "self-attention of encoders and of decoder-only models can be sparse"
            )
    others = {
        key: module
        for key, module in owner.named_modules()
        if _calls_interface(module) and all(module is not m for m in chosen.values())
    }
    return SelfAttention(root, owner, chosen, modules is not None, others)


def _encoder_of(model: nn.Module) -> nn.Module:
    """The encoder of an encoder-decoder, else the model itself."""
    if isinstance(model, PreTrainedModel) and getattr(model.config, "is_encoder_decoder", False):
        encoder = model.get_encoder()
        if isinstance(encoder, PreTrainedModel):
            return encoder
    return model


def _calls_interface(module: nn.Module) -> bool:
    """Whether the module's forward looks its attention up in transformers' registry."""
    code = _code(type(module).forward)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _code(function: Any) -> CodeType | None:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code if isinstance(code, CodeType) else None


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
    key = next(key for key, module in model.named_modules() if module is part)
    return key or f"{type(part).__name__}'s own"


def _pass_part(model: nn.Module, parts: Iterable[nn.Module]) -> str:
    """How to pass one of `parts`."""
    keys = sorted(key for part in parts if (key := _key_of(model, part)))
    example = f"pass one of them, for example model.{keys[0]}" if keys else "pass one of them"
    return f"{example}, or choose attention modules with modules=[...]"


def _key_of(model: nn.Module, part: nn.Module) -> str:
    return next((key for key, module in model.named_modules() if module is part), "")


# --------------------------------------------------------------------- what masks do not reach


def _refuse_parts(name: str, model: nn.Module, root: nn.Module, owner: PreTrainedModel) -> None:
    """Raise ValueError if `model` has attention that masks on `owner` would not reach.

    Of an encoder-decoder, the decoder is meant to stay as it is.
    """
    inside = {id(m) for m in owner.modules()}
    if root is not model and isinstance(model, PreTrainedModel):
        inside |= {id(m) for m in model.get_decoder().modules()}
    for key, module in _attention_of_any_kind(model):
        if id(module) not in inside:
            raise ValueError(
                f"{name}: {type(model).__name__} has attention in several parts: masks would "
                f"reach {type(owner).__name__} ({_name_of(model, owner)}), but not "
                f"{type(module).__name__} ({key}); pass the part that you mean, or choose "
                "attention modules with modules=[...]"
            )


def _attention_of_any_kind(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that attend, through transformers' registry or in code of their own."""
    for key, module in model.named_modules():
        kind = type(module)
        by_hand = _ATTENTION.search(kind.__name__) and _SOFTMAX & _names_in(kind)
        if by_hand or _calls_interface(module) or isinstance(module, nn.MultiheadAttention):
            yield key, module


def _names_in(cls: type) -> set[str]:
    """The names that the methods of a class use, torch's own methods aside."""
    codes = (
        _code(method)
        for base in cls.__mro__
        if base.__module__.split(".")[0] not in ("torch", "builtins")
        for method in vars(base).values()
        if callable(method)
    )
    return {used for code in codes if code is not None for used in code.co_names}


# --------------------------------------------------------------------- what the caller chooses


def _chosen(
    name: str,
    model: nn.Module,
    found: dict[str, nn.Module],
    modules: str | nn.Module | Iterable[str | nn.Module],
) -> dict[str, nn.Module]:
    """Those of `found` that `modules` names, or that lie inside what it names."""
    wanted = [modules] if isinstance(modules, (str, nn.Module)) else list(modules)
    names = dict(model.named_modules(remove_duplicate=False))
    inside: set[int] = set()
    for part in wanted:
        if isinstance(part, str):
            if part not in names:
                near = difflib.get_close_matches(part, names, n=2)
                raise ValueError(
                    f"{name}: modules has {part!r}, but {type(model).__name__} has no such "
                    "module; take names from model.named_modules()"
                    + (f", for example {' or '.join(map(repr, near))}" if near else "")
                )
            part, label = names[part], repr(part)
        elif isinstance(part, nn.Module):
            label = type(part).__name__
            if all(part is not module for module in names.values()):
                raise ValueError(
                    f"{name}: modules has a {label} that is no part of {type(model).__name__}"
                )
        else:
            raise TypeError(
                f"{name}: modules must be attention modules of the model or their names, got "
                f"{type(part).__name__}"
            )
        within = {id(m) for m in part.modules()}
        if not any(id(m) in within for m in found.values()):
            raise ValueError(
                f"{name}: modules has {label}, in which no attention goes through transformers' "
                f"AttentionInterface; those that do are {', '.join(list(found)[:3])}"
                + (", ..." if len(found) > 3 else "")
            )
        inside |= within
    if not wanted:
        raise ValueError(f"{name}: modules is empty; give names or modules, or leave it out")
    return {key: module for key, module in found.items() if id(module) in inside}
