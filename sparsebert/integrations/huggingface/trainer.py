"""DAMTrainer: a transformers Trainer that learns a mask along with the model.

Phase one, the search: `DAMTrainer(...).train()`. Phase two, use: `finish()` turns the DAM into a
mask and makes the model sparse with it; an ordinary `transformers.Trainer` trains it on through
`sparse_attention`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

try:
    import accelerate  # noqa: F401
    from transformers import Trainer, TrainingArguments
except ImportError as error:
    raise ImportError(
        f"sparsebert.DAMTrainer needs transformers and accelerate ({error}); "
        "pip install 'sparsebert[train]'"
    ) from error

from sparsebert.dam.distillation import hidden_distance
from sparsebert.dam.mask import DifferentiableAttentionMask
from sparsebert.dam.search import MaskSearch
from sparsebert.integrations.huggingface.api import save_masks, sparsify
from sparsebert.integrations.huggingface.attached import sparse_modules
from sparsebert.integrations.huggingface.dam import attach_dam, attached, detach_dam
from sparsebert.integrations.huggingface.dam_callback import DAMCallback
from sparsebert.integrations.huggingface.dam_files import save_dam
from sparsebert.integrations.huggingface.dense_teacher import SameTeacher, dense_copy, last_hidden
from sparsebert.masks import AttentionMask

_NAME = "DAMTrainer"
LAST_FINITE = "last-finite"
"""Where in the output folder the model is saved when a training stops on NaN."""


class DAMTrainer(Trainer):
    """A Trainer whose model learns its attention mask, at an asked sparsity.

    Args:
        model: a transformers model with a loss, dense, or with a DAM already.
        args: transformers' TrainingArguments.
        dam: the mask to learn, attached to the model if it is not yet. None: the model's own.
        gate: see `attach_dam`. None: the model's own, or "softmax".
        sparsity: the goal, in (0, 1). None: no goal, the penalty has the weight `penalty_weight`.
        penalty, penalty_weight, tile_rows, target, objective, refresh, temperature,
            first_sparsity, warmup, settle: see `MaskSearch` (there `weight`).
        mask_learning_rate: of the mask's parameters, which have no weight decay. It follows the
            schedule `args.lr_scheduler_type` like the model's: a mask that still moves in the
            last steps is one that the model has not seen.
        distillation: weight of the distance between the model's last hidden states and those of
            the dense model, as it was when the trainer was built (`hidden_distance`): the model
            learns to compute under the mask what it did without. In training, added to the
            task's loss; where the model's output has no loss, as without labels, the model
            learns by it alone. Costs a forward pass of the dense model each step. 0: none.
        special_tokens, predictions: what to log, see `DAMCallback`.
        **kwargs: everything else that transformers.Trainer takes, by keyword: `train_dataset`,
            `data_collator`, `eval_dataset`, `compute_metrics`, `callbacks`, ...

    Attributes:
        dam: the mask; `dam.binarize(...)` at any time.
        search: the `MaskSearch`; its total_steps are those of the training.

    What holds:

    * The logged "loss" is the task's, and so is the evaluation's; the penalty is logged apart,
      as "mask_penalty", and so is the last batch's "distance" to the dense model.
    * An evaluation sees the positions whose probability is above one half (of a DAM with
      sampling="top": the mask of that step). Before probabilities
      have parted these can be all or none, so early evaluations say little; for the same reason,
      and because an early mask is not sparse yet, do not use `load_best_model_at_end`.
    * The loss is a mean over each batch, and over accumulated batches (transformers would divide
      by the number of labels in all of them, where a model does so): N accumulation steps with
      batches of B are one with batches of N * B, if all hold as many labels. So are the penalty
      and the distance.
    * `args.max_grad_norm` is for the model's parameters. Gradients of dropped positions can be
      larger by orders of magnitude, and clipping both together would stop the model's learning.
    * Under `torchrun` all processes draw the same mask, and the result is that of one process
      with the same global batch. DataParallel, FSDP and DeepSpeed are refused.
    * A training that goes on from a checkpoint goes on exactly as if it had not been interrupted;
      with distillation the trainer must be built with the model that the search began with, and
      refuses to go on towards another one (its attention's weights are compared).
    * If a loss or a gradient is NaN or infinite, the training stops before the optimizer step
      that it would spoil, in all processes: the model in memory is the one after the last good
      step, which is also saved in "last-finite" in the output folder (unless
      `args.save_strategy` is "no").
    * `save_model` and checkpoints hold the DAM. To load one: the model with `from_pretrained`,
      which warns of unexpected keys, then `load_dam(model, folder)` of
      `sparsebert.integrations.huggingface.dam_files`. To resume: build the trainer as before,
      `train(resume_from_checkpoint=...)`.

    Raises:
        TypeError, ValueError: values out of range; what `attach_dam` refuses (a sparse model, a
            DAM that does not fit); no DAM at all; another DAM or gate than the model's own.

    Example:
        >>> import tempfile, torch, sparsebert as sb
        >>> from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
        >>> config = BertConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1,
        ...                     num_attention_heads=2, intermediate_size=32)
        >>> data = [{"input_ids": torch.arange(16), "labels": torch.tensor(1)}] * 8
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     args = TrainingArguments(folder, max_steps=3, save_strategy="no", use_cpu=True,
        ...                              report_to="none", disable_tqdm=True)
        ...     trainer = sb.DAMTrainer(model=BertForSequenceClassification(config), args=args,
        ...                             train_dataset=data, sparsity=0.9,
        ...                             dam=sb.DifferentiableAttentionMask(1, 2, seq_len=16))
        ...     result = trainer.train()                                     # doctest: +ELLIPSIS
        {'train_runtime': ...}
        >>> mask = trainer.finish()  # the model is sparse now: train on with a plain Trainer
        >>> mask.sparsity >= 0.9
        True
    """

    model: nn.Module  # never None, as it may be in the base class

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        *,
        dam: DifferentiableAttentionMask | None = None,
        gate: str | None = None,
        sparsity: float | None = 0.9,
        penalty: str = "expected_l1",
        penalty_weight: float | None = None,
        tile_rows: int = 16,
        target: str | None = None,
        objective: str = "area",
        refresh: int = 50,
        mask_learning_rate: float = 0.05,
        temperature: tuple[float, float] = (1.0, 1.0),
        first_sparsity: float | None = None,
        warmup: float = 0.1,
        settle: float = 0.3,
        distillation: float = 0.0,
        special_tokens: Sequence[int] = (0, -1),
        predictions: int = 10,
        **kwargs: Any,
    ) -> None:
        if sparsity is not None and not 0.0 < sparsity < 1.0:
            raise ValueError(
                f"{_NAME}: sparsity must be in (0, 1), got {sparsity}; for a search without a "
                "goal give sparsity=None and a penalty_weight (0.0: no penalty)"
            )
        if not 0.0 < mask_learning_rate < math.inf:
            raise ValueError(
                f"{_NAME}: mask_learning_rate must be above 0 and finite, got {mask_learning_rate}"
            )
        if not 0.0 <= distillation < math.inf:
            raise ValueError(
                f"{_NAME}: distillation must be finite and not negative, got {distillation}"
            )
        attach = dam is not None and not _holds(model, dam)
        self.dam = dam if dam is not None else attached(model).dam
        self.search = MaskSearch(
            self.dam,
            1,  # until the training knows: see create_scheduler
            sparsity=sparsity,
            weight=penalty_weight,
            penalty=penalty,
            tile_rows=tile_rows,
            target=target,
            objective=objective,
            refresh=refresh,
            temperature=temperature,
            first_sparsity=first_sparsity,
            warmup=warmup,
            settle=settle,
        )
        callback = DAMCallback(self.search, special_tokens=special_tokens, predictions=predictions)
        self.mask_learning_rate = mask_learning_rate
        self.distillation = distillation
        self._teacher = dense_copy(model) if distillation else None
        if attach:
            attach_dam(model, self.dam, gate=gate or "softmax")
        elif gate not in (None, attached(model).gate):
            raise ValueError(
                f"{_NAME}: gate={gate!r}, but the model's DAM is attached with "
                f"{attached(model).gate!r}; detach_dam(model) first"
            )
        super().__init__(model=model, args=args, **kwargs)
        if self.args.n_gpu > 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"{_NAME}: DataParallel, FSDP and DeepSpeed are not supported, as all layers "
                "share one mask; start one process for each GPU with torchrun, or set "
                "CUDA_VISIBLE_DEVICES to one"
            )
        self.model_accepts_loss_kwargs = False
        # First, so that all other callbacks see what it adds to the logs.
        self.add_callback(callback)
        callbacks = self.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop())
        if self._teacher is not None:
            self.add_callback(SameTeacher(self._teacher))
        self._task_loss = torch.zeros(())
        self._finite: torch.Tensor | None = None
        self._distance: torch.Tensor | None = None

    # --------------------------------------------------------------------------- the training

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See transformers.Trainer.train; `resume_from_checkpoint` continues exactly.

        Raises:
            FloatingPointError: a loss or gradient was NaN or infinite.
            ValueError: the search is finished.
        """
        if not _holds(self.model, self.dam):
            raise ValueError(
                f"{_NAME}.train: the search is finished, the model has no DAM any more; train it "
                "on with transformers.Trainer"
            )
        self._finite = None
        return super().train(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As transformers.Trainer does, with the mask's parameters in a group of their own."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        alpha = self.dam.alpha
        holding = [g for g in optimizer.param_groups if any(p is alpha for p in g["params"])]
        if given and holding:
            return optimizer  # from an earlier train(), or made of search.parameter_groups
        if given and self.lr_scheduler is not None and not self._created_lr_scheduler:
            raise ValueError(
                f"{_NAME}: the given scheduler does not know the mask's parameters; build its "
                "optimizer of trainer.search.parameter_groups(model, ...), or leave the scheduler "
                "to args.lr_scheduler_type"
            )
        like = holding[0] if holding else {}
        for group in holding:
            group["params"] = [p for p in group["params"] if p is not alpha]
        own = {"params": [alpha], "lr": self.mask_learning_rate, "weight_decay": 0.0}
        optimizer.add_param_group({**like, **own})
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """As transformers.Trainer does; here the search learns how long the training is."""
        self.search.total_steps = num_training_steps
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The task's loss, in training with the distance to the dense model and the penalty."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        task: Any
        outputs, penalty = None, self.search.penalty()
        if self._teacher is not None:
            task, outputs, distance = self._distilled(model, inputs, num_items_in_batch)
            penalty = penalty + self.distillation * distance
        elif return_outputs:
            task, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        else:
            task = super().compute_loss(model, inputs, False, num_items_in_batch)
        share = 1.0 / self.current_gradient_accumulation_steps
        if self.compute_loss_func is None:
            self._task_loss = task.detach() * share  # as transformers will scale the sum
        else:  # transformers takes its result for a share of the whole already
            self._task_loss, penalty = task.detach(), penalty * share
        return (task + penalty, outputs) if return_outputs else task + penalty

    def _distilled(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """The task's loss (0 if there is none), the outputs, and the distance to the teacher."""
        assert self._teacher is not None
        asked = {**inputs, "output_hidden_states": True}
        unlabelled = {k: v for k, v in asked.items() if k not in self.label_names}
        with torch.no_grad(), self.accelerator.autocast():
            wanted = last_hidden(self._teacher, self._teacher(**unlabelled))
        task: torch.Tensor | None
        if len(unlabelled) < len(asked) or self.compute_loss_func is not None:
            task, outputs = super().compute_loss(model, asked, True, num_items_in_batch)
        else:
            outputs = model(**asked)
            task = outputs.get("loss")  # some models need no labels for it
        hidden = last_hidden(model, outputs)
        distance = hidden_distance(hidden, wanted, inputs.get("attention_mask"))
        self._distance = distance.detach()
        return distance.new_zeros(()) if task is None else task, outputs, distance

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As transformers.Trainer does; training logs have the last "distance", if distilled."""
        if self._distance is not None and "loss" in logs:
            logs["distance"] = float(self._distance)
        super().log(logs, *args, **kwargs)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One forward and backward pass; returns the task's loss, for the log.

        Raises:
            FloatingPointError: it, or the gradient, is NaN or infinite.
        """
        super().training_step(model, inputs, num_items_in_batch)
        finite = self._task_loss.isfinite()
        self._finite = finite if self._finite is None else self._finite & finite
        if self.accelerator.sync_gradients:  # the optimizer's step is next
            self._stop_unless_finite(self._finite)
            self._finite = None
        return self._task_loss

    def _clip_grad_norm(self, model: nn.Module, norm: float | None = None) -> Any:
        """Clip the model's gradient alone; returns its norm before."""
        own = [p for p in model.parameters() if p is not self.dam.alpha]
        norm = self.args.max_grad_norm if norm is None else norm
        return self.accelerator.clip_grad_norm_(own, norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """What is logged: the norm of the model's gradient alone, also where it is not clipped."""
        return self._clip_grad_norm(model, math.inf) if grad_norm is None else grad_norm

    def _stop_unless_finite(self, losses: torch.Tensor) -> None:
        # All processes must come to the same conclusion, or the others would wait for this one.
        if self.accelerator.num_processes > 1:
            losses = self.accelerator.reduce((~losses).float(), "sum") == 0.0
        gradients = losses.new_ones(())
        if self.accelerator.scaler is None:  # else it skips steps with infinite gradients
            # The largest value: the sum of squares may overflow where no gradient does.
            norm = torch.nn.utils.get_total_norm(
                [p.grad for p in self.model.parameters() if p.grad is not None], math.inf
            )
            gradients = norm.isfinite()
        if bool(losses & gradients):
            return
        self.model.zero_grad()
        kept = "in memory"
        if self.args.save_strategy != "no":
            folder = os.path.join(self._output_dir, LAST_FINITE)
            self.save_model(folder, _internal_call=True)
            kept = f"in memory and in {folder}"
        raise FloatingPointError(
            f"{_NAME}: {'a gradient' if bool(losses) else 'the loss'} of step "
            f"{self.state.global_step} (counted from 0) is NaN or infinite. The training stopped "
            f"before the model took that step; the model after the last good one is kept {kept}. "
            "Lower the learning rates, look at the data of that step, or go on from a checkpoint"
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers.Trainer does, and the DAM in a file that `load_dam` reads.

        After `finish`, the masks beside the model, as `save_masks` writes them.
        """
        if self.args.should_save and sparse_modules(self.model):
            save_masks(self.model, output_dir or self._output_dir)
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and _holds(self.model, self.dam):
            save_dam(self.model, output_dir or self._output_dir)

    @property
    def _output_dir(self) -> str:
        folder = self.args.output_dir
        assert folder is not None  # TrainingArguments has a default
        return folder

    # ----------------------------------------------------------------------------- the result

    @property
    def history(self) -> list[dict[str, float]]:
        """A row for each logged step: step, loss, mask_sparsity, importance_diagonal, ...

        See `DAMCallback` for the names. A resumed training has the rows from before, too.
        """
        return [row for row in self.state.log_history if "mask_sparsity" in row]

    def finish(
        self,
        sparsity: float | None = None,
        *,
        threshold: float | None = None,
        executed: float | None = None,
        backend: str = "auto",
        **options: Any,
    ) -> AttentionMask:
        """End the search: binarize the DAM, and make the model sparse with that mask, in place.

        Args:
            sparsity: of the mask; with none of the three, the goal of the search.
            threshold, executed: instead, see `DifferentiableAttentionMask.binarize`; the tiles are
                those of the search.
            backend: see `sparsify`.
            **options: further arguments of `binarize`: scope, without_diagonal, keep_tokens,
                allow_empty_rows.

        Raises:
            ValueError: the search is finished already, or what `binarize` refuses (the model
                still has its DAM then).
        """
        if executed is not None:
            options = {**options, "executed": executed, "tiles": self.search.tiles}
        elif sparsity is None and threshold is None:
            sparsity = self.search.sparsity
        attached(self.model)
        mask = self.dam.binarize(threshold, sparsity, **options)
        sparsify(detach_dam(self.model), mask, backend=backend)
        return mask


def _holds(model: nn.Module, dam: DifferentiableAttentionMask) -> bool:
    return any(module is dam for module in model.modules())
