"""Which grid a vision model's masks are for, and which images make another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
from torch import nn

from sparsebert.integrations.huggingface.images import (
    GridCheck,
    grid_of,
    unwatch_images,
    watch_images,
    why_only_whole,
)
from sparsebert.masks.positions import LINE, MIXED, Grid


class Model(nn.Module):
    """A vision model as far as its configuration and its input go."""

    main_input_name = "pixel_values"

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**{"image_size": 224, "patch_size": 16, **config})

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values


def grid(tokens: int, positions: Any = LINE, **config: Any) -> Grid | None:
    return grid_of(Model(**config), tokens, positions)  # type: ignore[arg-type]


@pytest.mark.parametrize("special", [0, 1, 2])
def test_a_line_as_long_as_the_models_grid_is_that_grid(special: int) -> None:
    assert grid(196 + special) == Grid(14, 14, special)
    sizes = {"image_size": (128, 256), "patch_size": [16, 32]}
    assert grid(64 + special, **sizes) == Grid(8, 8, special)
    assert grid(72 + special, image_size=(96, 192)) == Grid(6, 12, special)


def test_registers_stand_before_the_patches() -> None:
    assert grid(196 + 5, num_register_tokens=4) == Grid(14, 14, 5)
    assert grid(196 + 1, num_register_tokens=4) is None  # such a model has them always
    assert grid(196 + 5) is None and grid(196 + 5, num_register_tokens=None) is None


def test_other_lengths_are_lines() -> None:
    for tokens in (195, 199, 100, 1):
        assert grid(tokens) is None


def test_a_grid_is_what_it_is_and_a_mixture_is_none() -> None:
    assert grid(50, Grid(7, 7, 1)) == Grid(7, 7, 1)
    assert grid(196, MIXED) is None


def test_models_without_images_have_no_grid() -> None:
    text = Model()
    text.main_input_name = "input_ids"
    assert grid_of(text, 196, LINE) is None  # type: ignore[arg-type]
    for missing in ("image_size", "patch_size"):
        assert grid(196, **{missing: None}) is None
        assert grid(196, **{missing: (224, 224, 3)}) is None


def test_why_masks_serve_no_shorter_input() -> None:
    def why(tokens: int, positions: Any = LINE) -> str | None:
        return why_only_whole(Model(), tokens, positions)  # type: ignore[arg-type]

    assert why(100) is None
    assert "a grid of 14 x 14 patches after 1 special token, as Model makes" in str(why(197))
    assert why(50, Grid(7, 7, 1)) and why(50, MIXED)


def test_images_that_make_another_grid_are_refused() -> None:
    """Of as many patches in another shape; other numbers the attention itself refuses."""
    model = Model()
    watch_images(model, 197, LINE)  # type: ignore[arg-type]
    for shape in ((224, 224), (224 + 15, 224 + 15), (112, 112), (16, 16)):
        model(torch.zeros(1, 3, *shape))
        model(pixel_values=torch.zeros(1, 3, *shape))
    wide = torch.zeros(1, 3, 112, 448)
    for call in (lambda: model(wide), lambda: model(pixel_values=wide)):
        with pytest.raises(ValueError, match=r"makes 7 x 28 patches .* a grid of 14 x 14 patches"):
            call()
    model(torch.zeros(1, 3, 4, 112, 448))  # no image
    watch_images(model, 7 * 28, Grid(7, 28))  # type: ignore[arg-type]
    assert len(model._forward_pre_hooks) == 1  # in place of the first
    model(wide)
    with pytest.raises(ValueError, match="makes 14 x 14 patches"):
        model(torch.zeros(1, 3, 224, 224))
    unwatch_images(model)
    assert not model._forward_pre_hooks
    watch_images(model, 100, LINE)  # type: ignore[arg-type]
    assert not any(isinstance(x, GridCheck) for x in model._forward_pre_hooks.values())
