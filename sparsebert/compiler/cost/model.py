"""The cost model: what a cover, and dense attention, should take, forward and backward.

Times are in microseconds for one batch and one head of a call that keeps the whole machine busy.
They depend on the head size, on the CPU's threads, and on how many batches and heads a call has,
since some costs come once a call and some once for all heads that share their tiles.

Constants per target are data, in `constants.json`, with their source; a target that has none of
its own uses "cpu" or "sm90". `benchmarks/cost/fit_cost_model.py` fits those of the CPU to
measurements. `cost_model` resolves them for one kind of call.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from sparsebert.compiler.pieces import Tiles
from sparsebert.tiles.batching import batch_tiles

DEFAULT_GPU = "sm90"
DEFAULT_HEAD_DIM = 64
DEFAULT_HEADS = 12
"""Heads that a mask of one head is taken to serve."""


@dataclasses.dataclass(frozen=True)
class Term:
    """The time of one thing that a call does, in microseconds: a sum of three parts.

    Each part is (serial, parallel): the parallel one is divided by the threads.

    Attributes:
        once: for all batches and heads that share it.
        copy: for each batch and head.
        dim: for each batch, head and element of the head size.
    """

    once: tuple[float, float] = (0.0, 0.0)
    copy: tuple[float, float] = (0.0, 0.0)
    dim: tuple[float, float] = (0.0, 0.0)

    def share(self, head_dim: int, threads: int, sharing: float) -> float:
        """The time for one of `sharing` batches and heads."""
        once, copy, dim = (
            serial + parallel / threads for serial, parallel in (self.once, self.copy, self.dim)
        )
        return once / sharing + copy + dim * head_dim


PER_CALL = ("call", "shape", "level", "mixed", "dense_call")
"""Terms whose `once` is shared by all batches and heads, not just by those with the same tiles."""


@dataclasses.dataclass(frozen=True)
class PassCost:
    """Constants of one pass, forward or backward, of one kind of call; all in microseconds.

    Attributes:
        call: a call with tiles.
        shape: each different tile shape (a batch of its own in the torch executor).
        level: each tile beyond the first over the row that is in most tiles: a round of merging.
        tile: each tile.
        row: each row of a tile: loading q, storing the result.
        column: each gathered key and value row.
        entry: each score of a tile, by the tile's height.
        merge: each row of a tile beyond the first tile that covers the row.
        mixed: each row of the mask, if some heads of the call run dense and some in tiles.
        floor_row: least time that a row of q, k, v and o takes to move, on any route.
        dense_call, dense_entry: dense attention: each call, each score.
        mask_entry: what a mask adds to each score of dense attention.
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

    def tiles(
        self, height: int, rows: np.ndarray, width: np.ndarray, *, overlapped: bool
    ) -> np.ndarray:
        """Time of tiles of one height: executed rows [T], padded columns [T]."""
        compute = self.entry[height] * rows * width
        gather = self.column * width + self.row * rows
        busy = np.maximum(compute, gather) if overlapped else compute + gather
        total: np.ndarray = self.tile + busy
        return total

    def dense(self, q_len: int, kv_len: int, *, masked: bool = True) -> float:
        """Time of dense attention, with a mask or without."""
        entry = self.dense_entry + (self.mask_entry if masked else 0.0)
        return max(self.dense_call + entry * q_len * kv_len, self.floor(q_len, kv_len))

    def floor(self, q_len: int, kv_len: int) -> float:
        """Time to move q, o and k, v once."""
        return self.floor_row * (q_len + kv_len)


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Constants of one target, resolved for one kind of call; made by `cost_model`.

    Attributes:
        source: where the constants come from.
        margin: tiles must be predicted this much faster than dense attention to be chosen: 1 plus
            the relative error that four fifths of the fitted predictions stay below.
        overlapped: arithmetic and gathering run at the same time, as on a GPU, so that a tile
            takes the longer of the two; else their sum.
        empty_rows_cost: a tile computes its empty row slots too.
        batched: tiles of similar shape run as one batch, padded to its widest.
        programs: tiles that run at the same time.
        head_dim, threads: D, and the threads of a CPU (1 on a GPU).
        copies: batch x heads of the call.
        forward, backward: constants of the passes.
    """

    source: str
    margin: float
    overlapped: bool
    empty_rows_cost: bool
    batched: bool
    programs: int
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
        cover: Iterable[Tiles],
        q_len: int,
        kv_len: int,
        *,
        backward: bool = False,
        balanced: bool = False,
    ) -> float:
        """Time of a cover in the forward pass, or in the backward pass alone.

        With `balanced` no program is taken to wait for one with a longer tile.
        """
        cost = self.backward if backward else self.forward
        cover = list(cover)
        shapes, widths = batches(cover)
        work, longest = 0.0, 0.0
        tiles_of_row = np.zeros(q_len, dtype=np.int64)
        for tiles, batch_width in zip(cover, widths, strict=True):
            width = batch_width if self.batched else tiles.padded
            each = self._tiles(cost, tiles.height, tiles.real_rows, width)
            work += float(each.sum())
            longest = max(longest, float(each.max(initial=0.0)))
            tiles_of_row += np.bincount(tiles.rows[tiles.rows >= 0], minlength=q_len)
        # One tile runs on one of the machine's programs, so it takes `programs` times its share
        # of the whole machine; all copies of it run side by side.
        if not balanced:
            work = max(work, longest * self.programs / self.copies)
        merged = np.maximum(tiles_of_row - 1, 0)
        work += cost.merge * int(merged.sum()) + cost.level * int(merged.max(initial=0))
        return max(cost.call + cost.shape * shapes + work, cost.floor(q_len, kv_len))

    def _tiles(
        self, cost: PassCost, height: int, rows: np.ndarray, width: np.ndarray
    ) -> np.ndarray:
        executed = np.full_like(rows, height) if self.empty_rows_cost else rows
        return cost.tiles(height, executed, width, overlapped=self.overlapped)

    def bound_us(self, entries: int, q_len: int, kv_len: int) -> float:
        """No cover of so many entries can take less in the forward pass."""
        arithmetic = min(self.forward.entry.values()) * entries
        return max(arithmetic, self.forward.floor(q_len, kv_len))


def batches(cover: Iterable[Tiles]) -> tuple[int, list[np.ndarray]]:
    """How many batches the torch backend makes of these tiles, and each tile's width there."""
    cover = list(cover)
    if not cover:
        return 0, []
    rows = np.concatenate([tiles.real_rows for tiles in cover])
    width = np.concatenate([tiles.padded for tiles in cover])
    batching = batch_tiles(rows, width)
    padded = batching.width[batching.batch]
    return batching.count, np.split(padded, np.cumsum([len(tiles.rows) for tiles in cover])[:-1])


