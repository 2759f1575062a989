"""The covers that the constants of the CPU kernels are fitted to, and what each counts up to.

Covers made by hand tell the terms apart: tiles of many rows and of few, wide and narrow; nothing
but single entries, whose rows share columns or do not; rows in two tiles. Compiled masks are there
so that what calls are usually made of weighs most.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from benchmarks.harness.named_masks import learned_looking, permuted_blocks
from sparsebert import patterns
from sparsebert.compiler.cost.model import NEAR_CALL, NEAR_HEAD
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan, compile_for_backend
from sparsebert.tiles.build import TileGroup, build_tile_set
from sparsebert.tiles.format import TileSet
from sparsebert.tiles.outlines import outlines_of_head, singles_of_head

BACKEND, TARGET, HEIGHT = "native", "cpu", 16
HEADS = 12

Bits = np.ndarray


@dataclasses.dataclass(frozen=True)
class Covered:
    """A plan, and the cover of all its heads that the CPU kernels run.

    Attributes:
        name: of the mask.
        plan: its plan.
        tiles: what `plan` runs with backend "native".
    """

    name: str
    plan: AttentionPlan
    tiles: TileSet

    def counts(self, head_dim: int) -> dict[str, float]:
        """What a call's tiles and single entries count up to, over all that do not run dense."""
        tiles = self.tiles
        total = {"call": 1.0}
        for head in np.flatnonzero(~self.plan.dense_heads).tolist():
            cover, singles = outlines_of_head(tiles, head), singles_of_head(tiles, head)
            in_tiles = np.zeros(tiles.num_rows, dtype=np.int64)
            for part in cover:
                in_tiles += np.bincount(part.rows[part.rows >= 0], minlength=tiles.num_rows)
            columns = sum(int(part.width.sum()) for part in cover)
            lengths, row_bytes = tiles.num_rows + tiles.num_cols, 8 * head_dim
            far_row = HEADS * lengths * row_bytes > NEAR_CALL
            far_column = tiles.num_cols * row_bytes > NEAR_HEAD
            found = {
                "tile": sum(len(part.rows) for part in cover),
                "row": int(np.maximum(in_tiles, 1).sum()),
                "column": columns,
                "entry": sum(int((part.real_rows * part.width).sum()) for part in cover),
                "merge": int(np.maximum(in_tiles - 1, 0).sum()),
                "single": singles.entries,
                "single_column": singles.columns,
                "far_row": lengths if far_row else 0,
                "far_column": columns + singles.columns if far_column else 0,
            }
            for name, count in found.items():
                total[name] = total.get(name, 0.0) + count
        return total


def covers() -> Iterator[Covered]:
    """All of them."""
    yield from _by_hand()
    yield from _compiled()


def _by_hand() -> Iterator[Covered]:
    for length, rows, columns in (
        (32, 16, 32), (64, 16, 16), (64, 16, 64), (128, 16, 32), (128, 16, 128), (256, 16, 64),
        (256, 16, 256), (256, 4, 64), (256, 8, 64), (512, 16, 16), (512, 16, 512), (512, 1, 256),
        (512, 8, 128), (1024, 16, 64), (1024, 16, 256), (1024, 4, 64), (1024, 2, 16),
        (1024, 16, 1024), (2048, 16, 32),
    ):  # fmt: skip
        bits = _blocks(length, rows, columns)
        yield _covered(f"tiles of {rows} x {columns}", [(_in_order(length, rows), bits)])
    for length, density in (
        (32, 0.1), (64, 0.05), (128, 0.02), (128, 0.1), (256, 0.01), (256, 0.05), (512, 0.005),
        (512, 0.03), (1024, 0.003), (1024, 0.02), (2048, 0.001), (2048, 0.01),
    ):  # fmt: skip
        bits = np.random.default_rng(1).random((length, length)) < density
        yield _covered(f"random {density:g}, single entries", [], bits)
    for length, window in ((64, 3), (256, 2), (256, 8), (1024, 4), (1024, 16), (2048, 2)):
        bits = patterns.sliding_window(length, window).dense()[0, 0].numpy()
        yield _covered(f"window {window}, single entries", [], bits)
    for length, columns in ((128, 16), (512, 16), (1024, 32)):
        near, far = _blocks(length, HEIGHT, columns), _blocks(length, HEIGHT, columns, seed=5)
        stride = length // HEIGHT
        slots = np.arange(length, dtype=np.int32).reshape(HEIGHT, stride).T
        folded = np.empty_like(far)
        folded[slots.reshape(-1)] = far
        folded &= ~near
        pieces = [(_in_order(length, HEIGHT), near), (np.ascontiguousarray(slots), folded)]
        yield _covered(f"rows in two tiles of {columns}", pieces)


