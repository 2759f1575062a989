"""What is compiled once for a mask, and shared by every plan that is made of it.

A plan moved to another device, a copy of it and its crops need the same tiles, and other covers
than those of the plan's own route only now and then: of the transposed mask, for dK and dV, and
of all heads, for a backend that runs no head dense. `Covers` finds each of them once, when it is
first asked for. Those of a crop are cropped, not searched for again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from sparsebert.compiler import bitmatrix
from sparsebert.compiler.cost.model import CostModel, cost_model
from sparsebert.compiler.cover_search import Cover, best_cover
from sparsebert.compiler.pricing import Area, Pricing, Time
from sparsebert.compiler.report import PlanReport
from sparsebert.masks import AttentionMask
from sparsebert.support.forks import ForkSafeLock
from sparsebert.support.progress import Progress
from sparsebert.tiles.assemble import join_heads
from sparsebert.tiles.build import TileGroup, build_tile_set
from sparsebert.tiles.crop import crop_tiles
from sparsebert.tiles.format import TileSet

_WORTH_A_THREAD = 1 << 16
"""Bytes of a head's bits; below, little happens outside of Python's own lock."""

_DELAY = 3.0
"""Seconds before a search shows its progress."""

Calls = tuple[int, int, int]
"""The calls that a plan is for: D, threads, batch x heads."""


@dataclasses.dataclass(frozen=True)
class Aim:
    """What a search for covers goes by.

    Attributes:
        target, objective: of the plan.
        calls: the calls to come.
        tile_sets: heads with tiles of their own: 1 if all share one mask, else all.
    """

    target: str
    objective: str
    calls: Calls
    tile_sets: int

    @property
    def model(self) -> CostModel:
        """The cost model for such calls."""
        head_dim, threads, copies = self.calls
        return cost_model(
            self.target,
            head_dim=head_dim,
            threads=threads,
            copies=copies,
            tile_sets=self.tile_sets,
        )

    def search(self, heads: Sequence[np.ndarray], q_len: int, kv_len: int) -> list[Cover]:
        """The best cover of each head's bits, uint8 [N, ceil(M / 8)].

        Large heads are searched in as many threads as torch uses; the covers do not depend on it.
        What takes longer than a few seconds shows its progress on standard error.
        """
        pricing: Pricing = Area() if self.objective == "area" else Time(self.model, q_len, kv_len)
        size = f"head(s) of {q_len} x {kv_len}"
        lock = ForkSafeLock()

        def search_one(packed: np.ndarray) -> Cover:
            def go_on(done: int = 0) -> None:
                with lock:
                    progress.update(done)

            cover = best_cover(packed, kv_len, pricing, go_on)
            go_on(1)
            return cover

        is_large = any(packed.nbytes >= _WORTH_A_THREAD for packed in heads)
        workers = min(len(heads), torch.get_num_threads()) if is_large else 1
        with Progress("compiling a mask", len(heads), size, delay=_DELAY) as progress:
            if workers < 2:
                return [search_one(packed) for packed in heads]
            with ThreadPoolExecutor(workers, "sparsebert-compile") as pool:
                return list(pool.map(search_one, heads))


class Covers:
    """The covers of one mask; see the module's text.

    Args:
        mask: one layer.
        firsts: for each distinct head, a head of the mask that has it.
        tiles: of the heads that run in tiles.
        in_tiles: bool [U], which these are.
        aim: what the search for the others goes by.
        whole: the covers of the mask that this one is cropped from, which are cropped too.
    """

    def __init__(
        self,
        mask: AttentionMask,
        firsts: Sequence[int],
        tiles: TileSet,
        in_tiles: np.ndarray,
        aim: Aim,
        whole: Covers | None = None,
    ) -> None:
        self._mask = mask
        self._firsts = list(firsts)
        self._tiles = tiles
        self._in_tiles = in_tiles
        self._aim = aim
        self._whole: Covers | None = whole.whole if whole else None
        self._found: dict[str, TileSet] = {}
        self._lock = ForkSafeLock()

    @property
    def aim(self) -> Aim:
        """What searches go by."""
        return self._aim

    @property
    def whole(self) -> Covers:
        """Those of the mask that was compiled, of which this may be a crop."""
        return self if self._whole is None else self._whole

    @property
    def every(self) -> TileSet:
        """Tiles of all heads, those that the plan runs dense included."""
        if self._in_tiles.all():
            return self._tiles
        return self._once("every")

    @property
    def transposed(self) -> TileSet:
        """Tiles of the transposed mask, all heads: key rows, gathered queries."""
        return self._once("transposed")

    def arrays(self) -> Iterator[np.ndarray]:
        """The arrays of what was found so far."""
        for covers in {self, self.whole}:
            yield covers._mask.bits
            for tiles in (covers._tiles, *list(covers._found.values())):
                yield from tiles.arrays

    def _once(self, which: str) -> TileSet:
        with self._lock:  # threads that need the same wait for it
            if which not in self._found:
                self._found[which] = self._crop(which) if self._whole else self._search(which)
            return self._found[which]

    def _crop(self, which: str) -> TileSet:
        lengths = self._mask.q_len, self._mask.kv_len
        if which == "transposed":
            return crop_tiles(self.whole.transposed, *reversed(lengths))
        return crop_tiles(self.whole.every, *lengths)

    def _search(self, which: str) -> TileSet:
        lengths = self._mask.q_len, self._mask.kv_len
        if which == "transposed":
            heads = [bitmatrix.transpose(self._mask.bits[0, h], lengths[1]) for h in self._firsts]
            covers = self._aim.search(heads, *reversed(lengths))
            return tiles_of(dict(enumerate(covers)), len(heads), lengths[1], lengths[0])
        missing = np.flatnonzero(~self._in_tiles).tolist()
        heads = [self._mask.bits[0, self._firsts[u]] for u in missing]
        covers = self._aim.search(heads, *lengths)
        found = dict(zip(missing, covers, strict=True))
        return join_heads([self._tiles, tiles_of(found, len(self._firsts), *lengths)])


def aim_of(report: PlanReport, head_map: np.ndarray) -> Aim:
    """What the plan with this report and these distinct heads was searched for by."""
    calls = report.head_dim, report.threads, report.copies
    return Aim(report.target, report.objective, calls, len(head_map) if head_map.any() else 1)


def tiles_of(covers: dict[int, Cover], num_heads: int, q_len: int, kv_len: int) -> TileSet:
    """The tiles of the covers of some distinct heads."""
    groups = [
        TileGroup(head, bitmatrix.to_bytes(piece.words, kv_len), tiles.rows)
        for head, cover in covers.items()
        for piece in cover.pieces
        for tiles in piece.tiles
    ]
    return build_tile_set(groups, num_heads, q_len, kv_len)
