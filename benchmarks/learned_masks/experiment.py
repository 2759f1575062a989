"""The jobs of one seed of a task, each giving rows; a job that is done is not run again."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

import sparsebert as sb
from benchmarks.harness.origin import origin
from benchmarks.learned_masks import fixed_masks, loops
from benchmarks.learned_masks.protocol import (
    DAMS,
    DENSE,
    HAND_MADE,
    IMPORTANCE,
    KEPT,
    PAPER,
    SCORED,
    SPARSITIES,
    TARGET,
    WITHOUT,
    Recipe,
    Setup,
    contenders,
    has_sparsity,
    row_file,
    slug,
)
from benchmarks.learned_masks.tasks import TASKS
from sparsebert.dam.importance import GROUPS, group_importance
from sparsebert.dam.priced_tiles import PricedTiles
from sparsebert.integrations.huggingface.discovery import find_self_attention
from sparsebert.integrations.huggingface.scores import position_scores
from sparsebert.storage import write_atomically

_POINTS = 20  # of the importance over the steps


@dataclasses.dataclass(frozen=True)
class Job:
    """One contender at one sparsity; None if it has none."""

    contender: str
    asked: float | None


def jobs(task: str, sparsities: tuple[float, ...] = SPARSITIES) -> list[Job]:
    """All jobs of a seed, in the order in which they are run."""
    found: list[Job] = []
    for asked in sparsities:
        for name in contenders(task):
            job = Job(name, asked if has_sparsity(name) else None)
            if job not in found:
                found.append(job)
    return found


class Experiment:
    """One seed of a task.

    Args:
        setup: of the task.
        seed: of weights, batches and masks.
        work: where searches, scores and dense models are kept.
        device: "cpu" or "cuda".
        masks: where the learned masks of `KEPT` are kept besides; None: nowhere.
    """

    def __init__(
        self, setup: Setup, seed: int, work: Path, device: str = "cpu", masks: Path | None = None
    ) -> None:
        self.setup, self.seed, self.masks = setup, seed, masks
        self.folder = work / setup.task
        task = TASKS[setup.task.partition("-")[0]]
        self.task = task(setup, seed, self.folder, device)
        self.precision = loops.precision_of(device)
        self.device = device

    def rows(self, job: Job) -> list[dict[str, Any]]:
        """What a job gives: one row, but for the importance over the steps."""
        name, asked = job.contender, job.asked
        self._train_dense_start()
        if name == IMPORTANCE:
            return list(self._importance())
        if name.startswith("lambda "):
            return [self._of_lambda(float(name.removeprefix("lambda ")))]
        if name in DAMS:
            assert asked is not None
            return [self._learned(name, DAMS[name], asked)]
        mask = self.fixed_mask(name, asked)
        return [self._trained(mask) | (_about(mask, self._heads) if mask else {})]

    def fixed_mask(self, name: str, asked: float | None) -> sb.AttentionMask | None:
        """The mask of a contender that learns none; None for the dense one."""
        n, (heads, _) = self.setup.seq_len, self._heads
        if name == DENSE:
            return None
        if name in WITHOUT:
            return fixed_masks.without(name, n, heads, self.seed)
        assert asked is not None
        if name in HAND_MADE:
            return fixed_masks.pattern(name, n, asked, heads, self.seed)
        options = SCORED[name]
        if "start_of" in options:
            recipe = DAMS[options["start_of"]]
            dam = loops.first_dam(
                recipe, self.task.start(), self.scores(recipe.warm),
                asked=asked, seq_len=n, seed=self.seed,
            )  # fmt: skip
            return dam.binarize(sparsity=asked)
        return fixed_masks.highest(self.scores(options["kind"]), asked, options["share"])

    def scores(self, kind: str) -> torch.Tensor:
        """Scores of the positions of the dense start, [L, H, N, N], measured once and kept."""
        path = self.folder / f"scores-{kind}-seed{self.seed}.safetensors"
        if not path.exists():
            start, task = self.task.start(), self.task
            count = range(self.setup.score_batches)
            model, _ = task.scored(start, task.batch(0))
            measured = position_scores(
                model, (task.scored(start, task.batch(step))[1] for step in count),
                kind=kind, seq_len=self.setup.seq_len,
            )  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically("learned_masks", path, save({"scores": measured}))
        return load_file(path)["scores"]

    # ------------------------------------------------------------------------- kinds of jobs

    def _train_dense_start(self) -> None:
        setup, folder = self.setup, getattr(self.task, "dense", None)
        if folder is None or (folder / "model.safetensors").exists():
            return
        model = self.task.untrained()
        self._train(
            model, loops.Weights(model, setup.dense_lr, setup.dense_steps),
            begin=-setup.dense_steps, steps=setup.dense_steps,
        )  # fmt: skip
        model.save_pretrained(folder)

    def _trained(self, mask: sb.AttentionMask | None) -> dict[str, Any]:
        """Measured after all steps with the mask, and with it swapped into the dense start."""
        setup, model = self.setup, self.task.start()
        if mask is not None:
            sb.sparsify(model, mask)
        before = self._measured(model)["loss"] if self.task.pretrained else ""
        self._train(model, loops.Weights(model, setup.lr, setup.steps), begin=0, steps=setup.steps)
        return {**self._measured(model), "swapped_in": before}

    def _learned(self, name: str, recipe: Recipe, asked: float) -> dict[str, Any]:
        """In one budget, the search and then steps with what it found; and the mask from anew.

        Weights that the search trains are trained on, by the same optimizer.
        """
        setup, model = self.setup, self.task.start()
        left = setup.steps - setup.search_steps
        weights = loops.Weights(model, setup.lr, left if recipe.frozen else setup.steps)
        dam, tiles = self._search(model, recipe, None if recipe.frozen else weights, asked=asked)
        if recipe.executed:
            mask = dam.binarize(executed=recipe.executed, tiles=tiles)
        else:
            mask = dam.binarize(sparsity=asked)
        if self.masks is not None and name in KEPT:
            self.masks.mkdir(parents=True, exist_ok=True)
            mask.save(self.masks / f"{setup.task}-{slug(name, asked)}-seed{self.seed}.safetensors")
        sb.sparsify(model, mask)
        searched = self._measured(model)["loss"] if self.task.pretrained else ""
        self._train(model, weights, begin=setup.search_steps, steps=left)
        within = self._measured(model)
        groups = group_importance(dam.probabilities())
        return {
            **self._trained(mask),
            **_about(mask, self._heads),
            **groups,
            "searched": searched,
            "budget_loss": within["loss"],
            "budget_accuracy": within.get("accuracy", ""),
        }

    def _of_lambda(self, weight: float) -> dict[str, Any]:
        """The paper's way to a sparsity: a weight of the penalty; the mask of what is likely."""
        recipe = dataclasses.replace(PAPER, penalty="l1")
        model = self.task.start()
        dam, _ = self._search(model, recipe, self._new(model), asked=None, paper_lambda=weight)
        mask = dam.binarize()
        return {
            **self._trained(mask),
            **_about(mask, self._heads),
            **group_importance(dam.probabilities()),
        }

    def _importance(self) -> Iterator[dict[str, Any]]:
        """The paper's figure: the four groups of positions over the steps, no mask being drawn."""
        rows: list[dict[str, Any]] = []
        every = max(1, self.setup.search_steps // _POINTS)

        def watch(step: int, dam: sb.DifferentiableAttentionMask) -> None:
            if step % every == 0:
                rows.append({"step": step, **group_importance(dam.probabilities())})

        recipe = Recipe(warm="", top=False, mask_lr=0.1)
        model = self.task.start()
        self._search(model, recipe, self._new(model), asked=None, gate="post", watch=watch)
        yield from rows

    def _search(
        self,
        model: nn.Module,
        recipe: Recipe,
        weights: loops.Weights | None,
        *,
        asked: float | None,
        **options: Any,
    ) -> tuple[sb.DifferentiableAttentionMask, list[PricedTiles]]:
        return loops.search(
            self.task, model, recipe, self.scores(recipe.warm) if recipe.warm else None, weights,
            asked=asked, setup=self.setup, seed=self.seed, precision=self.precision, **options,
        )  # fmt: skip

    def _new(self, model: nn.Module) -> loops.Weights:
        """Of a model that is trained in the steps of a search alone."""
        return loops.Weights(model, self.setup.lr, self.setup.search_steps)

    def _train(self, model: nn.Module, weights: loops.Weights, *, begin: int, steps: int) -> None:
        loops.train(self.task, model, weights, begin=begin, steps=steps, precision=self.precision)

    def _measured(self, model: nn.Module) -> dict[str, float]:
        with loops.computing_in(self.precision, self.device):
            return self.task.evaluate(model.eval())

    @functools.cached_property
    def _heads(self) -> tuple[int, int]:
        """Heads, and numbers in a head: the model is built to tell them, so once."""
        config = find_self_attention("learned_masks", self.task.start()).owner.config
        return config.num_attention_heads, config.hidden_size // config.num_attention_heads


def _about(mask: sb.AttentionMask, heads: tuple[int, int]) -> dict[str, Any]:
    """What a mask keeps, and what its plans compute and are predicted to gain, over all layers."""
    layers = [mask.layer(i) for i in range(mask.num_layers)]
    area = {
        column: statistics.fmean(
            sb.compile_plan(each, objective="area", target=target).explain().executed_fraction
            for each in layers
        )
        for column, target in (("executed", "cpu"), ("executed_sm90", TARGET))
    }
    predicted = {
        column: statistics.harmonic_mean(
            sb.compile_plan(each, target=target, head_dim=heads[1], copies=16 * heads[0])
            .explain()
            .predicted_speedup
            for each in layers
        )
        for column, target in (("predicted", "cpu"), ("predicted_sm90", TARGET))
    }
    kept = group_importance(mask.dense().double())
    return {
        "sparsity": mask.sparsity,
        **area,
        **predicted,
        **{f"kept_{group}": kept[group] for group in GROUPS if group in kept},
    }


def run_seed(
    setup: Setup,
    seed: int,
    work: Path,
    *,
    device: str = "cpu",
    masks: Path | None = None,
    sparsities: tuple[float, ...] = SPARSITIES,
    until: float = float("inf"),
    most: int | None = None,
) -> int:
    """Run the jobs of a seed that are not done yet, each noted as soon as it is done.

    Args:
        until: of `time.monotonic`; no job begins after it.
        most: jobs to run at most.

    Returns how many jobs are left.
    """
    file = row_file(work / f"{setup.task}-seed{seed}.csv")
    done = _done(file.read() if file.path.exists() else [], setup)
    left = [job for job in jobs(setup.task, sparsities) if job not in done]
    if not left or (most is not None and most <= 0):
        return len(left)
    experiment = Experiment(setup, seed, work, device, masks)
    for place, job in enumerate(left[:most]):
        if time.monotonic() > until:
            return len(left) - place
        before = time.perf_counter()
        rows = experiment.rows(job)
        seconds = time.perf_counter() - before
        common = {
            "seed": seed, **dataclasses.asdict(setup), "contender": job.contender,
            "asked": "" if job.asked is None else job.asked, "precision": experiment.precision,
            "seconds": seconds, **origin(device),
        }  # fmt: skip
        file.append(
            {k: f"{v:.5f}" if isinstance(v, float) and k != "asked" else v for k, v in row.items()}
            for row in ({**common, **row} for row in rows)
        )
        shown = {k: round(v, 4) for k, v in rows[-1].items() if isinstance(v, float)}
        print(setup.task, seed, job.contender, job.asked, shown, f"{seconds:.0f} s", flush=True)
    return max(0, len(left) - (len(left) if most is None else most))


def _done(rows: list[dict[str, Any]], setup: Setup) -> set[Job]:
    """The jobs that have rows.

    Raises:
        ValueError: rows of another setup.
    """
    for row in rows:
        other = {
            name: row[name]
            for name, value in dataclasses.asdict(setup).items()
            if (float(row[name]) if isinstance(value, float) else row[name])
            != (value if isinstance(value, float) else str(value))
        }
        if other:
            raise ValueError(
                f"learned_masks: the rows of seed {row['seed']} are of another setup ({other}); "
                "give another folder, or delete them to begin anew"
            )
    return {Job(row["contender"], float(row["asked"]) if row["asked"] else None) for row in rows}
