"""The phases of ``sparsebert learn``; each notes its result, and is not run again once it has.

    dense      training without a mask: the weights that every mask starts from
    search     from these weights, with a DAM: gives the learned mask
    tune-NAME  from the dense weights again, with the mask fixed, for the same steps

So each mask is judged by the same weights, batches and number of steps; the search's own weights
serve the search alone.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from transformers import AutoTokenizer, Trainer, TrainingArguments

from sparsebert.dam import DifferentiableAttentionMask
from sparsebert.dam.importance import GROUPS
from sparsebert.integrations.huggingface.api import save_masks, sparsify
from sparsebert.integrations.huggingface.dam_files import save_dam
from sparsebert.integrations.huggingface.discovery import find_self_attention
from sparsebert.integrations.huggingface.scores import position_scores
from sparsebert.integrations.huggingface.trainer import DAMTrainer
from sparsebert.learn import training
from sparsebert.learn.data import MaskedBlocks, MaskedText, prepare, train_tokenizer
from sparsebert.learn.models import new_model, trained_model
from sparsebert.learn.planted import PlantedSequences, PlantedTask
from sparsebert.learn.run_folder import RESULT, write_json
from sparsebert.learn.settings import Settings
from sparsebert.masks import AttentionMask
from sparsebert.storage import write_atomically

MASK = "mask.safetensors"
LEARNED = "learned"
DENSE = "dense"
SEARCH = "search"
LATER_RATE = 0.25
"""Learning rate after the dense training, of the one in it, which would undo what was learned."""
_VALIDATION = 256  # blocks at most, or a large text would be all evaluation
_SCORED = 8  # batches by which positions are scored before a search


Data = MaskedText | PlantedTask
_PROBABILITIES = "probabilities.safetensors"


@dataclasses.dataclass(frozen=True)
class Search:
    """What the search found.

    Attributes:
        mask: AttentionMask [L, H, N, N].
        probabilities: of the positions, [L, H, N, N].
        soft, hard: loss of each validation block with the search's weights: under masks drawn as
            in training, and under the mask.
        history: rows of `DAMTrainer.history`.
    """

    mask: AttentionMask
    probabilities: torch.Tensor
    soft: torch.Tensor
    hard: torch.Tensor
    history: list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Tuned:
    """Loss of each validation block with a mask swapped in, and after training on with it."""

    before: torch.Tensor
    after: torch.Tensor
    history: list[dict[str, float]]


class Phases:
    """All phases of one run, in `folder`/work."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.work = folder / "work"
        self.count = 0  # how many phases there will be, for their titles
        self.tokenizer: Any = None
        self._planted: PlantedTask | None = None
        self._place = 0

    # ------------------------------------------------------------------------------- before all

    def data(self, text: str, where: str) -> MaskedText:
        """The text in blocks, by the model's own tokenizer or one that is trained on it.

        Raises:
            ValueError: see `prepare`; a tokenizer with more tokens than the model.
        """
        settings = self.settings
        own = self.work / "tokenizer"
        if settings.model is not None:
            self.tokenizer = AutoTokenizer.from_pretrained(settings.model)
        elif own.exists():
            self.tokenizer = AutoTokenizer.from_pretrained(own)
        else:
            self.tokenizer = train_tokenizer(text, settings.vocab_size)
            draft = own.with_name("tokenizer-unfinished")
            self.tokenizer.save_pretrained(draft)
            draft.rename(own)  # whole or not there
        positions = None
        if settings.model is not None:
            config = self._new_model().config
            positions = getattr(config, "max_position_embeddings", settings.seq_len)
            # RoBERTa's positions begin at 2, which only its tokenizer knows.
            positions = min(positions, self.tokenizer.model_max_length)
            if len(self.tokenizer) > config.vocab_size:
                raise ValueError(
                    f"learn: the tokenizer in {settings.model} has {len(self.tokenizer)} tokens "
                    f"but the model {config.vocab_size}; they do not belong together"
                )
        return prepare(
            text, self.tokenizer, settings.seq_len, most_validation=_VALIDATION,
            seed=settings.seed, max_positions=positions, where=where,
        )  # fmt: skip

    def planted(self) -> PlantedTask:
        """The planted task instead of a text."""
        self._planted = PlantedTask(self.settings.seq_len, self.settings.seed)
        return self._planted

    def _new_model(self) -> Any:
        return new_model(self.settings, self.tokenizer, self._planted)

    def attention_shape(self) -> tuple[int, int]:
        """Heads, and numbers in a head."""
        config = self._new_model().config
        return config.num_attention_heads, config.hidden_size // config.num_attention_heads

    def dense_model(self) -> Any:
        """The model after the dense training."""
        return trained_model(self.settings, self.work / DENSE / "model")

    # ------------------------------------------------------------------------------- the phases

    def dense(self, data: Data) -> tuple[torch.Tensor, list[dict[str, float]]]:
        """Train without a mask, if at all; losses of the validation blocks [K], and the log."""

        def run(folder: Path, title: str) -> dict[str, Any]:
            model, history = self._new_model(), []
            if self.settings.steps:
                trainer = self._trainer(model, data, folder, self.settings.steps)
                training.train(trainer, title)
                history = _losses(trainer)
            model.save_pretrained(folder / "model")
            losses = training.block_losses(model.eval(), data.validation)
            return {"losses": losses.tolist(), "history": history}

        result = self._phase(DENSE, run)
        return torch.tensor(result["losses"]), result["history"]

    def search(self, data: Data) -> Search:
        """Learn a mask.

        If the settings name no penalty: alpha begins by what each position does to the loss, and
        every mask keeps the likeliest positions. With a parameter a position the model is also
        held to what it computed without a mask.
        """

        def run(folder: Path, title: str) -> dict[str, Any]:
            found = self._train_dam(data, folder, title)
            model = found.model
            probabilities = save({"probabilities": found.dam.probabilities().detach()})
            write_atomically("learn", folder / _PROBABILITIES, probabilities)
            model.eval()
            found.dam.train()  # draws a mask for each batch, as in training
            soft = training.block_losses(model, data.validation)
            mask = found.finish()
            mask.save(folder / MASK)
            hard = training.block_losses(model, data.validation)
            return {"soft": soft.tolist(), "hard": hard.tolist(), "history": found.history}

        result = self._phase(SEARCH, run)
        return Search(
            AttentionMask.load(self.work / SEARCH / MASK),
            load_file(self.work / SEARCH / _PROBABILITIES)["probabilities"],
            torch.tensor(result["soft"]),
            torch.tensor(result["hard"]),
            result["history"],
        )

    def _train_dam(self, data: Data, folder: Path, title: str) -> DAMTrainer:
        """A search from the dense weights on, to the end; its DAM is saved to the folder."""
        settings = self.settings
        steps = settings.search_steps
        recipe = settings.recipe
        model = self.dense_model()
        attention = find_self_attention("learn", model)
        layers = len(attention.modules) if settings.per_layer else 1
        goal: dict[str, Any] = {
            "distillation": recipe.distillation, "mask_learning_rate": recipe.mask_learning_rate,
        }  # fmt: skip
        options: dict[str, Any] = {"sampling": "top", "scope": "global", "symmetric": False}
        if settings.penalty is not None:
            goal, options = {"penalty": settings.penalty}, {}
        if settings.structure == "block":
            options["block_size"] = settings.block_size
        dam = DifferentiableAttentionMask(
            layers, attention.num_heads or 1, settings.seq_len, settings.structure,
            seed=settings.seed, **options,
        )  # fmt: skip
        if settings.penalty is None:
            dam.start_from(self.scores(model, data, recipe.scores), settings.sparsity)
        found = DAMTrainer(
            model=model,
            args=self._arguments(folder, steps, later=True),
            train_dataset=self._batches(data, steps, settings.steps),
            dam=dam,
            sparsity=settings.sparsity,
            **goal,
        )
        training.train(found, title)
        save_dam(model, folder)
        return found

    def scores(self, model: Any, data: Data, kind: str) -> torch.Tensor:
        """How much each position matters to the dense model, [L, H, N, N], see `position_scores`.

        By the first batches that come after the dense training.
        """
        size = self.settings.batch_size
        batches = self._batches(data, _SCORED, self.settings.steps)
        device = next(model.parameters()).device
        return position_scores(
            model,
            (
                {k: v.to(device) for k, v in batches.batch(range(i, i + size)).items()}
                for i in range(0, _SCORED * size, size)
            ),
            kind=kind,
            seq_len=self.settings.seq_len,
        )

    def most_attended(self, data: Data) -> AttentionMask:
        """The mask of the positions with most attention on average, over all layers and heads."""
        scores = self.scores(self.dense_model(), data, "attention")
        layers, heads, n, _ = scores.shape
        dam = DifferentiableAttentionMask(layers, heads, n, symmetric=False, scope="global")
        return dam.start_from(scores, self.settings.sparsity).binarize(
            sparsity=self.settings.sparsity
        )

    def tune(self, name: str, mask: AttentionMask | None, data: Data) -> Tuned:
        """Train on with a fixed mask, or without; the learned one's model is kept."""

        def run(folder: Path, title: str) -> dict[str, Any]:
            model = self.dense_model()
            if mask is not None:
                sparsify(model, mask)
            before = training.block_losses(model.eval(), data.validation)
            steps, begin = self.settings.tune_steps, self.settings.steps
            trainer = self._trainer(model, data, folder, steps, begin)
            training.train(trainer, title)
            after = training.block_losses(model.eval(), data.validation)
            if name == LEARNED:
                save_masks(model, self.folder / "model")  # first, or save_pretrained warns
                model.save_pretrained(self.folder / "model")
                if self.tokenizer is not None:
                    self.tokenizer.save_pretrained(self.folder / "model")
            return {
                "before": before.tolist(),
                "after": after.tolist(),
                "history": _losses(trainer),
            }

        result = self._phase(f"tune-{name}", run)
        return Tuned(
            torch.tensor(result["before"]), torch.tensor(result["after"]), result["history"]
        )

    def _trainer(
        self, model: Any, data: Data, folder: Path, steps: int, begin: int = 0
    ) -> Trainer:
        """Of so many steps, from step `begin` of the whole on."""
        return Trainer(
            model=model,
            args=self._arguments(folder, steps, later=begin > 0),
            train_dataset=self._batches(data, steps, begin),
        )

    def _arguments(self, folder: Path, steps: int, *, later: bool) -> TrainingArguments:
        rate = self.settings.learning_rate * (LATER_RATE if later else 1.0)
        return training.arguments(self.settings, folder, steps, rate)

    def _batches(self, data: Data, steps: int, begin: int) -> MaskedBlocks | PlantedSequences:
        """Phases that begin at the same step see the same batches, and none of those before."""
        size = self.settings.batch_size
        return data.training_set(steps * size, start=begin * size)

    def _phase(self, name: str, run: Callable[[Path, str], dict[str, Any]]) -> dict[str, Any]:
        """The result of a phase: the one that is noted, or else that of running it."""
        self._place += 1
        title = f"{self._place}/{self.count} {name}"
        folder = self.work / name
        note = folder / RESULT
        if not note.exists():
            result = run(folder, title)
            write_json(note, result)
            training.remove_checkpoints(folder)
        else:
            print(f"{title}: done before", file=sys.stderr, flush=True)
        loaded: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        return loaded


def history_rows(phases: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """The logs of all phases as rows with the same keys, for a CSV file."""
    keys = [
        "step", "loss", "mask_sparsity", "mask_hard_sparsity", "mask_temperature",
        "mask_penalty_weight", "mask_penalty", *(f"importance_{group}" for group in GROUPS),
        "predicted_speedup",
    ]  # fmt: skip
    return [
        {"phase": phase, **{key: row.get(key, "") for key in keys}}
        for phase, rows in phases.items()
        for row in rows
    ]


def _losses(trainer: Trainer) -> list[dict[str, float]]:
    return [
        {"step": row["step"], "loss": row["loss"]}
        for row in trainer.state.log_history
        if "loss" in row
    ]
