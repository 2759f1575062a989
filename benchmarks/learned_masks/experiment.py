"""One seed of the experiment: the phases of ``sparsebert learn``, and a row for each contender."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import ModernBertConfig, ModernBertForMaskedLM

import sparsebert as sb
from benchmarks.harness.origin import origin
from benchmarks.learned_masks.protocol import (
    DAMS,
    IMPORTANCE,
    START,
    Setup,
    fixed_masks,
    row_file,
    slug,
)
from sparsebert.dam.importance import GROUPS, group_importance
from sparsebert.learn.data import train_tokenizer
from sparsebert.learn.phases import Phases
from sparsebert.learn.run_folder import claim
from sparsebert.learn.settings import Settings
from sparsebert.learn.sources import python_text
from sparsebert.learn.training import quieten_transformers

_POINTS = 20  # of the importance over the steps


class Experiment:
    """One seed: the model trained with dense attention, and what continues it.

    Args:
        setup: sizes and lengths.
        seed: of weights, batches and masks.
        folder: for phases, which are not run again once they are done.
        masks: where the learned masks are kept besides; None: nowhere.
    """

    def __init__(self, setup: Setup, seed: int, folder: Path, masks: Path | None = None) -> None:
        self.setup, self.seed, self.masks = setup, seed, masks
        self.fixed = fixed_masks(setup, seed)
        self.contenders = (START, *self.fixed, *DAMS, IMPORTANCE)
        text = python_text()
        fresh = folder / "fresh"
        settings = Settings(
            model=str(fresh),
            seq_len=setup.seq_len,
            sparsity=setup.sparsity,
            structure="full",
            per_layer=False,
            steps=setup.dense_steps,
            search_steps=setup.search_steps,
            tune_steps=setup.search_steps + setup.fixed_steps,
            batch_size=setup.batch,
            learning_rate=setup.lr,
            against=(),
            seed=seed,
        )
        claim(folder, settings, text)
        if not (fresh / "config.json").exists():
            _write_fresh_model(fresh, text, setup, seed)
        self.phases = Phases(settings, folder)
        self.phases.count = len(self.contenders) + len(DAMS)
        self.data = self.phases.data(text, "Python's own documentation")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """What a contender gives: one row, but for the importance over the steps.

        `START`, which trains the dense model, has to come first.
        """
        if name == START:
            losses, _ = self.phases.dense(self.data)
            return [{"loss": losses.mean().item()}]
        if name == IMPORTANCE:
            return list(self._importance())
        if name in DAMS:
            return [self._with_dam(name)]
        return [self._with_fixed_mask(name, self.fixed[name]())]

    def _with_fixed_mask(self, name: str, mask: sb.AttentionMask) -> dict[str, Any]:
        """Loss after all further steps with the mask; and what its plan executes (all heads)."""
        tuned = self.phases.tune(slug(name), mask, self.data)
        plan = sb.compile_plan(mask.layer(0), objective="area", target="cpu")
        return {
            "loss": tuned.after.mean().item(),
            "sparsity": mask.sparsity,
            "executed": plan.explain().executed_fraction,
        }

    def _with_dam(self, name: str) -> dict[str, Any]:
        """Within one budget: the search, and steps with what it found; then the mask from anew."""
        setup, options = self.setup, DAMS[name]
        found = self.phases.search(
            self.data,
            slug(name),
            steps=setup.search_steps,
            further=setup.fixed_steps,
            dam_options={
                "structure": options["structure"],
                "init_probability": setup.init_probability,
            },
            trainer_options={
                "penalty": options["penalty"],
                "mask_learning_rate": setup.mask_lr,
            },
        )
        if self.masks is not None:
            self.masks.mkdir(parents=True, exist_ok=True)
            found.mask.save(self.masks / f"{slug(name)}-seed{self.seed}.safetensors")
        groups = group_importance(found.probabilities)
        kept = group_importance(found.mask.dense().double())
        return {
            "soft_loss": found.soft.mean().item(),
            "hard_loss": found.hard.mean().item(),
            "budget_loss": found.further.mean().item(),
            **self._with_fixed_mask(name, found.mask),
            **{f"p_{group}": groups[group] for group in GROUPS},
            **{f"kept_{group}": kept[group] for group in GROUPS},
        }

    def _importance(self) -> Iterator[dict[str, Any]]:
        """The paper's figure: the four groups of positions over the steps."""
        steps = self.setup.search_steps
        history = self.phases.importance(
            self.data, steps=steps, mask_learning_rate=self.setup.mask_lr
        )
        for row in history:
            step = int(row["step"])
            if row is history[0] or step % max(1, steps // _POINTS) == 0:
                yield {"step": step, **{group: row[f"importance_{group}"] for group in GROUPS}}


def _write_fresh_model(folder: Path, text: str, setup: Setup, seed: int) -> None:
    """A ModernBERT without any training, and a tokenizer for the text."""
    train_tokenizer(text, setup.vocab).save_pretrained(folder)
    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=setup.vocab,
        hidden_size=setup.hidden,
        num_hidden_layers=setup.layers,
        num_attention_heads=setup.heads,
        intermediate_size=2 * setup.hidden,
        max_position_embeddings=setup.seq_len,
        global_attn_every_n_layers=1,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        **dict.fromkeys(("cls_token_id", "sep_token_id"), 0),
    )
    ModernBertForMaskedLM(config).save_pretrained(folder)


def run_seed(setup: Setup, seed: int, work: Path, masks: Path | None = None) -> Path:
    """All contenders of one seed; what an earlier start has finished is not run again.

    Returns the CSV file with their rows.
    """
    quieten_transformers()
    file = row_file(work / f"seed{seed}.csv")
    experiment = Experiment(setup, seed, work / f"seed{seed}", masks)
    done = {row["contender"] for row in file.read()} if file.path.exists() else set()
    for name in experiment.contenders:
        if name in done:
            continue
        before = time.perf_counter()
        rows = experiment.rows(name)
        seconds = time.perf_counter() - before
        common = {"seed": seed, **dataclasses.asdict(setup), "contender": name, **origin()}
        common["seconds"] = seconds
        file.append(
            {k: f"{v:.5f}" if isinstance(v, float) else v for k, v in {**common, **row}.items()}
            for row in rows
        )
        print(name, {k: round(v, 4) for k, v in rows[-1].items()}, f"{seconds:.0f} s", flush=True)
    return file.path
