"""What a search for covers goes by, and the search over the heads of a mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from sparsebert.compiler.cost.constants import tile_backend, tile_backends
from sparsebert.compiler.cost.factors import AS_FITTED, Factors
from sparsebert.compiler.cost.instruction_sets import isa_for
from sparsebert.compiler.cost.model import CostModel, cost_model
from sparsebert.compiler.cover_search import Cover, best_cover
from sparsebert.compiler.group_search import best_groups
from sparsebert.compiler.pricing import Area, GroupArea, GroupPricing, GroupTime, Pricing, Time
from sparsebert.compiler.report import PlanReport
from sparsebert.support.forks import ForkSafeLock
from sparsebert.support.progress import Progress

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
        backend: what runs the tiles.
        isa: the instruction set that it has in mind, "" if that does not matter.
        factors: how fast the machine is against the one of the constants.
    """

    target: str
    objective: str
    calls: Calls
    tile_sets: int
    backend: str
    isa: str
    factors: Factors = AS_FITTED

    @classmethod
    def of(cls, report: PlanReport, head_map: np.ndarray) -> Aim:
        """What the plan with this report and these distinct heads was searched for by."""
        calls = report.head_dim, report.threads, report.copies
        tile_sets = len(head_map) if head_map.any() else 1
        return cls(
            report.target,
            report.objective,
            calls,
            tile_sets,
            report.backend,
            report.isa,
            report.factors,
        )

    @property
    def singles(self) -> bool:
        """Whether entries may stand alone in its covers."""
        return self.model.singles

    def towards(self, *, singles: bool) -> Aim:
        """This aim if it allows for single entries or not, as asked; else that of a backend which
        does: one for the same target if there is one, else for the CPU.
        """
        if singles == self.singles:
            return self
        for target in (self.target, "cpu"):
            for backend in tile_backends(target):
                isa = isa_for(target, backend)
                if tile_backend(target, backend, isa).singles == singles:
                    return dataclasses.replace(
                        self, target=target, backend=backend, isa=isa, factors=AS_FITTED
                    )
        raise AssertionError(f"no backend with singles={singles} has constants")

    @property
    def model(self) -> CostModel:
        """The cost model for such calls."""
        head_dim, threads, copies = self.calls
        return cost_model(
            self.target,
            backend=self.backend,
            isa=self.isa,
            head_dim=head_dim,
            threads=threads,
            copies=copies,
            tile_sets=self.tile_sets,
            factors=self.factors,
        )

    def search(self, heads: Sequence[np.ndarray], q_len: int, kv_len: int) -> list[Cover]:
        """The best cover of each head's bits, uint8 [N, ceil(M / 8)].

        Large heads are searched in as many threads as torch uses; the covers do not depend on it.
        What takes longer than a few seconds shows its progress on standard error.
        """
        best = self._search(q_len, kv_len)
        size = f"head(s) of {q_len} x {kv_len}"
        lock = ForkSafeLock()

        def search_one(packed: np.ndarray) -> Cover:
            def go_on(done: int = 0) -> None:
                with lock:
                    progress.update(done)

            cover = best(packed, go_on)
            go_on(1)
            return cover

        is_large = any(packed.nbytes >= _WORTH_A_THREAD for packed in heads)
        workers = min(len(heads), torch.get_num_threads()) if is_large else 1
        with Progress("compiling a mask", len(heads), size, delay=_DELAY) as progress:
            if workers < 2:
                return [search_one(packed) for packed in heads]
            with ThreadPoolExecutor(workers, "sparsebert-compile") as pool:
                return list(pool.map(search_one, heads))

    def _search(
        self, q_len: int, kv_len: int
    ) -> Callable[[np.ndarray, Callable[[], None]], Cover]:
        """The search for the cover of one head's bits."""
        if self.singles:
            groups = self.group_pricing(q_len, kv_len)
            return lambda packed, go_on: best_groups(packed, kv_len, groups, go_on)
        pricing = self.pricing(q_len, kv_len)
        return lambda packed, go_on: best_cover(packed, kv_len, pricing, go_on)

    def pricing(self, q_len: int, kv_len: int) -> Pricing:
        """The prices of tiles, where no entries stand alone."""
        return Area() if self.objective == "area" else Time(self.model, q_len, kv_len)

    def group_pricing(self, q_len: int, kv_len: int) -> GroupPricing:
        """The prices of tiles and of entries that stand alone."""
        return GroupArea() if self.objective == "area" else GroupTime(self.model, q_len, kv_len)
