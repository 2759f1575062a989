"""The report of ``sparsebert learn``: tables, pictures, and what they say in words."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparsebert.dam.importance import GROUPS
from sparsebert.learn import learn_figures, speed
from sparsebert.learn.conclusion import CONTEXT, SURE
from sparsebert.learn.phases import DENSE, LATER_RATE, LEARNED, MASK, Search, Tuned
from sparsebert.learn.settings import PLANTED, Settings
from sparsebert.reporting.pages import Page
from sparsebert.reporting.tables import Column
from sparsebert.reporting.timing import Spread, own_clock, uncertain_words

_FEW = 8  # blocks, below which standard errors say little
_SHORT = 0.2  # of the density asked for, that the search may miss it by


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the report is about."""

    settings: Settings
    about: str
    data: str
    validated: int
    search: Search
    trained: torch.Tensor
    guessing: float
    tuned: Mapping[str, Tuned]
    rows: Sequence[dict[str, Any]]
    refused: Mapping[str, str]
    histories: Mapping[str, Sequence[Mapping[str, float]]]
    heads: tuple[int, int]
    encoder: Mapping[str, Spread]
    conclusion: str


def write_report(folder: Path, facts: Facts) -> Path:
    """Print the report and write it with its pictures; returns its path."""
    settings, search, rows = facts.settings, facts.search, facts.rows
    page = Page(folder)

    trained = facts.trained.mean().item()

    page.title("1. What was done")
    page.say(
        f"{facts.data[0].upper()}{facts.data[1:]}{_model(facts)}. Sequences of "
        f"{settings.seq_len} tokens, batches of {settings.batch_size}, seed {settings.seed}."
    )
    page.say(
        f"1. Dense training, {settings.steps} steps: validation loss {trained:.3f}; guessing "
        f"gives {facts.guessing:.3f}. 2. From there, a mask search of {settings.search_steps} "
        f"steps (structure {settings.structure}, {_recipe(settings)}, sparsity "
        f"{settings.sparsity:g}). "
        f"3. From the weights of 1 again, {settings.tune_steps} steps with each mask fixed, and "
        "without one. So every mask starts from the same weights and sees the same batches; the "
        "search, which the others do not need, is extra. "
        f"Learning rate {settings.learning_rate:g} in 1, {LATER_RATE:g} of it afterwards. "
        "What is validated on is always the same."
    )
    if facts.validated < _FEW:
        page.say(
            f"**Only {facts.validated} blocks to validate on: too few to tell masks apart. Give "
            "more text.**"
        )
    if trained > facts.guessing - CONTEXT:
        page.say(
            "**The model makes hardly any use of its context yet, so the comparisons below say "
            "little about masks. Train longer (--steps), or with --model.**"
        )

    page.title("2. The search")
    if settings.task != PLANTED:
        page.say(_importance(search, settings))
    page.picture(
        "importance.png",
        functools.partial(learn_figures.draw_importance, search.history, goal=settings.sparsity),
    )
    reached = search.history[-1]["mask_sparsity"]
    if reached < settings.sparsity - _SHORT * (1.0 - settings.sparsity):
        page.say(
            f"**The drawn masks are {reached:.1%} sparse at the end: the search was too short to "
            f"get to {settings.sparsity:.1%}, and the mask made of them is another one.**"
        )
    page.say(
        f"Loss with the weights of the search: {search.soft.mean().item():.3f} with masks drawn "
        f"as in training (soft), {search.hard.mean().item():.3f} with the mask made of them "
        f"(hard), before any further training; its sparsity is {search.mask.sparsity:.2%}."
    )
    page.picture(
        "mask.png",
        functools.partial(
            learn_figures.draw_probabilities,
            search.probabilities,
            search.mask,
            "What the search found",
        ),
    )

    page.title("3. Losses at equal sparsity")
    page.table(rows, _LOSS_COLUMNS)
    page.say(
        "Swapped in: before training on. Kept: of what dense attention gains over guessing. "
        "Difference: to the learned mask, over the validation blocks, with its standard error; "
        "what another seed would change is not in it. A hand-made mask is the densest of its "
        'family that is not denser than asked; random keys differ by head. "attention": the '
        "positions with most attention on average, over all layers and heads."
    )
    for reason in facts.refused.values():
        page.say(f"Not compared: {reason}.")
    page.say(_verdict(rows))
    page.picture("losses.png", functools.partial(learn_figures.draw_bars, rows))
    curves = {"dense training": facts.histories["dense"], "search": facts.histories["search"]}
    curves |= {f"with {row['mask']}": facts.histories[f"tune-{row['mask']}"] for row in rows}
    curves = {name: curve for name, curve in curves.items() if curve}
    begins = {name: settings.steps for name in curves if name != "dense training"}
    page.picture(
        "training.png", functools.partial(learn_figures.draw_losses, curves, begins=begins)
    )

    page.title("4. Speed")
    heads, head_dim = facts.heads
    timed = [row for row in rows if row["mask"] != DENSE]
    page.table(timed, _SPEED_COLUMNS)
    clock = "time" if torch.cuda.is_available() else own_clock()[1]
    page.say(
        f"Forward passes of attention alone, all layers: batch {settings.batch_size}, {heads} "
        f"heads of {head_dim}, {settings.seq_len} tokens. Computed: share of the scores; 100 % "
        "where the plan runs dense. Predicted by the cost model for this machine and for "
        f"{speed.GPU} (H100, H200), over dense attention; measured over SDPA without a mask and "
        f"over SDPA with the same mask ({clock}, medians of interleaved runs, in ms). Below 1x "
        "sparse is slower."
    )
    doubts = uncertain_words(row["measured"] for row in timed)
    if doubts:
        page.say(doubts)
    page.say(_speed(facts))

    page.title("5. Files")
    page.say(
        f"{MASK}: the learned mask (`sparsebert show`, `explain`, `verify`). model/: the model of "
        "the row 'learned' with its tokenizer and mask; load it with `from_pretrained` and "
        "`sparsebert.load_masks(model, folder)`. history.csv, comparison.csv: all numbers. work/: "
        "what a second start needs; delete it if there is none to come."
    )
    page.note(f"## 6. In short\n\n{facts.conclusion}")
    return page.write(f"# A learned mask\n\n{facts.about}")


