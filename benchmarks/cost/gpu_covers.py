"""The covers that the cost model's constants for GPUs are fitted to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from benchmarks.harness import named_masks
from sparsebert.compiler import bitmatrix
from sparsebert.compiler.cost.launches import SPLIT
from sparsebert.compiler.cover_search import Cover, best_cover
from sparsebert.compiler.orders import folded, in_order
from sparsebert.compiler.pieces import Piece, cut, peel, split_wide
from sparsebert.compiler.pricing import Area
from sparsebert.compiler.shared_tiles import tiles_of
from sparsebert.compiler.strides import find_strides
from sparsebert.masks import AttentionMask
from sparsebert.tiles.format import HEIGHTS, TileSet

MASKS = (
    "star", "longformer", "log_sparse", "strided", "fixed", "bigbird", "sliding_window",
    "dilated_window", "block_local", "neighborhood_2d", "random", "causal",
)  # fmt: skip
LENGTHS = (256, 512, 1024, 2048, 4096)


@dataclasses.dataclass(frozen=True)
class Covered:
    """One head's mask in tiles.

    Attributes:
        mask: its name.
        n: N.
        how: how it was covered.
        tiles: the tiles.
        pieces: what they were made of.
    """

    mask: str
    n: int
    how: str
    tiles: TileSet
    pieces: tuple[Piece, ...]


def covers(lengths: tuple[int, ...] = LENGTHS) -> Iterator[Covered]:
    """Each mask in tiles of each height, rows in order; with wide ones split; in two pieces, one
    of residue classes; and in the cover of least area. None depends on the cost model.
    """
    for n in lengths:
        for name in (*MASKS, named_masks.LEARNED_LOOKING):
            mask = named_masks.build(name, n, 1)
            for how, pieces in _pieces(mask):
                tiles = tiles_of({0: Cover(how, pieces, 0.0)}, 1, n, n)
                if tiles.num_tiles:
                    yield Covered(name, n, how, tiles, pieces)


def _pieces(mask: AttentionMask) -> Iterator[tuple[str, tuple[Piece, ...]]]:
    packed, n = mask.bits[0, 0], mask.q_len
    words, price, tallest = bitmatrix.to_words(packed), Area().tile, max(HEIGHTS)
    rows = np.flatnonzero(words.any(axis=1))
    order = in_order(rows, tallest)
    strides = find_strides(packed, n, 1)
    for height in HEIGHTS:
        piece = cut(words, order, price, (height,))
        yield f"{height} rows", (piece,)
        if max(int(tiles.width.max()) for tiles in piece.tiles) > SPLIT:
            yield f"{height} rows, split", tuple(split_wide((piece,), SPLIT, n))
        for stride in strides:
            apart = folded(rows, stride, 1, 0, tallest)
            part = peel(words, apart, height, 0.5)
            rest = words ^ part
            if part.any() and rest.any():
                left = in_order(np.flatnonzero(rest.any(axis=1)), tallest)
                both = cut(part, apart, price, (height,)), cut(rest, left, price, (height,))
                yield f"{height} rows, two pieces", both
    yield "least area", best_cover(packed, n, Area()).pieces
