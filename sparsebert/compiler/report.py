"""The compiler's report on a plan: what it executes, what that should cost, and why."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from sparsebert.compiler.cost.factors import AS_FITTED, Factors

_IN_FULL = 4  # different heads that str() gives in full, if there are no more
_IN_LINES = 12  # if there are more, so many of them get a line


@dataclasses.dataclass(frozen=True)
class HeadReport:
    """One distinct head.

    Attributes:
        heads: the heads of the mask that it stands for.
        density: share of ones.
        executed_fraction: rows x columns summed over tiles, and single entries, over N x M; 1 if
            dense. Columns count with their padding where a backend pads them.
        route: "tiles" or "dense".
        cover: how the tiles were chosen, or what dense means here, in words.
        tiles: tile count by height, e.g. {64: 32, 16: 1}.
        gathered_columns: columns summed over tiles, with their padding likewise.
        merge_share: share of the rows in tiles that an earlier tile covers too, so that their
            results have to be merged.
        predicted_us, dense_us: predicted forward times of the chosen route and of dense attention,
            in microseconds, for one batch and head of the calls planned for.
        predicted_backward_us, dense_backward_us: the same for the backward pass alone.
        bound_us: no cover can run the forward pass faster: moving q, k, v and o once, or the
            arithmetic of the ones alone.
        tried: other covers that came close, with the forward time (or with objective "area" the
            executed scores) of each, cheapest first.
        reason: why this route and cover.
        single_entries: entries that stand alone, beside the tiles.
    """

    heads: tuple[int, ...]
    density: float
    executed_fraction: float
    route: str
    cover: str
    tiles: dict[int, int]
    gathered_columns: int
    merge_share: float
    predicted_us: float
    predicted_backward_us: float
    dense_us: float
    dense_backward_us: float
    bound_us: float
    tried: tuple[tuple[str, float], ...]
    reason: str
    single_entries: int = 0

    @property
    def label(self) -> str:
        """Which heads of the mask it is about, in words."""
        return _name_heads(self.heads)

    @property
    def padding_waste(self) -> float:
        """Share of the computed scores that the mask does not need."""
        return 1.0 - self.density / self.executed_fraction if self.executed_fraction else 0.0

    @property
    def predicted_speedup(self) -> float:
        """Predicted forward time of dense attention over that of the chosen route."""
        return _ratio(self.dense_us, self.predicted_us)

    def __repr__(self) -> str:
        return f"<HeadReport {_summarise_head(self)}>"


@dataclasses.dataclass(frozen=True)
class PlanReport:
    """What a plan executes and should cost; it shows itself as a readable report.

    `str()` gives the whole first and, of many different heads, a line for the first ones;
    `details` gives all there is.

    Attributes:
        q_len, kv_len, num_heads: the mask's size.
        target, objective: what the plan was compiled for.
        cost_source: where the cost model's constants come from.
        per_head: one report for each distinct head.
        head_dim, threads, copies: the calls planned for: D, CPU threads (1 on a GPU), and
            batch x heads.
        backend: what runs the tiles in the calls planned for, "" if that is not known.
        isa: the instruction set that it has in mind there, "" if that does not matter.
        factors: how fast the machine is against the one of the constants.
    """

    q_len: int
    kv_len: int
    num_heads: int
    target: str
    objective: str
    cost_source: str
    per_head: tuple[HeadReport, ...]
    head_dim: int = 64
    threads: int = 1
    copies: int = 12
    backend: str = ""
    isa: str = ""
    factors: Factors = AS_FITTED

    _pictures: ClassVar[Any] = None  # or what `with_pictures` got; no field, it is not stored

    def _mean(self, field: str) -> float:
        weighted = sum(getattr(head, field) * len(head.heads) for head in self.per_head)
        return float(weighted / self.num_heads)

    @property
    def density(self) -> float:
        """Share of ones, over all heads."""
        return self._mean("density")

    @property
    def executed_fraction(self) -> float:
        """Share of the N x M scores that are computed, padding included, over all heads."""
        return self._mean("executed_fraction")

    @property
    def padding_waste(self) -> float:
        """Share of the computed scores that the mask does not need."""
        executed = self.executed_fraction
        return 1.0 - self.density / executed if executed else 0.0

    @property
    def tiles(self) -> dict[int, int]:
        """Tile count by height, over all heads."""
        total: dict[int, int] = {}
        for head in self.per_head:
            for height, count in head.tiles.items():
                total[height] = total.get(height, 0) + count * len(head.heads)
        return dict(sorted(total.items(), reverse=True))

    @property
    def single_entries(self) -> int:
        """Entries that stand alone, over all heads."""
        return sum(head.single_entries * len(head.heads) for head in self.per_head)

    @property
    def predicted_us(self) -> float:
        """Predicted forward time in microseconds for one batch and head, mean over heads."""
        return self._mean("predicted_us")

    @property
    def predicted_backward_us(self) -> float:
        """The same for the backward pass alone."""
        return self._mean("predicted_backward_us")

    @property
    def dense_us(self) -> float:
        """Predicted forward time of dense attention with the mask."""
        return self._mean("dense_us")

    @property
    def dense_backward_us(self) -> float:
        """The same for the backward pass alone."""
        return self._mean("dense_backward_us")

    @property
    def predicted_speedup(self) -> float:
        """Predicted time of dense attention over that of the plan; 1 if all heads run dense."""
        return _ratio(self.dense_us, self.predicted_us)

    @property
    def predicted_step_speedup(self) -> float:
        """The same for a training step, forward and backward."""
        dense = self.dense_us + self.dense_backward_us
        return _ratio(dense, self.predicted_us + self.predicted_backward_us)

    @property
    def merge_share(self) -> float:
        """Share of the rows in tiles that an earlier tile covers too, mean over heads."""
        return self._mean("merge_share")

    @property
    def title(self) -> str:
        """What the plan is for, in a line."""
        return (
            f"plan for {self.num_heads} head(s) of {self.q_len} x {self.kv_len}, "
            f"target {self.target}, objective {self.objective}"
        )

    def figures(self) -> list[tuple[str, str, str]]:
        """The totals: name, value, and what it is, all as text."""
        calls = f"D = {self.head_dim}, batch x heads = {self.copies}"
        calls += f", {self.threads} thread(s)" if self.target == "cpu" else ""
        backward = f"{self.predicted_backward_us:.4g} us backward"
        calls += f", backend {self.backend}" + (f" ({self.isa})" if self.isa else "")
        executed = f"{self.executed_fraction:8.4f}"
        speedup, step = f"{self.predicted_speedup:8.2f}x", f"{self.predicted_step_speedup:8.2f}x"
        return [
            ("calls planned for", calls, ""),
            ("routes", self.routes, ""),
            ("density", f"{self.density:8.4f}", "share of ones in the mask"),
            ("executed fraction", executed, "share of the scores computed"),
            ("padding waste", f"{self.padding_waste:8.4f}", "of these, not needed by the mask"),
            ("merge share", f"{self.merge_share:8.4f}", "of the rows in tiles, merged"),
            ("tiles", _name_tiles(self.tiles, self.single_entries), ""),
            ("predicted time", f"{self.predicted_us:8.4g} us", f"a head forward, {backward}"),
            ("predicted speed-up", speedup, "over dense attention, forward"),
            ("", step, "forward and backward"),
            ("bound", f"{self._mean('bound_us'):8.4g} us", "a head, for any cover"),
            ("cost model", self.cost_source, ""),
        ]

    def details(self) -> str:
        """The report with every different head in full."""
        return self._text(in_full=len(self.per_head))

    def with_pictures(self, pictures: Callable[[], str]) -> PlanReport:
        """The same report; in a notebook it shows the HTML that `pictures` returns."""
        report = copy.copy(self)
        object.__setattr__(report, "_pictures", pictures)
        return report

    @property
    def routes(self) -> str:
        """How many heads go which way, and how many of them differ, in words."""
        heads = Counter[str]()
        for head in self.per_head:
            heads[head.route] += len(head.heads)
        routes = ", ".join(f"{count} head(s) {route}" for route, count in heads.items())
        return f"{routes}; {len(self.per_head)} of {self.num_heads} different"

    def _text(self, in_full: int) -> str:
        lines = [self.title]
        for name, value, meaning in self.figures():
            lines.append(f"  {name:<18} {value}{'  ' if meaning else ''}{meaning}")
        if len(self.per_head) <= in_full:
            for head in self.per_head:
                lines += _describe_head(head, "us" if self.objective == "time" else "scores")
            return "\n".join(lines)
        lines += [f"  {_summarise_head(head)}" for head in self.per_head[:_IN_LINES]]
        more = len(self.per_head) - _IN_LINES
        lines += [f"  ... and {more} more different heads"] if more > 0 else []
        first = {head.route: head for head in reversed(self.per_head)}
        lines += [f"  why {route}, {head.label}: {head.reason}" for route, head in first.items()]
        return "\n".join([*lines, "  report.details() has each head in full"])

    def __str__(self) -> str:
        return self._text(_IN_FULL)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from sparsebert.compiler.plan_html import report_html

        return report_html(self, self._pictures() if self._pictures else "")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_pictures"}


def _summarise_head(head: HeadReport) -> str:
    return (
        f"{head.label}: {head.route}, {head.cover}; density {head.density:.4f}, executed "
        f"{head.executed_fraction:.4f}, {head.predicted_us:.4g} us forward, "
        f"{head.predicted_speedup:.2f}x"
    )


def _describe_head(head: HeadReport, unit: str) -> list[str]:
    lines = [
        f"  {head.label}: {head.route}, {head.cover}",
        f"    density {head.density:.4f}, executed {head.executed_fraction:.4f}, "
        f"waste {head.padding_waste:.3f}, tiles {_name_tiles(head.tiles, head.single_entries)}, "
        f"gathered columns {head.gathered_columns}, merge share {head.merge_share:.3f}",
        f"    forward {head.predicted_us:.4g} us, dense {head.dense_us:.4g} us; backward "
        f"{head.predicted_backward_us:.4g} us, dense {head.dense_backward_us:.4g} us; "
        f"bound {head.bound_us:.4g} us",
        f"    why: {head.reason}",
    ]
    if head.tried:
        tried = "; ".join(f"{name} {cost:.4g} {unit}" for name, cost in head.tried)
        lines.append(f"    tried: {tried}")
    return lines


def _name_tiles(tiles: dict[int, int], singles: int) -> str:
    named = ", ".join(f"{count} of {height} rows" for height, count in tiles.items()) or "none"
    return named + (f", and {singles} single entries" if singles else "")


def _ratio(dense: float, predicted: float) -> float:
    return dense / predicted if predicted else float("inf")


def _name_heads(heads: tuple[int, ...]) -> str:
    if len(heads) == 1:
        return f"head {heads[0]}"
    consecutive = heads == tuple(range(heads[0], heads[-1] + 1))
    listed = f"{heads[0]}-{heads[-1]}" if consecutive else ", ".join(map(str, heads))
    return f"heads {listed}"
