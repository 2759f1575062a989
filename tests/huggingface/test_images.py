"""Which grid a vision model's masks are for, and which images make another."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
import transformers
from torch import nn

import sparsebert as sb
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


# ------------------------------------------------------------------------ a model's images


def image_model() -> transformers.PreTrainedModel:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        image_size=36,
        patch_size=9,
    )
    return transformers.ViTModel(config, add_pooling_layer=False).eval()


NEAR = sb.patterns.neighborhood_2d(4, 4, 3, num_special=1)


@pytest.mark.parametrize("knows", [True, False])
def test_a_grid_is_not_used_for_an_image_of_another_size(knows: bool) -> None:
    """Also where only the model knows that the mask is over its grid."""
    model = image_model()
    sb.sparsify(model, NEAR if knows else NEAR.dense())
    model(torch.randn(1, 3, 36, 36))
    message = (
        r"10 tokens, but the masks are for 17, .* grid of 4 x 4 patches after 1 special token"
    )
    with pytest.raises(ValueError, match=message):
        model(torch.randn(1, 3, 27, 27), interpolate_pos_encoding=True)
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for arguments in ({"pixel_values": torch.randn(1, 3, 18, 72)}, {}):
            images = () if arguments else (torch.randn(1, 3, 72, 18),)
            with pytest.raises(ValueError, match=r"makes (2 x 8|8 x 2) patches .* grid of 4 x 4"):
                same(*images, **arguments, interpolate_pos_encoding=True)
        sb.sparsify(same, NEAR.crop_grid(3, 3))  # as it advises
        same(torch.randn(1, 3, 27, 27), interpolate_pos_encoding=True)
        sb.densify(same)
        same(torch.randn(1, 3, 18, 72), interpolate_pos_encoding=True)
        assert not same._forward_pre_hooks


def test_a_grid_without_room_for_special_tokens_says_how_to_make_it() -> None:
    model = image_model()
    sb.sparsify(model, sb.patterns.neighborhood_2d(4, 4, 3))
    with pytest.raises(ValueError, match=r"17 tokens, but the masks cover 16; .* num_special"):
        model(torch.randn(1, 3, 36, 36))


def test_a_model_watches_for_the_latest_grid() -> None:
    model = image_model()
    watch_images(model, 17, Grid(4, 4, 1))
    watch_images(model, 17, Grid(2, 8, 1))
    model(torch.randn(1, 3, 18, 72), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match=r"makes 4 x 4 patches .* grid of 2 x 8"):
        model(torch.randn(1, 3, 36, 36))


def test_a_mask_learned_on_a_grid_is_not_cropped_as_a_line() -> None:
    model = sb.attach_dam(image_model(), sb.DifferentiableAttentionMask(1, 4, 17))
    model(torch.randn(1, 3, 36, 36))
    with pytest.raises(ValueError, match=r"10 tokens, but the DAM is for 17, .* 4 x 4 patches"):
        model(torch.randn(1, 3, 27, 27), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match=r"makes 2 x 8 patches .* grid of 4 x 4"):
        model(torch.randn(1, 3, 18, 72), interpolate_pos_encoding=True)
    sb.detach_dam(model)
    assert not model._forward_pre_hooks
    sb.attach_dam(model, sb.DifferentiableAttentionMask(1, 4, 24))
    model(torch.randn(1, 3, 27, 27), interpolate_pos_encoding=True)


def test_a_line_longer_than_the_image_serves_any_image() -> None:
    model = sb.sparsify(image_model(), sb.patterns.star(24))
    for size in ((36, 36), (27, 27), (18, 72)):
        model(torch.randn(1, 3, *size), interpolate_pos_encoding=True)
