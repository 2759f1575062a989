"""Draw the pictures of docs/compiler.md: masks, and the tiles that cover them.

    python -m docs.draw_covers        # writes docs/images/cover_*.png

Colours are tiles, grey is computed in vain, white is skipped.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt

from benchmarks.harness.named_masks import permuted_blocks
from sparsebert import patterns
from sparsebert.compiler.tile_map import tile_map
from sparsebert.plan import compile_for_backend
from sparsebert.tiles.images import NOT_COMPUTED, WASTE, tile_colours

matplotlib.use("Agg")
import matplotlib.pyplot as plt

IMAGES = Path(__file__).resolve().parent / "images"
SIZE = 128
BLOCK = 32
"""Edge of the blocks of block-sparse attention, scaled down with the masks."""


EXAMPLES = {
    "longformer": patterns.longformer(SIZE, 3, 2),
    "strided": patterns.strided(SIZE, 11),
    "log_sparse": patterns.log_sparse(SIZE),
    "neighborhood": patterns.neighborhood_2d(8, 16, 5),
    "permuted_blocks": permuted_blocks(SIZE, 16),
}


def in_blocks(allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """A map like that of `tile_map` for blocks that are computed whole."""
    found = np.full(allowed.shape, NOT_COMPUTED, dtype=np.int32)
    starts = range(0, SIZE, BLOCK)
    for number, (i, j) in enumerate((i, j) for i in starts for j in starts):
        block = np.s_[i : i + BLOCK, j : j + BLOCK]
        if allowed[block].any():
            found[block] = np.where(allowed[block], number, WASTE)
    return found


def main() -> None:
    """Draw every example: its mask in blocks, and its cover."""
    IMAGES.mkdir(exist_ok=True)
    for name, mask in EXAMPLES.items():
        plan = compile_for_backend(mask, "torch", target="cpu", objective="area")
        allowed = mask.dense()[0, 0].numpy()
        blocks = in_blocks(allowed)
        executed = plan.explain().executed_fraction
        figure, axes = plt.subplots(1, 2, figsize=(8, 4.3), layout="constrained")
        for axis, tiles, title in (
            (axes[0], blocks, f"blocks of {BLOCK}: {(blocks != NOT_COMPUTED).mean():.3f}"),
            (
                axes[1],
                tile_map(plan.schedule),
                f"{plan.explain().per_head[0].cover}: {executed:.3f}",
            ),
        ):
            axis.imshow(tile_colours(tiles), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_title(title, fontsize=9)
        figure.suptitle(f"{name}, N = {SIZE}, density {mask.density:.3f}", fontsize=10)
        figure.savefig(IMAGES / f"cover_{name}.png", dpi=90)
        plt.close(figure)


if __name__ == "__main__":
    main()
