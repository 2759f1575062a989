"""What the experiments compare: tasks and their sizes, contenders, and the columns of the rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.harness.origin import COLUMNS as ORIGIN
from benchmarks.harness.rows import RowFile
from sparsebert.dam.importance import GROUPS

SPARSITIES = (0.9, 0.8, 0.95, 0.7)
"""Asked of the masks, in the order in which they are run."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """Sizes and lengths of a task; `steps` are those of every contender.

    Attributes:
        task: "r8", "mlm" or "embeddings-N".
        seq_len, batch, steps, lr: of the training with a fixed mask.
        search_steps: of a search; in one budget, this many of `steps`.
        score_batches: of data from which the positions' scores are measured.
        dense_steps, dense_lr: of the dense training before all others, where there is one.
        documents: for validation at most, of the embeddings as many of each source; 0: all.
    """

    task: str
    seq_len: int = 128
    batch: int = 16
    steps: int = 100
    lr: float = 1e-4
    search_steps: int = 60
    score_batches: int = 16
    dense_steps: int = 0
    dense_lr: float = 0.0
    documents: int = 0


SETUPS = {
    "r8": Setup("r8", steps=120, lr=2e-4),
    "mlm": Setup("mlm", steps=200, lr=1e-3, search_steps=150, dense_steps=900, dense_lr=3e-3),
    **{
        f"embeddings-{n}": Setup(
            f"embeddings-{n}",
            seq_len=n,
            batch=2048 // n,
            steps=60,
            score_batches=24,
            documents=240,
        )
        for n in (128, 256, 512)
    },
}


TARGET = "sm90"
"""Whose tiles are priced: a GPU has nothing but tiles; the CPU's kernels take single positions."""

SPECIAL = (0, -1)
"""Positions of special tokens: the first, and the last of a sequence of full length."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a DAM is searched for.

    Attributes:
        structure, own_tokens, symmetric: see `DifferentiableAttentionMask`.
        per_layer: a mask for each layer, or one for all; always one for each head.
        warm: kind of the scores that alpha begins with (`position_scores`); "": undecided, as in
            the paper.
        pooled: of these, see `pooled_scores`.
        top: masks of the likeliest positions; else drawn (Gumbel), with a penalty.
        penalty: see `MaskSearch`; "plan" is by the plans of `TARGET`.
        executed: the mask is finished within this share of what `TARGET` computes for a dense
            one, in whole columns of tiles; 0: by its sparsity.
        mask_lr: of alpha.
        frozen: alpha learns alone, from the distance to the dense model's hidden states, without
            the task's labels; else with the weights, from the task's loss.
    """

    structure: str = "full"
    own_tokens: tuple[int, ...] = ()
    symmetric: bool = False
    per_layer: bool = False
    warm: str = "drop"
    pooled: bool = False
    top: bool = True
    penalty: str = "expected_l1"
    executed: float = 0.0
    mask_lr: float = 0.05
    frozen: bool = False


PAPER = Recipe(symmetric=True, warm="", top=False, mask_lr=0.1)
"""One mask for all layers, drawn by chance from the first step on: DAM as published."""

DAMS = {
    "DAM": Recipe(per_layer=True, pooled=True, frozen=True),
    "DAM, one mask": Recipe(pooled=True, frozen=True),
    "DAM, distances": Recipe(structure="toeplitz", own_tokens=SPECIAL, mask_lr=0.1),
    "DAM, distances per layer": Recipe(
        structure="toeplitz",
        own_tokens=SPECIAL,
        per_layer=True,
        warm="attention_gradient",
        mask_lr=0.01,
    ),
    "DAM_u": PAPER,
    "DAM_s": dataclasses.replace(PAPER, structure="toeplitz"),
    "DAM_u, executed area": dataclasses.replace(PAPER, penalty="executed_area"),
    "DAM_u, plan": dataclasses.replace(PAPER, penalty="plan"),
    "DAM_u, within cost": dataclasses.replace(PAPER, penalty="plan", executed=0.2),
    "DAM_s, within cost": dataclasses.replace(
        PAPER, structure="toeplitz", penalty="plan", executed=0.2
    ),
}
"""Learned masks. The first four are this package's: with a mask for each layer, with one for all
layers, and both by distances and special tokens; DAM_u and DAM_s are the paper's, without and with
a penalty on what tiles compute, and finished within a cost instead of at a sparsity."""

