"""Inputs that a transformers model takes, told from its configuration and its forward."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

BATCH, LENGTH = 2, 11
"""Of the inputs that we make. The length is a prime that no model has as a size of something."""

_FROM_OUTSIDE = (
    "input_ids",
    "pixel_values",
    "pixel_values_videos",
    "input_features",
    "input_values",
    "past_values",
)
_EMBEDDED = ("inputs_embeds", "hidden_states")


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """What a model was given: sequences, and as far as it can be told, tokens in each.

    Attributes:
        sequences: B; None if several are packed into one, or it cannot be told.
        tokens: N; None where the model itself makes the tokens, of an image or of sound.
        slices: a batch may be taken apart into this many times as many sequences: the frames of
            a video, the channels of a time series.
        pixels: the tokens are made of images or a video, of which each has a place of its own.
        cached: there may be keys of earlier calls.
    """

    sequences: int | None = None
    tokens: int | None = None
    slices: int = 1
    pixels: bool = False
    cached: bool = False

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> ModelInputs:
        """What the arguments of a forward say."""
        for name in (*_FROM_OUTSIDE, *_EMBEDDED):
            value = arguments.get(name)
            if not isinstance(value, torch.Tensor):
                continue
            if name == "input_ids" and value.dim() == 2:
                return cls(value.shape[0], value.shape[1])
            if name in _EMBEDDED and value.dim() == 3:
                return cls(value.shape[0], value.shape[1])
            if name == "past_values":
                return cls(value.shape[0], None, value.shape[2] if value.dim() == 3 else 1)
            if name.startswith("pixel_values") and value.dim() in (4, 5):
                slices = value.shape[1] if value.dim() == 5 else 1
                return cls(value.shape[0], None, slices, pixels=True)
            if value.dim() == 3 or (name == "input_values" and value.dim() == 2):
                return cls(value.shape[0])
            return cls()
        return cls()


def takes_outside_inputs(model: PreTrainedModel) -> bool:
    """Whether the model embeds tokens, pixels or sound itself."""
    return any(name in inspect.signature(model.forward).parameters for name in _FROM_OUTSIDE)


def example_inputs(model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    """Arguments that `model.forward` may take, the likelier first.

    They are made under the caller's modes: without memory, under a FakeTensorMode.
    """
    config, dtype = model.config, model.dtype
    parameters = inspect.signature(model.forward).parameters
    for name in (*_FROM_OUTSIDE, *_EMBEDDED):
        if name not in parameters:
            continue
        for shape in _shapes(name, config):
            if name == "input_ids":
                yield {name: torch.zeros(shape, dtype=torch.long)}
                if "bbox" in parameters:
                    boxes = torch.zeros((*shape, 4), dtype=torch.long)
                    yield {name: torch.zeros(shape, dtype=torch.long), "bbox": boxes}
            else:
                yield {name: torch.zeros(shape, dtype=dtype)}


def _shapes(name: str, config: PreTrainedConfig) -> list[tuple[int, ...]]:
    if name == "input_ids":
        return [(BATCH, _length(config))]
    if name in _EMBEDDED:
        width = _first(config, "hidden_size", "d_model", "n_embd", "embed_dim", "dim") or 32
        return [(BATCH, _length(config), width)]
    if name.startswith("pixel_values"):
        channels = _first(config, "num_channels", "in_channels", "in_chans") or 3
        size = (channels, *(own_image_size(config) or (224, 224)))
        frames = _first(config, "num_frames", "frames_per_clip") or 4
        video = (BATCH, frames, *size)
        return [video] if name.endswith("videos") else [(BATCH, *size), video]
    if name == "input_features":
        bins = _first(
            config, "num_mel_bins", "feature_projection_input_dim", "input_dim", "n_mels"
        )
        positions = _first(config, "max_source_positions", "n_ctx") or 50
        return [(BATCH, bins or 80, 2 * positions), (BATCH, 2 * positions, bins or 80)]
    if name == "input_values":
        bins, frames = _first(config, "num_mel_bins") or 80, _first(config, "max_length") or 100
        return [(BATCH, 16000), (BATCH, frames, bins), (BATCH, 1, 16000)]
    channels = _first(config, "num_input_channels", "input_size") or 1
    return [(BATCH, _first(config, "context_length") or 32, channels)]


def _length(config: PreTrainedConfig) -> int:
    longest = _first(config, "max_position_embeddings", "n_positions") or LENGTH
    return LENGTH if longest >= 2 * LENGTH else max(1, longest // 2)


def own_image_size(config: PreTrainedConfig) -> tuple[int, int] | None:
    """Height and width of the images that a model is for, if its configuration says so."""
    for part in _nested(config):
        size: Any = getattr(part, "image_size", None)
        if isinstance(size, dict):
            size = (size.get("height"), size.get("width"))
        if isinstance(size, int):
            size = (size, size)
        if isinstance(size, (list, tuple)) and len(size) == 2 and all(size):
            return int(size[0]), int(size[1])
    return None


def _first(config: PreTrainedConfig, *names: str) -> int | None:
    """The first of these that the configuration, or one inside it, has as a positive integer."""
    for part in _nested(config):
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _nested(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _nested(value)
