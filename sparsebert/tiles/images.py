"""The tiles of a head as a small image, without a plotting library."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparsebert.masks.bits import CHUNK
from sparsebert.masks.images import Image, mean_cells, step_for
from sparsebert.support.colours import COLOURS

NOT_COMPUTED, WASTE, SINGLE = -1, -2, -3
"""What a map of tiles holds besides their numbers; see `sparsebert.compiler.tile_map`."""

LEGEND = "colours: tiles; black: single entries; grey: computed in vain; white: skipped"


def tile_image(tiles: npt.NDArray[np.int32], most: int) -> Image:
    """The tiles of one head, from `sparsebert.compiler.tile_map`."""
    step = step_for(len(tiles), tiles.shape[1], most)
    rows = step * max(1, CHUNK // (step * tiles.shape[1]))
    parts = [
        mean_cells(tile_colours(tiles[row : row + rows]), step)
        for row in range(0, len(tiles), rows)
    ]
    return np.asarray(255 * np.concatenate(parts)).round().astype(np.uint8)


def tile_colours(tiles: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """RGB [N, M, 3] of a `tile_map`: neighbouring tiles differ, single entries are black, waste is
    grey, the rest white.
    """
    palette = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLOURS[:6]])
    image = palette[np.maximum(tiles, 0) % len(palette)]
    image[tiles == SINGLE] = 0.0
    image[tiles == WASTE] = 0.85
    image[tiles == NOT_COMPUTED] = 1.0
    return np.asarray(image)