KEPT = ("DAM", "DAM, distances", "DAM, distances per layer")
"""Whose masks of seed 0 are committed."""

SCORED: dict[str, dict[str, Any]] = {
    "attention, top, one mask": {"kind": "attention", "share": "all"},
    "attention, top, per head": {"kind": "attention", "share": "layers"},
    "attention, top, per layer": {"kind": "attention", "share": "none"},
    "attention x gradient, top, one mask": {"kind": "attention_gradient", "share": "all"},
    "attention x gradient, top, per layer": {"kind": "attention_gradient", "share": "none"},
    "drop, top, one mask": {"kind": "drop", "share": "all"},
    "drop, top, per layer": {"kind": "drop", "share": "none"},
    "start of DAM": {"start_of": "DAM"},
    "start of DAM, distances": {"start_of": "DAM, distances"},
    "start of DAM, distances per layer": {"start_of": "DAM, distances per layer"},
}
"""Masks that keep the positions with the highest scores. share: one mask for all layers and heads
("all"), for all layers ("layers"), or for none; then of all scores together. start_of: the mask
that the search of that learned mask begins with."""

HAND_MADE = {
    name: name.replace(" ", "_")
    for name in (
        "longformer", "star", "bigbird", "sliding window", "log sparse", "strided", "fixed",
        "random",
    )
}  # fmt: skip
"""Patterns of the asked sparsity, see `sparsebert.learn.handmade`."""

DENSE = "dense"
WITHOUT = ("without diagonal", "without random", "without neighbour", "without others")
"""Dense but for one position a row: its own, one by chance (for each head), or a neighbour; or but
for all others than its own, which is what the task gives without any attention."""

IMPORTANCE = "importance"
"""No contender: the paper's analysis, the groups' soft mask over the training."""

LAMBDAS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the paper's penalty in its own units, a sum over all scores."""

FIRST = (
    DENSE, "DAM", "DAM, distances", "DAM, distances per layer", "longformer", "star",
    "attention, top, one mask", "attention, top, per layer", "without diagonal", "DAM_u", "DAM_s",
)  # fmt: skip


def contenders(task: str) -> list[str]:
    """All contenders of a task, the most telling first."""
    every = [DENSE, *WITHOUT, *DAMS, *SCORED, *HAND_MADE]
    if task == "mlm":
        every += [IMPORTANCE, *(f"lambda {weight:g}" for weight in LAMBDAS)]
    return [*FIRST, *(name for name in every if name not in FIRST)]


def has_sparsity(name: str) -> bool:
    """Whether a contender is run at each of the asked sparsities."""
    return name in DAMS or name in SCORED or name in HAND_MADE


COLUMNS = (
    "task", "seed", "contender", "asked", "step",
    "loss", "accuracy", "recall_1", "recall_10", "swapped_in", "budget_loss", "budget_accuracy",
    "searched", "sparsity", "executed", "executed_sm90", "predicted", "predicted_sm90",
    *(f"kept_{group}" for group in GROUPS), *GROUPS,
    *(field.name for field in dataclasses.fields(Setup) if field.name != "task"),
    "precision", "seconds", *ORIGIN,
)  # fmt: skip


def row_file(path: Path) -> RowFile:
    """A file of the experiments' rows."""
    return RowFile(path, COLUMNS, made_by="python -m benchmarks.learned_masks")


def slug(name: str, asked: float | None = None) -> str:
    """A contender, and the sparsity asked of it, as the name of a file."""
    words = name.replace(", ", "-").replace(" ", "_")
    return words if asked is None else f"{words}-{asked:g}"
