"""What the experiment compares, and at what sizes; the columns of its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import sparsebert as sb
from benchmarks.harness.origin import COLUMNS as ORIGIN
from benchmarks.harness.rows import RowFile
from sparsebert.dam.importance import GROUPS
from sparsebert.learn.handmade import pattern_at_sparsity

HAND_MADE = ("sliding_window", "star", "log_sparse", "longformer", "bigbird", "strided", "fixed")
START, DENSE, IMPORTANCE = "start", "dense", "importance analysis"


@dataclasses.dataclass(frozen=True)
class Setup:
    """Sizes and lengths; tokens a step are batch x seq_len."""

    seq_len: int = 64
    vocab: int = 512
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    batch: int = 16
    dense_steps: int = 800
    search_steps: int = 300
    fixed_steps: int = 100
    lr: float = 3e-3
    mask_lr: float = 0.1
    init_probability: float = 0.8
    sparsity: float = 0.85


QUICK = Setup(hidden=32, batch=4, dense_steps=4, search_steps=4, fixed_steps=2, vocab=256)

DAMS: dict[str, dict[str, str]] = {
    "DAM_u": {"structure": "full", "penalty": "expected_l1"},
    "DAM_s": {"structure": "toeplitz", "penalty": "expected_l1"},
    "DAM_u, executed area": {"structure": "full", "penalty": "executed_area"},
    "DAM_s, executed area": {"structure": "toeplitz", "penalty": "executed_area"},
}

COLUMNS = (
    "seed", "contender", "step", "loss", "soft_loss", "hard_loss", "budget_loss",
    "sparsity", "executed",
    *(f"{kind}{group}" for kind in ("p_", "kept_", "") for group in GROUPS),
    *(field.name for field in dataclasses.fields(Setup) if field.name != "sparsity"),
    "seconds", *ORIGIN,
)  # fmt: skip


def row_file(path: Path) -> RowFile:
    """A file of the experiment's rows."""
    return RowFile(path, COLUMNS, made_by="python -m benchmarks.learned_masks")


def fixed_masks(setup: Setup, seed: int) -> dict[str, Callable[[], sb.AttentionMask]]:
    """Contenders whose mask is known beforehand."""
    n = setup.seq_len
    masks: dict[str, Callable[[], sb.AttentionMask]] = {
        DENSE: lambda: sb.patterns.dense(n),
        "dense without diagonal": lambda: sb.patterns.dense(n).without_diagonal(),
        "random": lambda: sb.patterns.random(
            n, 1.0 - setup.sparsity, seed=seed, num_heads=setup.heads
        ),
    }
    for name in HAND_MADE:
        masks[name] = lambda name=name: pattern_at_sparsity(
            name, n, setup.sparsity, num_heads=setup.heads, seed=seed
        )
    return masks


def slug(name: str) -> str:
    """A contender's name as that of a file."""
    return name.replace(", ", "-").replace(" ", "_")
