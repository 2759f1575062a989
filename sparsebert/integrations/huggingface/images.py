"""Masks over the patches of an image: which grid they are for, and whether an image makes it.

The attention sees a number of tokens. That tells images of 14 x 14 patches from those of 8 x 8,
but not from those of 7 x 28; so the model looks at the image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from sparsebert.masks.positions import LINE, Grid, Positions, why_not_crop


def grid_of(owner: PreTrainedModel, tokens: int, positions: Positions) -> Grid | None:
    """The grid that masks are for: their own, or the model's, if they are as long as that.

    Args:
        tokens, positions: of the masks.
    """
    if positions != LINE:
        return positions if isinstance(positions, Grid) else None
    config: Any = owner.config
    image, patch = (_pair(getattr(config, name, None)) for name in ("image_size", "patch_size"))
    if owner.main_input_name != "pixel_values" or image is None or patch is None:
        return None
    height, width = image[0] // patch[0], image[1] // patch[1]
    special = tokens - height * width
    # None; [CLS], and registers if there are any; [CLS] and a distillation token.
    usual = {0, 1 + (getattr(config, "num_register_tokens", None) or 0), 2}
    return Grid(height, width, special) if special in usual else None


def why_only_whole(owner: PreTrainedModel, tokens: int, positions: Positions) -> str | None:
    """Why masks serve no shorter input; None if they do."""
    if positions != LINE:
        return why_not_crop(positions)
    grid = grid_of(owner, tokens, positions)
    if grid is None:
        return None
    return (
        f"that is {grid}, as {type(owner).__name__} makes of its own images; the patches of "
        "another image are not the first of these: make masks for its size"
    )


class GridCheck:
    """A hook before each forward of a model whose masks are for a grid."""

    def __init__(self, grid: Grid, patch: tuple[int, int]) -> None:
        self.grid = grid
        self.patch = patch
        self.handle: RemovableHandle | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        image = kwargs.get("pixel_values", args[0] if args else None)
        if not isinstance(image, torch.Tensor) or image.dim() != 4:
            return
        height, width = image.shape[2] // self.patch[0], image.shape[3] // self.patch[1]
        same_number = height * width == self.grid.height * self.grid.width
        if same_number and height != self.grid.height:  # other numbers raise in the attention
            raise ValueError(
                f"sparsebert: {type(module).__name__} makes {height} x {width} patches of this "
                f"image, but the masks are for {self.grid}; make masks for its size"
            )


def watch_images(owner: PreTrainedModel, tokens: int, positions: Positions) -> None:
    """Let `owner` raise ValueError for images that make another grid than that of the masks.

    These masks alone: those before them are forgotten.
    """
    unwatch_images(owner)
    grid, patch = (
        grid_of(owner, tokens, positions),
        _pair(getattr(owner.config, "patch_size", None)),
    )
    if grid is None or patch is None:
        return
    check = GridCheck(grid, patch)
    module: nn.Module = owner
    check.handle = module.register_forward_pre_hook(check, with_kwargs=True)


def unwatch_images(model: nn.Module) -> None:
    """Undo `watch_images`."""
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, GridCheck) and hook.handle is not None:
                hook.handle.remove()


def _pair(size: Any) -> tuple[int, int] | None:
    """(height, width) of what configurations say as a number or as two; None for neither."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None
