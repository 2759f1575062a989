"""One phase of training: with a progress bar, from its last checkpoint on, stopping on Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging

from sparsebert.integrations.huggingface.lost_masks import MasksNotSavedWarning
from sparsebert.learn.data import IGNORED, MaskedBlocks, MaskedText
from sparsebert.learn.planted import PlantedSequences
from sparsebert.learn.settings import Settings
from sparsebert.support.progress import Progress

_LOGS = 100  # points of a curve
_CHECKPOINTS = 10  # in a phase; one more when it is interrupted


def quieten_transformers() -> None:
    """No warnings and progress bars of its own: each phase has one line, see `train`."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def arguments(settings: Settings, folder: Path, steps: int, rate: float) -> TrainingArguments:
    """A Trainer's arguments for a phase of so many steps with checkpoints in `folder`."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=rate,
        warmup_steps=max(1, steps // 20),
        weight_decay=0.01,
        seed=settings.seed,
        logging_steps=max(1, steps // _LOGS),
        save_steps=max(1, steps // _CHECKPOINTS),
        save_total_limit=2,  # the one before, should a write be cut short
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )


def frequency_loss(data: MaskedText) -> float:
    """Validation loss of guessing by the tokens' frequencies: what takes no context at all."""
    tokens = data.train.blocks[:, 1:-1].flatten()
    validation = data.validation.batch(range(len(data.validation)))["labels"]
    wanted = validation[validation != IGNORED]
    size = 1 + max(int(tokens.max()), int(wanted.max()))
    counts = torch.bincount(tokens, minlength=size).double() + 1.0  # none is impossible
    return -(counts / counts.sum()).log()[wanted].mean().item()


def train(trainer: Trainer, title: str) -> None:
    """Train to the end, from the last checkpoint on if there is one.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C; the step was finished and saved. A second one
            stops at once.
    """
    assert trainer.args.output_dir is not None
    folder = Path(trainer.args.output_dir)
    stop = _Stop()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Bar(title))
    trainer.add_callback(stop)
    with stop.on_interrupt(), warnings.catch_warnings():
        # A checkpoint needs no masks: the phase that goes on from it brings its own.
        warnings.simplefilter("ignore", MasksNotSavedWarning)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    if stop.asked:
        raise KeyboardInterrupt


def remove_checkpoints(folder: Path) -> None:
    """Delete what only an unfinished phase needs."""
    for checkpoint in folder.rglob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint; the newest may have been cut short by a crash."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    while found and not _complete(found[-1]):
        shutil.rmtree(found.pop())
    return str(found[-1]) if found else None


def _complete(checkpoint: Path) -> bool:
    """Whether all of it was written: its trainer_state.json, which is written last, is whole."""
    try:
        return isinstance(json.loads((checkpoint / "trainer_state.json").read_bytes()), dict)
    except (OSError, ValueError):
        return False


def block_losses(
    model: Any, blocks: MaskedBlocks | PlantedSequences, batch_size: int = 16
) -> torch.Tensor:
    """Mean loss of the predicted tokens of each block, fp32 [K]; the model in evaluation mode.

    All blocks have as many predicted tokens, so the mean of these is the mean over tokens.
    """
    device = next(model.parameters()).device
    losses = []
    with torch.inference_mode():
        for start in range(0, len(blocks), batch_size):
            batch = blocks.batch(range(start, min(start + batch_size, len(blocks))))
            labels = batch["labels"].to(device)
            logits = model(input_ids=batch["input_ids"].to(device)).logits.float()
            each = functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
            ).view_as(labels)
            losses.append((each.sum(1) / (labels != IGNORED).sum(1)).cpu())
    return torch.cat(losses)


class _Bar(TrainerCallback):
    """Progress with the loss."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar = Progress(self.title, state.max_steps, "steps", done=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.bar is not None
        self.bar.update(state.global_step - self.bar.done)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = {"loss": "loss", "mask_sparsity": "sparsity"}
        words = [f"{name} {logs[key]:.3f}" for key, name in shown.items() if logs and key in logs]
        if words and self.bar is not None:
            self.bar.note(", ".join(words))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()


class _Stop(TrainerCallback):
    """Ctrl-C ends the training after the step that runs, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True

    @contextlib.contextmanager
    def on_interrupt(self) -> Iterator[None]:
        """Take over Ctrl-C; only the main thread can, and elsewhere none arrives."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(*_: object) -> None:
            self.asked = True
            signal.signal(signal.SIGINT, before)

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
