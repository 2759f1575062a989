"""The sizes of a model, given or read from a HuggingFace model's config.json."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsebert.support import checks

_KEYS = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "encoder_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "encoder_attention_heads", "n_head", "n_heads", "num_heads"),
    "intermediate_size": (
        "intermediate_size", "encoder_ffn_dim", "n_inner", "hidden_dim", "d_ff"
    ),
    "head_dim": ("head_dim", "d_kv"),
    "kv_heads": ("num_key_value_heads",),
}  # fmt: skip
"""Names that model families give to the same thing in config.json."""

_GATED = ("modernbert", "llama", "eurobert", "nomic_bert", "mistral", "gemma", "qwen", "phi3")
"""Beginnings of model types whose feed-forward has three matrices."""


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """The sizes of a transformer's layers.

    Attributes:
        hidden_size, layers, heads, intermediate_size: as in config.json.
        head_dim: D; None means hidden_size / heads.
        kv_heads: heads of k and v; None means heads.
        gated: the feed-forward has three matrices (GeGLU, SwiGLU) and not two.
        name: for reports.

    Raises ValueError and TypeError for sizes that cannot be.
    """

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    head_dim: int | None = None
    kv_heads: int | None = None
    gated: bool = False
    name: str = "model"

    def __post_init__(self) -> None:
        for field in ("hidden_size", "layers", "heads", "intermediate_size"):
            checks.integer("ModelShape", field, getattr(self, field), 1)
        for field in ("head_dim", "kv_heads"):
            if getattr(self, field) is not None:
                checks.integer("ModelShape", field, getattr(self, field), 1)
        if self.head_dim is None and self.hidden_size % self.heads:
            raise ValueError(
                f"ModelShape: hidden_size={self.hidden_size} is not a multiple of "
                f"heads={self.heads}; give head_dim"
            )

    @classmethod
    def from_config(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> ModelShape:
        """Read a HuggingFace model's folder, its config.json, or what that holds.

        Raises FileNotFoundError, and ValueError if a size is not there under a known name.
        """
        config, where = _read_config(source)
        found: dict[str, Any] = {}
        for field, names in _KEYS.items():
            values = [config[name] for name in names if config.get(name) is not None]
            if values:
                found[field] = values[0]
        if "hidden_size" in found:  # GPT-2 leaves it out
            found.setdefault("intermediate_size", 4 * found["hidden_size"])
        missing = [n for n in ("hidden_size", "layers", "heads") if n not in found]
        if missing:
            raise ValueError(
                f"ModelShape.from_config: {where} has no {' and no '.join(missing)} under a known "
                "name; give the sizes, or the part of a nested config that describes the encoder"
            )
        kind = str(config.get("model_type", "model"))
        activation = str(config.get("feed_forward_proj") or config.get("hidden_act") or "")
        gated = kind.startswith(_GATED) or "gated" in activation or "glu" in activation
        return cls(**found, gated=gated, name=kind)

    @property
    def dim(self) -> int:
        """D, the size of a head."""
        return self.hidden_size // self.heads if self.head_dim is None else self.head_dim

    @property
    def linear_flops(self) -> float:
        """Floating-point operations of one layer's matrices for one token, forward."""
        inner = self.heads * self.dim
        kv_inner = (self.kv_heads or self.heads) * self.dim
        matrices = (3 if self.gated else 2) * self.intermediate_size + 2 * inner + 2 * kv_inner
        return 2.0 * self.hidden_size * matrices


def _read_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[Any, str]:
    if isinstance(source, Mapping):
        return source, "the config"
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"ModelShape.from_config: {path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"ModelShape.from_config: {path} holds no JSON object")
    return config, str(path)
