"""The dense model that a mask search distils: a frozen copy of the model as the search began."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparsebert.dam.mask import DifferentiableAttentionMask
from sparsebert.integrations.huggingface.dam import detach_dam
from sparsebert.integrations.huggingface.discovery import find_self_attention
from sparsebert.integrations.huggingface.trainer_state import kept_in_checkpoints

_NAME = "DAMTrainer"
_STATE = "sparsebert_teacher"
"""Where the teacher's fingerprint is kept in the TrainerState, which is saved in checkpoints."""


def dense_copy(model: nn.Module) -> nn.Module:
    """A frozen copy of the model with its own dense attention, in evaluation mode."""
    teacher = copy.deepcopy(model)
    for module in teacher.modules():
        # accelerate wraps the forward of a model that it has trained in mixed precision; the
        # copied wrapper would run the original.
        if vars(module).pop("_original_forward", None) is not None:
            del module.forward
    if any(isinstance(module, DifferentiableAttentionMask) for module in teacher.modules()):
        detach_dam(teacher)
    return teacher.eval().requires_grad_(False)


def last_hidden(model: nn.Module, output: Any) -> torch.Tensor:
    """The last hidden states, [B, N, E], of an output that was asked for them.

    Raises:
        ValueError: it has none.
    """
    states = output.get("hidden_states") if isinstance(output, Mapping) else None
    if not states:
        raise ValueError(
            f"{_NAME}: {type(model).__name__} returns no hidden_states with "
            "output_hidden_states=True, so there is nothing to distil; leave distillation out"
        )
    hidden: torch.Tensor = states[-1]
    return hidden


def fingerprint(model: nn.Module) -> str:
    """Of the weights of a model's attention.

    These are trained by every search, and are the same each time that a pretrained model is
    loaded, unlike its head, which may be new and random.
    """
    found = hashlib.sha256()
    for name, module in find_self_attention(_NAME, model).modules.items():
        for key, value in sorted(module.state_dict().items()):
            found.update(f"{name}.{key} {value.dtype} {list(value.shape)}\n".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class SameTeacher(TrainerCallback):
    """Sees to it that all processes, and a training that goes on, distil one and the same model.

    Raises:
        ValueError: at the beginning of a training that goes on from a checkpoint, if the search
            began with another dense model.
    """

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self.teacher.to(args.device)
        if args.world_size > 1:
            for value in self.teacher.state_dict().values():
                torch.distributed.broadcast(value, 0)
        kept = kept_in_checkpoints(state)
        mine = fingerprint(self.teacher)
        if state.global_step > 0 and kept.get(_STATE, mine) != mine:
            raise ValueError(
                f"{_NAME}: the search of this checkpoint distils another dense model than the "
                "one that this trainer was built with, the checkpoint's own perhaps, which is "
                "half trained; build the trainer with the model that the search began with, then "
                "train(resume_from_checkpoint=...)"
            )
        kept[_STATE] = mine
