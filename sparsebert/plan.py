"""An attention plan: how to run one layer's mask.

A plan is a frozen value. For every *distinct* head of the mask it holds a list of tiles, or the
decision that the head runs dense. `sparsebert.compile_plan` makes plans,
`sparsebert.sparse_attention` runs them, `plan.explain()` says what was chosen and why.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsebert.backends.torch_program import (
    TRITON,
    FlatProgram,
    build_program,
    from_tensors,
    mixed_program,
)
from sparsebert.compiler.plan_file import load_plan, save_plan
from sparsebert.compiler.report import PlanReport
from sparsebert.masks import AttentionMask
from sparsebert.memory import has_grown
from sparsebert.support.untraced import constant_in_graphs, untraced
from sparsebert.tiles.format import TileSet

if TYPE_CHECKING:
    from sparsebert.compiler.covers import Covers


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionPlan:
    """A compiled mask of one layer; make it with `compile_plan`, run it with `sparse_attention`.

    Attributes:
        mask: the mask it was compiled from, one layer.
        head_map: int64 numpy [H], which of the U distinct heads each head uses.
        dense_heads: bool numpy [U], which distinct heads run dense instead of in tiles.
        tiles: the tiles of the other distinct heads: query rows, gathered key columns.
        target: the machine that the cost model had in mind ("cpu", "sm90", ...).
        objective: "time" or "area".
        report: the compiler's own account, see `explain`.
        covers: the owner of what is compiled once: `tiles`, the tiles of all heads and those of
            the transposed mask. Plans made of this one by `to`, `crop` and copying share it.
        device: where the plan's tensors lie.
        programs: what runs, as tensors, see `program_for`; made when they are first asked for.
    """

    mask: AttentionMask
    head_map: np.ndarray
    dense_heads: np.ndarray
    tiles: TileSet
    target: str
    objective: str
    report: PlanReport
    covers: Covers = dataclasses.field(repr=False)
    device: torch.device
    programs: dict[str, FlatProgram] = dataclasses.field(repr=False)

    @classmethod
    def create(
        cls,
        mask: AttentionMask,
        head_map: np.ndarray,
        dense_heads: np.ndarray,
        tiles: TileSet,
        *,
        target: str,
        objective: str,
        report: PlanReport,
        whole: Covers | None = None,
    ) -> AttentionPlan:
        """A plan on the CPU; `whole` are the covers of the plan that it is cropped from."""
        from sparsebert.compiler.covers import Covers, aim_of

        firsts = [head.heads[0] for head in report.per_head]
        covers = Covers(mask, firsts, tiles, ~dense_heads, aim_of(report, head_map), whole)
        return cls(
            mask=mask,
            head_map=head_map,
            dense_heads=dense_heads,
            tiles=tiles,
            target=target,
            objective=objective,
            report=report,
            covers=covers,
            device=torch.device("cpu"),
            programs={},
        )

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
        return f"{self.mask.fingerprint}-{self.target}-{self.objective}-{calls}"

    @property
    def transposed(self) -> TileSet:
        """Tiles of the transposed mask, all heads: key rows, gathered queries; for dK and dV."""
        return self.covers.transposed

    def to(self, device: torch.device | str) -> AttentionPlan:
        """The same plan with its tensors on `device`."""
        with untraced():
            device = torch.empty(0, device=device).device  # "cuda" is its current one
            if device == self.device:
                return self
            made = list(self.programs.items())
            programs = {name: program.to(device) for name, program in made}
        return dataclasses.replace(self, device=device, programs=programs)

    def without_programs(self) -> AttentionPlan:
        """The same plan that runs nothing yet, and shares what was compiled."""
        return dataclasses.replace(self, programs={})

    def buffers(self) -> Iterator[np.ndarray | torch.Tensor]:
        """The arrays and tensors that the plan keeps alive."""
        yield from (self.head_map, self.dense_heads)
        yield from self.covers.arrays()
        for program in list(self.programs.values()):
            yield from program.tensors

    def __deepcopy__(self, memo: dict[int, Any]) -> AttentionPlan:
        return self  # a value that does not change

    def program_for(self, backend: str) -> FlatProgram:
        """What runs for a backend.

        "auto": every head on the route that the plan chose, by the torch executor; "mixed": the
        same with the tiles in the kernels; "torch": all heads in tiles, by the torch executor;
        "triton": all heads in tiles, in the kernels; "dense": all heads dense.
        """
        if torch.compiler.is_compiling():  # Dynamo runs this without looking into it
            _make_program(self, backend)
            program: FlatProgram = getattr(self, _SEEN_BY_DYNAMO + backend)
            return program
        if backend not in self.programs:
            self.make_program(backend)
        return self.programs[backend]

    def prepare(self, backend: str) -> None:
        """Make ahead what calls with a backend run where the plan lies."""
        on_gpu = self.device.type == "cuda" and backend == "auto"
        self.make_program("mixed" if on_gpu else backend)

    def make_program(self, backend: str) -> None:
        """Make what `program_for` gives, on the plan's device, if that is not done yet."""
        if backend not in self.programs:
            same = self._same_program(backend)
            if same is not None:
                self.programs[backend] = self.program_for(same)
                return
            with untraced():
                self.programs[backend] = self._build_program(backend).to(self.device)
            has_grown(self)

    def _same_program(self, backend: str) -> str | None:
        """The backend whose program this one shares, if any."""
        if backend == "torch" and not self.dense_heads.any():
            return "auto"
        if backend == "mixed" and self.dense_heads.all():
            return "auto"
        if backend == "mixed" and not self.dense_heads.any():
            return "triton"
        return None

    def _build_program(self, backend: str) -> FlatProgram:
        if backend == "mixed":
            dense = from_tensors(*self.program_for("auto")).without_tiles()
            return mixed_program(dense, self._kernel_program(only_tiled=True))
        if backend == "triton":
            return self._kernel_program(only_tiled=False)
        if backend == "dense":
            dense_heads, tiles = np.ones_like(self.dense_heads), self.tiles
        elif backend == "auto":
            dense_heads, tiles = self.dense_heads, self.tiles
        else:
            dense_heads, tiles = np.zeros_like(self.dense_heads), self.covers.every
        return build_program(self.mask, self.head_map, dense_heads, tiles).flatten()

    def _kernel_program(self, *, only_tiled: bool) -> FlatProgram:
        from sparsebert.kernels.program import build_program as build_kernel_program

        built = build_kernel_program(self, only_tiled=only_tiled)
        return FlatProgram(built.arrays, [TRITON, *built.sizes])

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
        from sparsebert.compiler.compile import crop_plan

        mask = self.mask.crop(q_len, kv_len)
        return self if mask.shape == self.mask.shape else crop_plan(self, mask)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan, without its mask, to one safetensors file; see `load`."""
        save_plan(self, path)

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
        return load_plan(path, mask)

    def dense(self) -> torch.Tensor:
        """The mask that the plan executes, rebuilt from its tiles: bool [H, N, M] on the CPU."""
        distinct = self.tiles.dense()
        for u in np.flatnonzero(self.dense_heads):
            head = int(np.flatnonzero(self.head_map == u)[0])
            distinct[u] = self.mask.head(head).dense()[0, 0].numpy()
        return torch.from_numpy(distinct[self.head_map])

    def explain(self) -> PlanReport:
        """What the plan executes, what that should cost, and why it was chosen.

        In a notebook the report shows itself as a table with pictures of the tiles.
        """
        return self.report.with_pictures(self._tiles_html)

    def _tiles_html(self) -> str:
        from sparsebert.compiler.plan_html import tiles_html

        return tiles_html(self)

    def _repr_html_(self) -> str:
        from sparsebert.compiler.plan_html import plan_html

        return plan_html(self)

    def __repr__(self) -> str:
        return (
            f"AttentionPlan({self.num_heads} heads, {self.q_len} x {self.kv_len}, "
            f"density {self.report.density:.4f}, executed {self.report.executed_fraction:.4f}, "
            f"target {self.target!r}, device {str(self.device)!r})"
        )


_SEEN_BY_DYNAMO = "_program_"
"""Begins the attributes of a plan with programs that torch.compile asked for.

Dynamo reads an attribute when it comes to it, but a dict once: it would miss what is made later.
"""


@constant_in_graphs
def _make_program(plan: AttentionPlan, backend: str) -> None:
    plan.make_program(backend)
    vars(plan)[_SEEN_BY_DYNAMO + backend] = plan.programs[backend]
