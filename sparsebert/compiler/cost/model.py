"""The cost model: what a cover, and dense attention, should take, forward and backward.

Times are in microseconds for one batch and one head of a call that keeps the whole machine busy.
They depend on the head size, on the CPU's threads, and on how many batches and heads a call has,
since some costs come once a call and some once for all heads that share their tiles. `cost_model`
resolves the constants (`sparsebert.compiler.cost.constants`) for one kind of call on one backend.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from sparsebert.compiler.cost import constants
from sparsebert.compiler.cost.constants import Term, Terms, TileBackend
from sparsebert.compiler.cost.factors import AS_FITTED, Factors
from sparsebert.compiler.cost.instruction_sets import isa_for
from sparsebert.compiler.cost.launches import count_launches, launches_us
from sparsebert.tiles.batching import batch_tiles
from sparsebert.tiles.outlines import NO_SINGLES, Singles, TileOutlines

DEFAULT_HEAD_DIM = 64
DEFAULT_HEADS = 12
"""Heads that a mask of one head is taken to serve."""

NEAR_CALL = 8e6
"""Bytes of q, k, v and o in fp32, of all batches and heads, that stay in a processor's caches."""

NEAR_HEAD = 7e5
"""Bytes of k and v in fp32, of one head, that stay in the cache of one core."""

PER_CALL = ("call", "shape", "level", "mixed", "dense_call", "launch", "wait", "wait_column")
"""Terms whose `once` is shared by all batches and heads, not just by those with the same tiles."""


