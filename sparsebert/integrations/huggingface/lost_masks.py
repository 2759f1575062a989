"""Where transformers would lose masks, or let them lie unused, without a word: we say it there.

`warn_of_lost_masks` wraps three things of transformers: `PreTrainedModel.save_pretrained` and
`set_attn_implementation` warn about sparse models, and assigning `config.output_attentions` gives
advice that is right for them. Models that are not sparse are none of its business.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from sparsebert.integrations.huggingface.attached import (
    AttachedLayer,
    LayerMask,
    layer_of,
    masks_of,
    sparse_modules,
)
from sparsebert.integrations.huggingface.configs import DAM, IMPLEMENTATION
from sparsebert.integrations.huggingface.files import CONFIG_FILE

_MARK = "_sparsebert_warns"
_OF = {IMPLEMENTATION: ("a sparse mask", "densify"), DAM: ("a DAM", "detach_dam")}
"""What is attached under which attention, and what removes it."""


class MasksNotSavedWarning(UserWarning):
    """A sparse model was saved without its masks."""


class MasksNotUsedWarning(UserWarning):
    """A model with masks is set to another attention, and runs dense."""


def warn_when_saved(model: nn.Module) -> None:
    """Let what saves `model` warn too, where it is no transformers model (PEFT, a wrapper)."""
    peft = sys.modules.get("peft")
    saving = [type(module) for module in model.modules()]
    saving += [peft.PeftModel] if peft is not None else []  # it may come around the model later
    for cls in dict.fromkeys(saving):
        if not issubclass(cls, PreTrainedModel) and callable(
            getattr(cls, "save_pretrained", None)
        ):
            _call_after(cls, "save_pretrained", _check_saved)


def _call_after(cls: type, name: str, check: Callable[..., None]) -> None:
    """Replace a method by one that calls `check` afterwards, with the same arguments."""
    method = getattr(cls, name)
    if getattr(method, _MARK, False):
        return

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        check(self, *args, **kwargs)
        return result

    setattr(wrapped, _MARK, True)
    setattr(cls, name, wrapped)


def _check_saved(
    model: nn.Module,
    save_directory: str | os.PathLike[str] | None = None,
    is_main_process: bool = True,
    *_: Any,
    **__: Any,
) -> None:
    layers = [layer_of(module) for module in sparse_modules(model)]
    if save_directory is None or not is_main_process or not layers:
        return
    folder = os.fspath(save_directory)
    if _holds_masks(folder, layers):
        return
    warnings.warn(
        f"sparsebert: {type(model).__name__} is sparse, but its masks are not in {folder}, and a "
        f"model that is loaded from there will be dense. Call sparsebert.save_masks(model, "
        f"{folder!r}), and after from_pretrained sparsebert.load_masks(model, folder)",
        MasksNotSavedWarning,
        stacklevel=3,
    )


def _holds_masks(folder: str, layers: list[LayerMask]) -> bool:
    """Whether the masks in `folder` are those of the layers."""
    try:
        note = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
        return bool(note["masks_fingerprint"] == masks_of(layers).fingerprint)
    except (OSError, ValueError, LookupError, TypeError):  # no masks, or several models' at once
        return False


def _check_used(model: nn.Module, *_: Any, **__: Any) -> None:
    attached = [module for module in model.modules() if isinstance(module, AttachedLayer)]
    for module in attached:
        module.follow()
    for module in attached:
        if module.unused_for is not None:
            what, undo = _OF[module.implementation]
            warnings.warn(
                f"sparsebert: {type(model).__name__} has {what}, but now runs "
                f"{module.unused_for!r} attention, dense, without. "
                f"model.set_attn_implementation({module.implementation!r}) uses it again; "
                f"sparsebert.{undo}(model) removes it",
                MasksNotUsedWarning,
                stacklevel=3,
            )
            return


def _advise_on_output_attentions() -> None:
    theirs = PreTrainedConfig.output_attentions
    assert isinstance(theirs, property) and theirs.fset is not None
    if getattr(theirs.fset, _MARK, False):
        return
    assign = theirs.fset

    @functools.wraps(assign)
    def checked(self: Any, value: bool) -> None:
        if value and self._attn_implementation in (IMPLEMENTATION, DAM):
            raise ValueError(
                "sparsebert: a sparse model gives its attention weights, under its masks, to the "
                "calls that ask for them, model(..., output_attentions=True); "
                "config.output_attentions=True would need 'eager' attention, which is dense"
            )
        assign(self, value)

    setattr(checked, _MARK, True)
    PreTrainedConfig.output_attentions = theirs.setter(checked)


def warn_of_lost_masks() -> None:
    """Wrap what this module is about; once is enough, more does nothing."""
    _call_after(PreTrainedModel, "save_pretrained", _check_saved)
    _call_after(PreTrainedModel, "set_attn_implementation", _check_used)
    _advise_on_output_attentions()
