"""The options of ``sparsebert learn``; imported before torch is, for their help."""

from __future__ import annotations

import dataclasses
from typing import Any

HAND_MADE = (
    "sliding_window", "longformer", "bigbird", "star", "log_sparse", "strided", "fixed", "random",
)  # fmt: skip
ATTENTION = "attention"
"""The mask of the positions that get most attention on average."""
AGAINST = ("sliding_window", "longformer", "bigbird", "star", ATTENTION)
"""The masks that do best on text."""
FRESH = ("layers", "hidden_size", "heads", "vocab_size")
"""Settings of the fresh model: what a model folder brings along."""
MODEL_RATE = 1e-4
"""The learning rate for a model that has been trained before."""
TEXT, PLANTED = "text", "planted"
QUICK: dict[str, Any] = {
    "task": PLANTED,
    "layers": 1,
    "hidden_size": 128,
    "heads": 2,
    "seq_len": 256,
    "structure": "full",
    "sparsity": 0.9,
    "steps": 0,
    "search_steps": 120,
    "tune_steps": 100,
    "learning_rate": 1e-3,
    "against": ("longformer", "star", "random", ATTENTION),
}
"""Settings of the planted task, whose model needs no training and has its sizes."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a search without a penalty goes by.

    Attributes:
        scores: kind of the scores of the positions that it starts from (`position_scores`).
        mask_learning_rate, distillation: see `DAMTrainer`.
    """

    scores: str
    mask_learning_rate: float
    distillation: float


# A parameter that many positions share is measured well: its score is good, and only small steps
# make it better. A parameter of a single position is hardly known at first, and the hidden states
# of the dense model say more about it than the task's loss.
_BY_DISTANCE = Recipe("attention_gradient", 0.01, 0.0)
_BY_POSITION = Recipe("drop", 0.05, 1.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the result, besides the text itself; see ``sparsebert learn --help``."""

    task: str = TEXT
    text: str | None = None
    dataset: str | None = None
    csv: str | None = None
    column: str | None = None
    model: str | None = None
    layers: int = 2
    hidden_size: int = 128
    heads: int = 4
    vocab_size: int = 1024
    seq_len: int = 256
    structure: str = "toeplitz"
    block_size: int = 16
    per_layer: bool = True
    penalty: str | None = None
    sparsity: float = 0.95
    steps: int = 1000
    search_steps: int = 100
    tune_steps: int = 100
    batch_size: int = 8
    learning_rate: float = 3e-3
    against: tuple[str, ...] = AGAINST
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        """Of the search, where `penalty` is None."""
        return _BY_DISTANCE if self.structure == "toeplitz" else _BY_POSITION

    @property
    def work(self) -> float | None:
        """Floating-point operations of the largest single operation; None if not known yet.

        That is with a model folder, whose width nobody has read; those that people bring are not
        tiny.
        """
        if self.model:
            return None
        return 2.0 * self.batch_size * self.seq_len * self.hidden_size**2
