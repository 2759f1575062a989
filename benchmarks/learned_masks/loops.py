"""The loops of the experiments: training with a mask or without, and searching for one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

import sparsebert as sb
from benchmarks.learned_masks.protocol import SPECIAL, TARGET, Recipe, Setup
from benchmarks.learned_masks.tasks import Task
from sparsebert.dam.distillation import hidden_distance
from sparsebert.dam.pooled_scores import pooled_scores
from sparsebert.dam.priced_tiles import PricedTiles
from sparsebert.dam.search import MaskSearch
from sparsebert.integrations.huggingface.discovery import find_self_attention

_WARMUP = 0.1  # of the steps, in which the learning rate rises
_DECAY = 0.01
_NORM = 1.0  # of the model's gradient, at most


def precision_of(device: str) -> str:
    """ "bf16" (autocast) where products in it are faster than in "fp32"."""
    if device != "cpu":
        return "bf16"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


@contextlib.contextmanager
def computing_in(precision: str, device: str) -> Iterator[None]:
    """Autocast to bf16, or nothing."""
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        yield


class Weights:
    """The optimizer of a model's weights over all steps that they are trained for.

    The learning rate rises from 0 for a tenth of the steps, and then falls to 0, linearly.

    Args:
        model: whose parameters are trained.
        lr: the highest learning rate.
        steps: in all; they may be taken by more than one loop.
    """

    def __init__(self, model: nn.Module, lr: float, steps: int) -> None:
        self._parameters = list(model.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=lr, weight_decay=_DECAY, fused=True
        )
        self._lr, self._steps, self._done = lr, steps, 0

    def step(self) -> None:
        """Take a step by the gradients, and forget these."""
        set_rate(self._optimizer, self._lr, self._done, self._steps)
        torch.nn.utils.clip_grad_norm_(self._parameters, _NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._done += 1


def train(
    task: Task, model: nn.Module, weights: Weights, *, begin: int, steps: int, precision: str
) -> None:
    """Train the model on batches `begin` to `begin` + `steps` of the task, in place."""
    model.train()
    for step in range(begin, begin + steps):
        with computing_in(precision, task.device):
            loss = task.loss(model, task.batch(step))
        loss.backward()
        weights.step()
    model.eval()


def search(
    task: Task,
    model: nn.Module,
    recipe: Recipe,
    scores: torch.Tensor | None,
    weights: Weights | None,
    *,
    asked: float | None,
    setup: Setup,
    seed: int,
    precision: str,
    gate: str = "softmax",
    watch: Callable[[int, sb.DifferentiableAttentionMask], None] | None = None,
    paper_lambda: float | None = None,
) -> tuple[sb.DifferentiableAttentionMask, list[PricedTiles]]:
    """Search for a mask, along with the model's weights or alone.

    Returns the DAM, detached, and the tiles to finish it by, see `MaskSearch.tiles`.

    Args:
        task, setup: batches 0 to `setup.search_steps` of the task.
        model: the dense model that all contenders start from.
        scores: [L, H, N, N] for a warm start, pooled if the recipe says so.
        weights: of the model, which are trained in place; None where the recipe freezes them.
        asked: sparsity; None: no goal.
        watch: is called with each step and the DAM, before the step.
        paper_lambda: weight of the penalty in the paper's units, in the place of a goal.
    """
    teacher = copy.deepcopy(model).eval().requires_grad_(False) if recipe.frozen else None
    dam = first_dam(recipe, model, scores, asked=asked, seq_len=setup.seq_len, seed=seed)
    if gate == "post":  # the paper's analysis, in which no mask is drawn
        dam.hard = dam.noise = False
    weight = None
    if asked is None:
        size = dam.num_layers * dam.num_heads * dam.seq_len**2
        weight = 0.0 if paper_lambda is None else paper_lambda * size
    plan = MaskSearch(
        dam, setup.search_steps, sparsity=asked, weight=weight, penalty=recipe.penalty,
        target=TARGET,
    )  # fmt: skip
    sb.attach_dam(model.requires_grad_(not recipe.frozen), dam, gate=gate)
    dam.requires_grad_(True)
    model.train(not recipe.frozen)
    dam.train()
    optimizer = torch.optim.AdamW([dam.alpha], weight_decay=0.0, fused=True)
    for step in range(setup.search_steps):
        batch = task.batch(step)
        plan.begin_step(step)
        set_rate(optimizer, recipe.mask_lr, step, setup.search_steps)
        if watch is not None:
            watch(step, dam)
        with computing_in(precision, task.device):
            if teacher is None:
                loss = task.loss(model, batch)
            else:
                loss = _distance(task, model, teacher, batch)
        (loss + plan.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if weights is not None:
            weights.step()
    if watch is not None:
        watch(setup.search_steps, dam)
    sb.detach_dam(model).requires_grad_(True).eval()
    return dam, plan.tiles


def first_dam(
    recipe: Recipe,
    model: nn.Module,
    scores: torch.Tensor | None,
    *,
    asked: float | None,
    seq_len: int,
    seed: int,
) -> sb.DifferentiableAttentionMask:
    """The DAM that a search of the recipe begins with; see `search`."""
    attention = find_self_attention("first_dam", model)
    dam = sb.DifferentiableAttentionMask(
        len(attention.modules) if recipe.per_layer else 1,
        attention.num_heads or 1,
        seq_len,
        recipe.structure,
        symmetric=recipe.symmetric,
        own_tokens=recipe.own_tokens,
        sampling="top" if recipe.top else "gumbel",
        scope="global" if recipe.top else "head",
        init_probability=0.8 if asked is not None else 0.5,
        seed=seed,
    )
    if recipe.warm:
        assert scores is not None and asked is not None
        if recipe.pooled:
            scores = pooled_scores(scores, own_tokens=SPECIAL)
        dam.start_from(scores, asked)
    return dam


def _distance(
    task: Task, model: nn.Module, teacher: nn.Module, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Of the model's hidden states from the teacher's."""
    with torch.no_grad():
        wanted = task.hidden(teacher, batch)
    return hidden_distance(task.hidden(model, batch), wanted, batch.get("attention_mask"))


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """Linear from 0 up to the rate and down to 0 again."""
    rising = (step + 1) / max(1.0, _WARMUP * steps)
    factor = min(1.0, rising, (steps - step) / max(1.0, (1.0 - _WARMUP) * steps))
    for group in optimizer.param_groups:
        group["lr"] = rate * factor
