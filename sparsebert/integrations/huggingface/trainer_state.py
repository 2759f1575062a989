"""What callbacks keep in a TrainerState, which is saved in every checkpoint."""

from __future__ import annotations

from typing import Any

from transformers import TrainerState


def kept_in_checkpoints(state: TrainerState) -> dict[str, Any]:
    """What is kept, by name, to read and to write (a TrainerState makes a dict of its list)."""
    kept: Any = state.stateful_callbacks
    assert isinstance(kept, dict)
    return kept