@dataclasses.dataclass(frozen=True)
class PassCost:
    """Constants of one pass, forward or backward, of one kind of call; all in microseconds.

    Attributes:
        call: a call with tiles.
        shape: each different tile shape (a batch of its own, where tiles run in batches).
        level: each tile beyond the first over the row that is in most tiles: a round of merging.
        tile: each tile.
        row: each row of a tile: loading q, storing the result. Where entries may stand alone, also
            each row that is in no tile.
        column: each gathered key and value row.
        entry: each score of a tile, by the tile's height.
        merge: each row of a tile beyond the first tile that covers the row. Where tiles run in
            launches, each result of a row that goes by way of scratch.
        mixed: each row of the mask, if some heads of the call run dense and some in tiles.
        floor_row: least time that a row of q, k, v and o takes to move, on any route.
        dense_call, dense_entry: dense attention: each call, each score.
        mask_entry: what a mask adds to each score of dense attention.
        single: each entry that stands alone.
        single_column: each column that single entries of rows that run together share, see
            `Singles`.
        launch: each launch.
        wait, wait_column: how long the machine waits at the end of a launch: at least, and for
            each column of its longest tile beyond the mean.
        chain: each row of a tile that goes on from what another launch wrote out.
        far_row: each row of q and o, and of k and v, where a call has more than `NEAR_CALL`.
        far_column: each column of a tile, and of single entries as above, where a head has more
            than `NEAR_HEAD`.
    """

    call: float
    shape: float
    level: float
    tile: float
    row: float
    column: float
    entry: dict[int, float]
    merge: float
    mixed: float
    floor_row: float
    dense_call: float
    dense_entry: float
    mask_entry: float
    single: float = 0.0
    single_column: float = 0.0
    far_row: float = 0.0
    far_column: float = 0.0
    launch: float = 0.0
    wait: float = 0.0
    wait_column: float = 0.0
    chain: float = 0.0

    def tiles(self, height: int, rows: np.ndarray, width: np.ndarray, step: int = 0) -> np.ndarray:
        """Time of tiles of one height: executed rows [T], columns [T], in steps of so many."""
        computed = -(-width // step) * step if step else width
        compute = self.entry[height] * rows * computed
        total: np.ndarray = self.tile + (compute + (self.column * width + self.row * rows))
        return total

    def sum_of(self, counts: dict[str, int]) -> float:
        """Time of so much of each term; scores are those of tiles of the least height."""
        score = self.entry[min(self.entry)]
        terms = {**vars(self), "entry": score}
        return float(sum(terms[name] * count for name, count in counts.items()))

    def dense(self, q_len: int, kv_len: int, *, masked: bool = True) -> float:
        """Time of dense attention, with a mask or without."""
        entry = self.dense_entry + (self.mask_entry if masked else 0.0)
        return max(self.dense_call + entry * q_len * kv_len, self.floor(q_len, kv_len))

    def floor(self, q_len: int, kv_len: int) -> float:
        """Time to move q, o and k, v once."""
        return self.floor_row * (q_len + kv_len)


@dataclasses.dataclass(frozen=True)
class CostModel(TileBackend):
    """A backend's constants on one target, resolved for one kind of call; made by `cost_model`.

    Attributes, beside those of `TileBackend`:
        isa: the processor's instruction set, "" if it does not matter.
        head_dim, threads: D, and the threads of a CPU (1 on a GPU).
        copies: batch x heads of the call.
        forward, backward: constants of the passes.
    """

    isa: str
    head_dim: int
    threads: int
    copies: int
    forward: PassCost
    backward: PassCost

    def wins(self, tiles_us: float, dense_us: float) -> bool:
        """Whether tiles are predicted faster than dense attention by more than the margin."""
        return self.margin * tiles_us < dense_us

    def tile_us(self, height: int, rows: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Forward time of tiles of one height, [T]."""
        return self._tiles(self.forward, height, rows, width)

    def cover_us(
        self,
        cover: Iterable[TileOutlines],
        q_len: int,
        kv_len: int,
        *,
        singles: Singles = NO_SINGLES,
        backward: bool = False,
        balanced: bool = False,
    ) -> float:
        """Time of a cover in the forward pass, or in the backward pass alone.

        `cover` are its tiles, `singles` the entries beside them. With `balanced` no launch is
        taken to wait for a tile that can be split.
        """
        cost = self.backward if backward else self.forward
        cover = list(cover)
        if self.singles:
            counts = self.counts(cover, singles, q_len, kv_len)
            return max(cost.sum_of(counts), cost.floor(q_len, kv_len))
        if self.launches:
            launches, merges = count_launches(cover, q_len, self.step)
            return launches_us(launches, merges, q_len, kv_len, cost, balanced=balanced)
        shapes, widths = batches(cover) if self.batched or cost.shape else (0, [])
        if not self.batched:
            widths = [self.columns(tiles) for tiles in cover]
        work = 0.0
        tiles_of_row = np.zeros(q_len, dtype=np.int64)
        for tiles, width in zip(cover, widths, strict=True):
            each = self._tiles(cost, tiles.height, tiles.real_rows, width)
            work += float(each.sum())
            tiles_of_row += np.bincount(tiles.rows[tiles.rows >= 0], minlength=q_len)
        merged = np.maximum(tiles_of_row - 1, 0)
        work += cost.merge * int(merged.sum()) + cost.level * int(merged.max(initial=0))
        return max(cost.call + cost.shape * shapes + work, cost.floor(q_len, kv_len))

    def launches_of(self, cover: Iterable[TileOutlines], q_len: int) -> set[tuple[int, int]]:
        """The launches that run a cover, by stage and height; none where there are no launches."""
        if not self.launches:
            return set()
        launches, _ = count_launches(list(cover), q_len, self.step)
        return {(each.stage, each.height) for each in launches}

    def counts(
        self, cover: Iterable[TileOutlines], singles: Singles, q_len: int, kv_len: int
    ) -> dict[str, int]:
        """How much a call with such a cover has of each term: tiles of 16 rows, single entries.

        Its time is the sum of the terms, each times its count.
        """
        cover = list(cover)
        tiles_of_row = np.zeros(q_len, dtype=np.int64)
        for tiles in cover:
            tiles_of_row += np.bincount(tiles.rows[tiles.rows >= 0], minlength=q_len)
        merged = np.maximum(tiles_of_row - 1, 0)
        columns = sum(int(self.columns(tiles).sum()) for tiles in cover)
        row_bytes = 8 * self.head_dim  # of two tensors
        is_far = self.copies * (q_len + kv_len) * row_bytes > NEAR_CALL
        return {
            "call": 1,
            "tile": sum(len(tiles.rows) for tiles in cover),
            "row": int(np.maximum(tiles_of_row, 1).sum()),
            "column": columns,
            "entry": sum(int((self.columns(t) * t.real_rows).sum()) for t in cover),
            "level": int(merged.max(initial=0)),
            "merge": int(merged.sum()),
            "single": singles.entries,
            "single_column": singles.columns,
            "far_row": q_len + kv_len if is_far else 0,
            "far_column": columns + singles.columns if kv_len * row_bytes > NEAR_HEAD else 0,
        }

    def columns(self, tiles: TileOutlines) -> np.ndarray:
        """Columns that each tile has, with their padding, int64 [T]."""
        return tiles.padded if self.padded else tiles.width

    def _tiles(
        self, cost: PassCost, height: int, rows: np.ndarray, width: np.ndarray
    ) -> np.ndarray:
        executed = np.full_like(rows, height) if self.empty_rows_cost else rows
        return cost.tiles(height, executed, width, self.step)

    def bound_us(self, entries: int, q_len: int, kv_len: int) -> float:
        """No cover of so many entries can take less in the forward pass."""
        each = min(self.forward.entry.values())
        if self.singles:  # whose tiles, of one height, pay for whole columns
            each = min(self.forward.single, each + self.forward.column / min(self.forward.entry))
        arithmetic = each * entries
        return max(arithmetic, self.forward.floor(q_len, kv_len))


def batches(cover: Iterable[TileOutlines]) -> tuple[int, list[np.ndarray]]:
    """How many batches these tiles run in, and how wide each tile is there."""
    cover = list(cover)
    if not cover:
        return 0, []
    rows = np.concatenate([tiles.real_rows for tiles in cover])
    width = np.concatenate([tiles.padded for tiles in cover])
    batching = batch_tiles(rows, width)
    padded = batching.width[batching.batch]
    return batching.count, np.split(padded, np.cumsum([len(tiles.rows) for tiles in cover])[:-1])


@functools.lru_cache(maxsize=256)
def cost_model(
    target: str,
    *,
    backend: str | None = None,
    isa: str | None = None,
    head_dim: int = DEFAULT_HEAD_DIM,
    threads: int = 1,
    copies: int | None = None,
    tile_sets: int = 1,
    factors: Factors = AS_FITTED,
) -> CostModel:
    """The model of a target such as "cpu", "sm90" or "gfx942", for one kind of call.

    Args:
        target: the machine.
        backend: what runs the tiles; None for the target's first, see `constants.tile_backends`.
        isa: the processor's instruction set, for a backend whose speed depends on it; None for
            that of the machine at hand.
        head_dim: D.
        threads: threads of a CPU; a GPU has no use for them.
        copies: batch x heads; None for the target's usual number, see `usual_copies`.
        tile_sets: how many of the heads have tiles of their own: 1 if all share one mask, else
            the number of heads.
        factors: how fast the machine is against the one of the constants.

    Raises ValueError for a backend that has no constants for the target.

    >>> cost_model("cpu").threads
    1
    """
    copies = usual_copies(target, tile_sets) if copies is None else copies
    threads = threads if target == "cpu" else 1
    isa = isa_for(target, backend) if isa is None else isa
    forward, backward = (
        _resolve(terms, head_dim, threads, copies, tile_sets, factors)
        for terms in (
            constants.pass_terms(target, name, backend, isa) for name in ("forward", "backward")
        )
    )
    about = constants.tile_backend(target, backend, isa)
    source = "; ".join(filter(None, (factors.source, about.source)))
    return CostModel(
        **vars(dataclasses.replace(about, source=source)),
        isa=isa,
        head_dim=head_dim,
        threads=threads,
        copies=copies,
        forward=forward,
        backward=backward,
    )


def _resolve(
    terms: Terms, head_dim: int, threads: int, copies: int, tile_sets: int, factors: Factors
) -> PassCost:
    """The terms of a pass as times for one of the batches and heads of a call."""
    alike = copies / tile_sets
    resolved: dict[str, Any] = {}
    for name, term in terms.items():
        if isinstance(term, Term):
            sharing = copies if name in PER_CALL else alike
            resolved[name] = factors.of(name) * term.share(head_dim, threads, sharing)
        else:
            resolved[name] = {
                h: factors.of(name) * t.share(head_dim, threads, alike) for h, t in term.items()
            }
    return PassCost(**resolved)


def usual_copies(target: str, heads: int) -> int:
    """Batch x heads of the calls that the constants have in mind; 1 head stands for many."""
    return constants.machine(target).batch * (heads if heads > 1 else DEFAULT_HEADS)
