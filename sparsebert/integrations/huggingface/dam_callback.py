"""DAMCallback: a mask search inside any transformers Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparsebert.dam.importance import group_importance, position_groups
from sparsebert.dam.search import MaskSearch
from sparsebert.integrations.huggingface.trainer_state import kept_in_checkpoints
from sparsebert.masks import AttentionMask
from sparsebert.plan import compile_plan
from sparsebert.support import checks

_NAME = "DAMCallback"
_STATE = "sparsebert_search"
"""Where the search's state is kept in the TrainerState, which is saved in every checkpoint."""


class DAMCallback(TrainerCallback):
    """Runs a `MaskSearch` in a Trainer of your own: schedules, logging, checkpoints.

    `DAMTrainer` has all of it; this is for those who have another Trainer already. Four things
    cannot be done from a callback, and stay with you:

    1. the penalty: add `search.penalty()` to the loss in `compute_loss`, in training only;
    2. `self.model_accepts_loss_kwargs = False` after `super().__init__`: many models accept
       `num_items_in_batch` without using it, and with gradient accumulation their loss and the
       penalty would then be added up instead of averaged;
    3. the mask's own learning rate: an optimizer of `search.parameter_groups(model, ...)`;
    4. `max_grad_norm=0.0` in the TrainingArguments: alpha's gradient can be so large that,
       clipped together with it, nothing is left of the model's own.

    Args:
        search: its `total_steps` should be those of the training.
        special_tokens: positions of [CLS] and [SEP], for the logged group importances.
        predictions: how many predicted speed-ups to log in a training, at most, spread over it.
            Each binarizes and compiles the mask, which takes a while for long sequences; 0 for
            none.

    It adds to every logged training loss, in `trainer.state.log_history` and in what other
    callbacks see after it: `MaskSearch.metrics`, "mask_penalty" (with its weight),
    "importance_<group>" for the groups of `sparsebert.dam.importance`, and at times
    "predicted_speedup", of a forward pass of attention on the machine at hand with the mask as
    it would be binarized now.

    A training that goes on from a checkpoint goes on exactly: the DAM's state is part of the
    model's, and the search's is in the TrainerState.

    Raises:
        TypeError: search is no MaskSearch.
        ValueError: special tokens outside the mask.

    Example:
        >>> import torch, sparsebert as sb
        >>> from transformers import Trainer
        >>> from sparsebert.dam.search import MaskSearch
        >>> class MyTrainer(Trainer):
        ...     def __init__(self, *args, search, **kwargs):
        ...         super().__init__(*args, callbacks=[DAMCallback(search)], **kwargs)
        ...         self.search = search
        ...         self.model_accepts_loss_kwargs = False
        ...     def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        ...         result = super().compute_loss(model, inputs, return_outputs, **kwargs)
        ...         if not model.training:
        ...             return result
        ...         loss = result[0] if return_outputs else result
        ...         loss = loss + self.search.penalty()
        ...         return (loss, result[1]) if return_outputs else loss
        >>> search = MaskSearch(sb.DifferentiableAttentionMask(1, 2, 16), 100, sparsity=0.9)
        >>> # optimizer = torch.optim.AdamW(search.parameter_groups(model, lr=5e-5))
        >>> # MyTrainer(model, args, search=search, optimizers=(optimizer, None), ...).train()
    """

    def __init__(
        self,
        search: MaskSearch,
        *,
        special_tokens: Sequence[int] = (0, -1),
        predictions: int = 10,
    ) -> None:
        if not isinstance(search, MaskSearch):
            raise TypeError(f"{_NAME}: search must be a MaskSearch, got {type(search).__name__}")
        position_groups(search.dam.seq_len, special_tokens=special_tokens)  # raises if they can't
        self.search = search
        self.special_tokens = tuple(special_tokens)
        self.predictions = checks.integer(_NAME, "predictions", predictions, 0)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        # A distributed wrapper has given all processes the buffers of the first one.
        self.search.dam.resume_stream()
        if state.global_step == 0:
            return
        saved = kept_in_checkpoints(state).get(_STATE)
        if saved is None:
            raise ValueError(
                f"{_NAME}: the checkpoint of step {state.global_step} holds no mask search; it "
                "was written without DAMCallback or DAMTrainer"
            )
        self.search.load_state_dict(saved)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self.search.begin_step(state.global_step)
        kept_in_checkpoints(state)[_STATE] = self.search.state_dict()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:  # an evaluation, or the closing summary
            return
        values = self._values(state)
        logs.update(values)
        state.log_history[-1].update(values)

    def _values(self, state: TrainerState) -> dict[str, float]:
        search, dam = self.search, self.search.dam
        with torch.no_grad():
            mean = dam.expand(torch.sigmoid(dam.alpha).mean(dim=(0, 1)))  # [N, N]
            penalty = float(search.penalty())
        importance = group_importance(mean, special_tokens=self.special_tokens)
        values = {
            **search.metrics(),
            "mask_penalty": penalty,
            **{f"importance_{group}": value for group, value in importance.items()},
        }
        if state.is_world_process_zero and self._prediction_is_due(state):
            values["predicted_speedup"] = predicted_speedup(dam.binarize(sparsity=search.sparsity))
        return values

    def _prediction_is_due(self, state: TrainerState) -> bool:
        """Whether a new one of `predictions` equal parts of the training has been completed."""
        done = [row["step"] for row in state.log_history if "predicted_speedup" in row]
        last = done[-1] if done else 0
        n, total = self.predictions, max(state.max_steps, 1)
        return state.global_step * n // total > last * n // total


def predicted_speedup(mask: AttentionMask) -> float:
    """How much faster than dense the forward pass of attention should be on this machine.

    Over all layers of the mask together: dense, each takes the same time.
    """
    layers = [
        compile_plan(mask.layer(i)).explain().predicted_speedup for i in range(mask.num_layers)
    ]
    return len(layers) / sum(1.0 / speedup for speedup in layers)