def is_target(name: object) -> bool:
    """Whether `name` reads like a machine: "cpu", "sm90", "gfx942" and so on."""
    return isinstance(name, str) and bool(re.fullmatch(r"cpu|sm\d{2,3}|gfx[0-9a-f]{3,4}", name))


@functools.lru_cache(maxsize=256)
def cost_model(
    target: str,
    *,
    head_dim: int = DEFAULT_HEAD_DIM,
    threads: int = 1,
    copies: int | None = None,
    tile_sets: int = 1,
) -> CostModel:
    """The model of a target such as "cpu", "sm90" or "gfx942", for one kind of call.

    Args:
        target: the machine.
        head_dim: D.
        threads: threads of a CPU; a GPU has no use for them.
        copies: batch x heads; None for the target's usual number, see `usual_copies`.
        tile_sets: how many of the heads have tiles of their own: 1 if all share one mask, else
            the number of heads.
    """
    constants = _constants(target)
    source = constants["source"]
    if target not in all_constants():
        source = f"that of {DEFAULT_GPU}, none for {target}: {source}"
    copies = usual_copies(target, tile_sets) if copies is None else copies
    threads = threads if target == "cpu" else 1
    passes = {}
    for which in ("forward", "backward"):
        terms = pass_terms(constants[which])
        entry = terms.pop("entry")
        assert isinstance(entry, dict)
        resolved = {}
        for name, term in terms.items():
            assert isinstance(term, Term)
            sharing = copies if name in PER_CALL else copies / tile_sets
            resolved[name] = term.share(head_dim, threads, sharing)
        heights = {h: t.share(head_dim, threads, copies / tile_sets) for h, t in entry.items()}
        passes[which] = PassCost(**resolved, entry=heights)
    return CostModel(
        source=source,
        margin=constants["margin"],
        overlapped=constants["overlapped"],
        empty_rows_cost=constants["empty_rows_cost"],
        batched=constants["batched"],
        programs=constants["programs"],
        head_dim=head_dim,
        threads=threads,
        copies=copies,
        **passes,
    )


def usual_copies(target: str, heads: int) -> int:
    """Batch x heads of the calls that the constants have in mind; 1 head stands for many."""
    batch: int = _constants(target)["batch"]
    return batch * (heads if heads > 1 else DEFAULT_HEADS)


def pass_terms(stored: dict[str, Any]) -> dict[str, Term | dict[int, Term]]:
    """The terms of one pass as `constants.json` has them."""
    terms: dict[str, Term | dict[int, Term]] = {}
    for name, value in stored.items():
        if name == "entry":
            terms[name] = {int(height): _term(each) for height, each in value.items()}
        else:
            terms[name] = _term(value)
    return terms


def _term(stored: dict[str, list[float]]) -> Term:
    return Term(**{part: (pair[0], pair[1]) for part, pair in stored.items()})


@functools.cache
def all_constants() -> dict[str, Any]:
    """What `constants.json` holds, by target; read once."""
    text = importlib.resources.files(__package__).joinpath("constants.json").read_text()
    models: dict[str, Any] = json.loads(text)
    return models


def _constants(target: str) -> dict[str, Any]:
    models = all_constants()
    found: dict[str, Any] = models.get(target, models[DEFAULT_GPU])
    return found


def machine_target() -> str:
    """The target that stands for the machine at hand."""
    if not torch.cuda.is_available():
        return "cpu"
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm{properties.major}{properties.minor}"