def _model(facts: Facts) -> str:
    settings = facts.settings
    if settings.model is not None:
        return f". The model is {settings.model}"
    if settings.task == PLANTED:
        return ""
    return (
        f". A fresh ModernBERT with {settings.layers} layers of {facts.heads[0]} heads, width "
        f"{settings.hidden_size}, and {settings.vocab_size} tokens"
    )


def _recipe(settings: Settings) -> str:
    if settings.penalty is not None:
        return f"penalty {settings.penalty}"
    scores = {"attention_gradient": "attention times gradient", "drop": "the effect of dropping"}
    return (
        f"begun from {scores[settings.recipe.scores]} of each position, masks of the likeliest "
        f"positions{', distilled from the dense model' * bool(settings.recipe.distillation)}"
    )


def _importance(search: Search, settings: Settings) -> str:
    """How the groups of positions ended up."""
    last = search.history[-1]
    found = {g: last[f"importance_{g}"] for g in GROUPS if f"importance_{g}" in last}
    order = sorted(found, key=lambda group: -found[group])
    listed = ", ".join(f"{group} {found[group]:.3f}" for group in order)
    place = order.index("diagonal") + 1
    claim = "as the paper says" if place == len(order) else "while the paper finds it the lowest"
    return (
        f"Mean probability of being kept at the end: {listed}. The diagonal is number {place} of "
        f"{len(order)}, {claim}."
    )


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether the learned mask is better than the others, as far as the numbers go."""
    by_name = {row["mask"]: row for row in rows}
    hand_made = [row for row in rows if row["kind"] == "hand-made"]
    words = []
    for row, what in ((by_name[DENSE], "no mask"), *((r, r["mask"]) for r in hand_made[:1])):
        difference, error = row["difference"], row["difference_error"]
        if abs(difference) < SURE * error:
            verdict = "no clear difference"
        else:
            verdict = "the learned mask is " + ("better" if difference > 0 else "worse")
        name = f"The best hand-made mask, {what}," if row in hand_made else "Training without mask"
        words.append(
            f"{name} ends at {row['loss']:.3f}, the learned one at "
            f"{by_name[LEARNED]['loss']:.3f}: {verdict} ({difference:+.3f} ± {error:.3f})."
        )
    worse = [r for r in hand_made if r["difference"] > SURE * r["difference_error"]]
    better = [r for r in hand_made if -r["difference"] > SURE * r["difference_error"]]
    if hand_made:
        words.append(
            f"Of {len(hand_made)} hand-made masks {len(worse)} are clearly worse than the learned "
            f"one, {len(better)} clearly better."
        )
    return " ".join(words)


def _speed(facts: Facts) -> str:
    learned = next(row for row in facts.rows if row["mask"] == LEARNED)
    if learned["executed"] < 1.0:
        how = f"its plan computes {learned['executed']:.0%} of the scores"
    else:
        how = "its plan runs dense here, because the cost model expects no gain from skipping"
    times = facts.encoder
    return (
        f"The learned mask: predicted {learned['predicted']:.2f}x, measured over SDPA without a "
        f"mask {learned['measured'].show('{:.2f}x')}; {how}. The whole encoder with it: "
        f"{times['sparse_ms'].brief('{:.1f}')} ms, dense {times['dense_ms'].brief('{:.1f}')}: "
        f"{times['measured'].show('{:.2f}x')}. Longer sequences gain more (`sparsebert explain`)."
    )


_LOSS_COLUMNS = [
    Column("mask", "mask"),
    Column("parameters", "parameters"),
    Column("sparsity", "sparsity", "{:.2%}".format),
    Column("loss_swapped_in", "swapped in", "{:.3f}".format),
    Column("loss", "loss", "{:.3f}".format),
    Column("kept", "kept", "{:.1%}".format),
    Column("difference", "difference", "{:+.3f}".format),
    Column("difference_error", "± error", "{:.3f}".format),
]
_SPEED_COLUMNS = [
    Column("mask", "mask"),
    Column("executed", "computed", "{:.1%}".format),
    Column("predicted", "predicted", "{:.2f}x".format),
    Column(f"predicted_{speed.GPU}", f"on {speed.GPU}", "{:.2f}x".format),
    Column("measured", "over SDPA", lambda spread: spread.show("{:.2f}x")),
    Column("over_masked", "over masked", lambda spread: spread.show("{:.2f}x")),
    Column("sparse_ms", "sparse ms", lambda spread: spread.brief("{:.2f}")),
    Column("masked_ms", "SDPA, masked", lambda spread: spread.brief("{:.2f}")),
    Column("dense_ms", "SDPA", lambda spread: spread.brief("{:.2f}")),
]
