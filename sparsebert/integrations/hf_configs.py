"""Swapping a model's configuration for one that names another attention, and back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from sparsebert.integrations.hf_modules import SelfAttention

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


def swap_configs(attention: SelfAttention, implementation: str) -> tuple[ConfigSwap, ...]:
    """Replace the configuration that the attention reads by a copy that names `implementation`."""
    used: list[Any] = [attention.owner.config, *(m.config for m in attention.modules.values())]
    swaps = []
    for original in {id(config): config for config in used}.values():
        # Shallow: nested configurations belong to other parts of the model.
        substitute = copy.copy(original)
        setattr(substitute, _ATTN, implementation)
        swaps.append(ConfigSwap(original, substitute, dict(vars(original))))
    _replace_configs(attention.root, {id(swap.original): swap.copy for swap in swaps})
    return tuple(swaps)


def restore_configs(model: nn.Module, swaps: Iterable[ConfigSwap]) -> None:
    """Undo `swap_configs`; what was set on the model's configuration meanwhile stays set."""
    swaps = list(swaps)
    for swap in swaps:
        for name, value in vars(swap.copy).items():
            if name != _ATTN and swap.before.get(name, swap) is not value:
                setattr(swap.original, name, value)
    _replace_configs(model, {id(swap.copy): swap.original for swap in swaps})


def _replace_configs(root: nn.Module, substitutes: dict[int, PreTrainedConfig]) -> None:
    for module in root.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, PreTrainedConfig) and id(value) in substitutes:
                setattr(module, name, substitutes[id(value)])
