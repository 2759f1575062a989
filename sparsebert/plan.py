"""An attention plan: how to run one layer's mask, and its programs on one device.

A plan is a frozen value. It holds the compiler's schedule, which tile lists or dense heads it
decided on, and makes of it what a backend runs when a call first needs that. `compile_plan` makes
plans, `sparsebert.sparse_attention` runs them, `plan.explain()` says what was chosen and why.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import torch

from sparsebert.backends import routing
from sparsebert.backends.program import Program
from sparsebert.backends.routing import Routes
from sparsebert.calibration import factors_for
from sparsebert.compiler.compile import (
    Request,
    check_request,
    check_target,
    compile_schedule,
    complete,
    crop_schedule,
)
from sparsebert.compiler.cost.model import DEFAULT_HEAD_DIM
from sparsebert.compiler.plan_file import load_plan, save_plan
from sparsebert.compiler.report import PlanReport
from sparsebert.compiler.schedule import Schedule
from sparsebert.compiler.shared_tiles import SharedTiles
from sparsebert.masks import AttentionMask
from sparsebert.memory import has_grown
from sparsebert.plan_cache import CPU, PlanKey, plans
from sparsebert.support.forks import ForkSafeLock
from sparsebert.support.untraced import constant_in_graphs, untraced
from sparsebert.tiles.format import TileSet

_lowering = ForkSafeLock()
"""Threads that need the same program make it once."""


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionPlan:
    """A compiled mask of one layer; make it with `compile_plan`, run it with `sparse_attention`.

    Attributes:
        schedule: what the compiler decided; plans made of this one by `to` and copying share it.
        device: where the plan's tensors lie.
        programs: what runs, as tensors, see `program_for`; made when they are first asked for.
        checked: those of calls that were found to fit the plan, by the kind of call.
    """

    schedule: Schedule
    device: torch.device = CPU
    programs: dict[tuple[str, str], Program] = dataclasses.field(default_factory=dict, repr=False)
    checked: dict[Hashable, Program] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def mask(self) -> AttentionMask:
        """The mask it was compiled from, one layer."""
        return self.schedule.mask

    @property
    def head_map(self) -> np.ndarray:
        """Which of the U distinct heads each head uses, int64 [H]."""
        return self.schedule.head_map

    @property
    def dense_heads(self) -> np.ndarray:
        """Which distinct heads run dense instead of in tiles, bool [U]."""
        return self.schedule.dense_heads

    @property
    def tiles(self) -> TileSet:
        """The tiles of the other distinct heads: query rows, gathered key columns."""
        return self.schedule.tiles

    @property
    def shared_tiles(self) -> SharedTiles:
        """The owner of what is compiled once, see `Schedule`."""
        return self.schedule.shared_tiles

    @property
    def report(self) -> PlanReport:
        """The compiler's own account, see `explain`."""
        return self.schedule.report

    @property
    def target(self) -> str:
        """The machine that the cost model had in mind ("cpu", "sm90", ...)."""
        return self.report.target

    @property
    def objective(self) -> str:
        """ "time" or "area"."""
        return self.report.objective

    @property
    def q_len(self) -> int:
        """N, the number of query positions."""
        return self.report.q_len

    @property
    def kv_len(self) -> int:
        """M, the number of key positions."""
        return self.report.kv_len

    @property
    def num_heads(self) -> int:
        """The mask's head count; 1 serves any number of heads."""
        return self.report.num_heads

    @property
    def fingerprint(self) -> str:
        """Identifies the mask and everything that shaped the plan."""
        calls = f"d{self.report.head_dim}-t{self.report.threads}-c{self.report.copies}"
        made_for = "-".join(filter(None, (self.target, self.report.backend, self.report.isa)))
        factors = ",".join(f"{factor:g}" for factor in self.report.factors[:-1])
        return f"{self.mask.fingerprint}-{made_for}-{self.objective}-{calls}-x{factors}"

    @property
    def transposed(self) -> TileSet:
        """Tiles of the transposed mask, all heads: key rows, gathered queries; for dK and dV."""
        return self.shared_tiles.transposed

    @property
    def passes_on(self) -> bool:
        """Whether o of any of its programs is rounded between two passes over a row."""
        return any(program.passes_on for program in self.programs.values())

    def to(self, device: torch.device | str) -> AttentionPlan:
        """The same plan with its tensors on `device`."""
        with untraced():
            device = torch.empty(0, device=device).device  # "cuda" is its current one
            if device == self.device:
                return self
            made = dict(self.programs)  # some of them are the same under two names
            moved = {id(program): program.to(device) for program in made.values()}
            programs = {routes: moved[id(program)] for routes, program in made.items()}
        return dataclasses.replace(self, device=device, programs=programs)

    def buffers(self) -> Iterator[np.ndarray | torch.Tensor]:
        """The arrays and tensors that the plan keeps alive."""
        yield from self.schedule.buffers()
        for program in list(self.programs.values()):
            yield from program.tensors

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "checked": {}}  # other backends may be there where this is read

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionPlan:
        return self  # a value that does not change

    def program_for(self, tiles: str, dense: str) -> Program:
        """What the backends of these names run on the plan's device, see `routing.Routes`.

        Args:
            tiles: who runs the heads that the plan runs in tiles.
            dense: who runs those that it runs dense.
        """
        if torch.compiler.is_compiling():  # Dynamo runs this without looking into it
            _make_program(self, tiles, dense)
            program: Program = getattr(self, _seen_by_dynamo(tiles, dense))
            return program
        found = self.programs.get((tiles, dense))
        return self.make_program(Routes(tiles, dense)) if found is None else found

    def make_program(self, routes: Routes) -> Program:
        """Make what `program_for` gives, if that is not done yet."""
        same = routing.canonical(self.schedule, routes)
        with _lowering:
            if same not in self.programs:
                with untraced():
                    self.programs[same] = routing.lower(self.schedule, same).to(self.device)
                has_grown(self)
            self.programs[routes] = self.programs[same]
        return self.programs[routes]

    def crop(self, q_len: int, kv_len: int | None = None) -> AttentionPlan:
        """The plan of the first `q_len` queries and `kv_len` keys, made without recompiling.

        Args:
            q_len: 1 to N.
            kv_len: 1 to M; for a square plan it defaults to q_len.

        Tiles lose the rows and columns beyond, so the cost shrinks with the lengths; a head whose
        tiles do not pay at the shorter lengths goes dense. Raises ValueError as
        `AttentionMask.crop` does.

        >>> import sparsebert as sb
        >>> plan = sb.compile_plan(sb.patterns.longformer(512), target="cpu").crop(300)
        >>> plan.dense().equal(sb.patterns.longformer(512).crop(300).dense()[0])
        True
        """
        mask = self.mask.crop(q_len, kv_len)
        if mask.shape == self.mask.shape:
            return self
        return AttentionPlan(crop_schedule(self.schedule, mask), self.device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan, without its mask, to one safetensors file; see `load`."""
        save_plan(self.schedule, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], mask: AttentionMask) -> AttentionPlan:
        """Read the plan of `mask` (one layer) from a file that `save` wrote.

        It is checked in full: the file's sums, all indices, and that the tiles cover exactly the
        entries of `mask`. Raises FileNotFoundError, or
        `sparsebert.compiler.plan_file.PlanFileError` (a ValueError) that says what is
        wrong; then compile the mask again.

        >>> import tempfile, sparsebert as sb
        >>> mask = sb.patterns.star(256)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sb.compile_plan(mask, target="cpu").save(folder + "/star.plan")
        ...     sb.AttentionPlan.load(folder + "/star.plan", mask).dense().equal(mask.dense()[0])
        True
        """
        return cls(load_plan(path, mask))

    def dense(self) -> torch.Tensor:
        """The mask that the plan executes, rebuilt from its tiles: bool [H, N, M] on the CPU."""
        return self.schedule.dense()

    def explain(self) -> PlanReport:
        """What the plan executes, what that should cost, and why it was chosen.

        In a notebook the report shows itself as a table with pictures of the tiles.
        """
        return self.report.with_pictures(self._tiles_html)

    def _tiles_html(self) -> str:
        from sparsebert.compiler.plan_html import tiles_html

        return tiles_html(self.schedule)

    def _repr_html_(self) -> str:
        from sparsebert.compiler.plan_html import plan_html

        return plan_html(self.schedule)

    def __repr__(self) -> str:
        return (
            f"AttentionPlan({self.num_heads} heads, {self.q_len} x {self.kv_len}, "
            f"density {self.report.density:.4f}, executed {self.report.executed_fraction:.4f}, "
            f"target {self.target!r}, device {str(self.device)!r})"
        )


def _seen_by_dynamo(tiles: str, dense: str) -> str:
    """The attribute of a plan with a program that torch.compile asked for.

    Dynamo reads an attribute when it comes to it, but a dict once: it would miss what is made
    later.
    """
    return f"_program_{len(tiles)}_{tiles}_{dense}"  # no two pairs of names share one


@constant_in_graphs
def _make_program(plan: AttentionPlan, tiles: str, dense: str) -> None:
    vars(plan)[_seen_by_dynamo(tiles, dense)] = plan.make_program(Routes(tiles, dense))


def compile_plan(
    mask: AttentionMask,
    *,
    target: str | None = None,
    objective: str = "time",
    head_dim: int = DEFAULT_HEAD_DIM,
    threads: int | None = None,
    copies: int | None = None,
) -> AttentionPlan:
    """Compile the mask of one layer into a plan for `sparse_attention`.

    Args:
        mask: an `AttentionMask` with one layer, [1, H, N, M].
        target: the machine to plan for: "cpu", "sm80", "sm90", "sm100", "gfx942", ...;
            None means the machine at hand.
        objective: "time" follows the cost model and falls back to dense attention where sparsity
            would lose; "area" minimises the executed area, in which entries that stand alone count
            double, and never falls back.
        head_dim: D of the calls to come.
        threads: CPU threads of the calls to come; None means torch.get_num_threads().
        copies: batch x heads of the calls to come. None means one batch on a CPU and 8 on a GPU,
            of the mask's heads, or of 12 for a mask of one head. A small batch is the careful
            choice: what comes once a call then weighs most.

    The last three shape the choices of objective "time" only; a plan runs calls of any size.
    Plans of recent masks are remembered, by content, so compiling twice costs nothing. Raises
    TypeError and ValueError for what is not such a mask, target or objective.

    >>> import sparsebert as sb
    >>> plan = sb.compile_plan(sb.patterns.sliding_window(256, window=8), target="cpu")
    >>> plan.dense().equal(sb.patterns.sliding_window(256, window=8).dense()[0])
    True
    """
    return compile_for_backend(
        mask,
        None,
        target=target,
        objective=objective,
        head_dim=head_dim,
        threads=threads,
        copies=copies,
    )


def compile_for_backend(
    mask: AttentionMask,
    backend: str | None,
    *,
    target: str | None = None,
    objective: str = "time",
    head_dim: int = DEFAULT_HEAD_DIM,
    threads: int | None = None,
    copies: int | None = None,
) -> AttentionPlan:
    """`compile_plan` for a backend with constants for the target, see `tile_backends`.

    None means the one that runs calls with "auto", see `routing.planned_for`.
    """
    target = check_target(target)
    backend = routing.planned_for(target) if backend is None else backend
    request = check_request(mask, target, objective, head_dim, threads, copies, backend)
    factors = factors_for(target, backend, request.calls[1])
    return plan_on(request._replace(factors=factors), CPU)


def request_for(
    mask: AttentionMask, device: torch.device, head_dim: int, heads: int | None
) -> Request:
    """The request for calls on `device`, whatever other machine may be at hand.

    The batch is left open, so that not every new batch size compiles again.
    """
    target = "cpu" if device.type == "cpu" else check_target(None)
    copies = heads if target == "cpu" else None
    backend = routing.planned_for(target)
    factors = factors_for(target, backend, None)
    return complete(mask, target, "time", head_dim, None, copies, backend, factors)


def compile_for(
    mask: AttentionMask, device: torch.device, head_dim: int, heads: int | None
) -> AttentionPlan:
    """The plan of a mask for calls on `device`, not moved there yet."""
    return plan_on(request_for(mask, device, head_dim, heads), CPU)


def plan_on(request: Request, device: torch.device) -> AttentionPlan:
    """The plan that a request asks for, on `device`; remembered."""
    key = PlanKey.whole(request, device)
    plan = plans.get(key)
    if plan is None:
        if device == CPU:
            plan = AttentionPlan(compile_schedule(request))
        else:
            plan = plan_on(request, CPU).to(device)
        plans.put(key, plan)
    return plan