def _compiled() -> Iterator[Covered]:
    for length in (48, 128, 256, 512, 1024, 2048):
        masks = {
            "star": patterns.star(length),
            "longformer": patterns.longformer(length),
            "strided": patterns.strided(length, math.isqrt(length)),
            "log_sparse": patterns.log_sparse(length),
            "bigbird": patterns.bigbird(length, max(1, length // 256), 2, max(2, length // 256)),
            "learned-looking": learned_looking(length),
        }
        if length <= 1024:
            masks |= {f"random {share:g}": patterns.random(length, share) for share in (0.1, 0.3)}
        if length <= 512:
            masks |= {
                "random 0.6": patterns.random(length, 0.6),
                "permuted blocks": permuted_blocks(length, 16),
            }
        for name, mask in masks.items():
            yield compiled(name, mask)
    for length in (64, 256):
        heads = [learned_looking(length, seed) for seed in range(HEADS)]
        yield compiled(f"learned-looking, {HEADS} heads", AttentionMask.stack_heads(heads))


def compiled(name: str, mask: AttentionMask, dense_heads: np.ndarray | None = None) -> Covered:
    """The plan of a mask, with tiles for all heads but those in `dense_heads`, bool [U]."""
    plan = compile_for_backend(mask, BACKEND, target=TARGET)
    if dense_heads is None:
        dense_heads = np.zeros(len(plan.dense_heads), dtype=bool)
    tiles = plan.schedule.queries(~dense_heads, singles=True)
    schedule = dataclasses.replace(plan.schedule, tiles=tiles, dense_heads=dense_heads)
    return Covered(name, AttentionPlan(schedule), tiles)


def _covered(
    name: str, pieces: list[tuple[np.ndarray, Bits]], singles: Bits | None = None
) -> Covered:
    """A cover made by hand: row slots and the bits of their tiles, and single entries."""
    parts = [bits for _, bits in pieces] + ([] if singles is None else [singles])
    mask = AttentionMask.from_dense(np.logical_or.reduce(parts))
    groups = [TileGroup(0, _packed(bits), slots) for slots, bits in pieces]
    alone = {} if singles is None else {0: _packed(singles)}
    tiles = build_tile_set(groups, 1, mask.q_len, mask.kv_len, alone)
    plan = compile_for_backend(mask, BACKEND, target=TARGET, objective="area")
    plan = AttentionPlan(dataclasses.replace(plan.schedule, tiles=tiles))
    return Covered(name, plan, tiles)


def _blocks(length: int, rows: int, columns: int, seed: int = 0) -> Bits:
    """Every `rows` rows share `columns` random columns and attend to most of them."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((length, length), dtype=bool)
    for first in range(0, length, rows):
        chosen = rng.choice(length, columns, replace=False)
        mask[first : first + rows, chosen] = rng.random((rows, columns)) < 0.7
        mask[first, chosen] = True
    return mask


def _in_order(length: int, rows: int) -> np.ndarray:
    """Slots of tiles with `rows` rows each, in order."""
    slots = np.full((length // rows, HEIGHT), -1, dtype=np.int32)
    slots[:, :rows] = np.arange(length, dtype=np.int32).reshape(-1, rows)
    return slots


def _packed(bits: Bits) -> np.ndarray:
    return np.packbits(bits, axis=1, bitorder="little")
