"""Swapping a model's configuration for one that names another attention, and back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from sparsebert.integrations.huggingface.discovery import SelfAttention

IMPLEMENTATION = "sparsebert"
"""The name in `config._attn_implementation`, and of the submodule that holds a layer's mask."""

DAM = "sparsebert_dam"
"""The same while a mask is learned; also the DAM's name in the model that owns the layers."""

_ATTN = "_attn_implementation_internal"  # where a configuration keeps the implementation's name


@dataclasses.dataclass(frozen=True)
class ConfigSwap:
    """A model's configuration, and the copy that stands in for it while the model is sparse.

    The copy names our implementation. Configurations are often shared (by two models built from
    one, by encoder and decoder), and the others must not change with it.
    """

    original: PreTrainedConfig
    copy: PreTrainedConfig
    before: dict[str, Any]  # the original's attributes when it was copied
    around: bool = False  # names no attention of ours, but holds a copy that does


def other_implementation(swaps: Iterable[ConfigSwap], ours: str) -> str | None:
    """The attention that a configuration names instead of ours; None if all name ours."""
    names = (swap.copy._attn_implementation for swap in swaps if not swap.around)
    return next((str(name) for name in names if name != ours), None)


def follow_the_first(swaps: Iterable[ConfigSwap]) -> None:
    """Let layers with a configuration of their own use the attention that the model is set to.

    transformers tells the model's alone (those of an EncoderDecoderModel are two).
    """
    told, *others = (swap.copy for swap in swaps if not swap.around)
    for config in others:
        setattr(config, _ATTN, getattr(told, _ATTN))


def swap_configs(
    model: nn.Module, attention: SelfAttention, implementation: str
) -> tuple[ConfigSwap, ...]:
    """Replace the configuration that the attention reads by a copy that names `implementation`.

    `model` is the one that was asked about, in which no mask and no DAM is attached yet (in the
    owner of the attention, if the caller chose modules).
    """
    if not attention.chosen:
        _replace_ours(model, attention.owner)
    modules = (*attention.modules.values(), *attention.others.values())
    used: list[Any] = [attention.owner.config, *(m.config for m in modules)]
    swaps = []
    for original in {id(config): config for config in used}.values():
        # Shallow: nested configurations belong to other parts of the model.
        substitute = copy.copy(original)
        setattr(substitute, _ATTN, implementation)
        swaps.append(ConfigSwap(original, substitute, dict(vars(original))))
    swaps += _around(attention.root, swaps)
    spread_configs(attention, swaps)
    return tuple(swaps)


def _around(root: nn.Module, swaps: Iterable[ConfigSwap]) -> list[ConfigSwap]:
    """Swaps of configurations in `root` that contain some of those that are swapped.

    A model of text and images can make the masks of its language model, in the form that the
    configuration inside its own asks for.
    """
    copies = {id(swap.original): swap.copy for swap in swaps}
    found: list[ConfigSwap] = []

    def with_copies(config: PreTrainedConfig) -> PreTrainedConfig:
        if id(config) not in copies:
            parts = {k: v for k, v in vars(config).items() if isinstance(v, PreTrainedConfig)}
            new = {name: with_copies(part) for name, part in parts.items()}
            if all(new[name] is part for name, part in parts.items()):
                return config
            substitute = copy.copy(config)
            vars(substitute).update(new)
            copies[id(config)] = substitute
            found.append(ConfigSwap(config, substitute, dict(vars(config)), around=True))
        return copies[id(config)]

    for _, _, config in _configs(root):
        with_copies(config)
    return found


def spread_configs(attention: SelfAttention, swaps: Iterable[ConfigSwap]) -> None:
    """Let everything in the model that has an original use its copy."""
    inside = attention.owner if attention.chosen else attention.root
    copies: dict[bool, dict[int, PreTrainedConfig]] = {False: {}, True: {}}
    for swap in swaps:
        copies[swap.around][id(swap.original)] = swap.copy
    _replace_configs(inside, copies[False])
    _replace_configs(attention.root, copies[True])


def restore_configs(model: nn.Module, swaps: Iterable[ConfigSwap]) -> None:
    """Undo `swap_configs`; what was set on the model's configuration meanwhile stays set."""
    swaps = list(swaps)
    copies = {id(swap.copy) for swap in swaps}
    for swap in swaps:
        for name, value in vars(swap.copy).items():
            ours = id(value) in copies or (name == _ATTN and value in (IMPLEMENTATION, DAM))
            if not ours and swap.before.get(name, swap) is not value:
                setattr(swap.original, name, value)
        # A model around the sparse one may use the original, and have been told to use ours.
        if getattr(swap.original, _ATTN, None) in (IMPLEMENTATION, DAM):
            setattr(swap.original, _ATTN, swap.before.get(_ATTN))
        # And one that is not seen from here may hold the copy, in its own configuration.
        setattr(swap.copy, _ATTN, getattr(swap.original, _ATTN, None))
    _replace_configs(model, {id(swap.copy): swap.original for swap in swaps})


def _replace_ours(model: nn.Module, owner: PreTrainedModel) -> None:
    """Replace configurations that name our attention where none is attached by ones that do not.

    Such come from ``from_pretrained(..., attn_implementation="sparsebert")`` and from models that
    were built from a sparse model's configuration. Taken as they are, they would make `densify`
    leave a model that cannot run, and a decoder beside a sparse encoder too.
    """
    dense: dict[int, PreTrainedConfig] = {}
    for _, _, config in _configs(model):
        if getattr(config, _ATTN, None) in (IMPLEMENTATION, DAM) and id(config) not in dense:
            substitute = copy.copy(config)  # it may be another model's, which is sparse
            setattr(substitute, _ATTN, owner.get_correct_attn_implementation(None))
            dense[id(config)] = substitute
    _replace_configs(model, dense)


def _configs(root: nn.Module) -> Iterator[tuple[nn.Module, str, PreTrainedConfig]]:
    """Every module that holds a configuration, under which name, and which."""
    for module in root.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, PreTrainedConfig):
                yield module, name, value


def _replace_configs(root: nn.Module, substitutes: dict[int, PreTrainedConfig]) -> None:
    for module, name, config in _configs(root):
        if id(config) in substitutes:
            setattr(module, name, substitutes[id(config)])
