"""The options of ``sparsebert learn``; imported before torch is, for their help."""

from __future__ import annotations

import dataclasses
from typing import Any

HAND_MADE = ("longformer", "bigbird", "star", "log_sparse", "strided", "fixed", "random")
FRESH = ("layers", "hidden_size", "heads", "vocab_size")
"""Settings of the fresh BERT: what a model folder brings along."""
MODEL_RATE = 1e-4
"""The learning rate for a model that has been trained before."""
QUICK: dict[str, Any] = {
    "layers": 1,
    "hidden_size": 64,
    "heads": 2,
    "seq_len": 64,
    "steps": 300,
    "tune_steps": 60,
    "against": ("longformer", "random"),
}
"""Settings of a tiny model and few steps, to see it work."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the result, besides the text itself; see ``sparsebert learn --help``."""

    text: str | None = None
    dataset: str | None = None
    csv: str | None = None
    column: str | None = None
    model: str | None = None
    layers: int = 2
    hidden_size: int = 128
    heads: int = 4
    vocab_size: int = 1024
    seq_len: int = 128
    structure: str = "full"
    block_size: int = 16
    per_layer: bool = False
    penalty: str = "expected_l1"
    sparsity: float = 0.9
    steps: int = 1000
    tune_steps: int = 200
    batch_size: int = 8
    learning_rate: float = 2e-3
    against: tuple[str, ...] = HAND_MADE
    seed: int = 0

    @property
    def work(self) -> float | None:
        """Floating-point operations of the largest single operation; None if not known yet.

        That is with a model folder, whose width nobody has read; those that people bring are not
        tiny.
        """
        if self.model:
            return None
        return 2.0 * self.batch_size * self.seq_len * self.hidden_size**2
