"""An attention plan: how to run one layer's mask.

A plan is a frozen value. For every *distinct* head of the mask it holds a list of tiles, or the
decision that the head runs dense. `sparsebert.compile_plan` makes plans,
`sparsebert.sparse_attention` runs them, `plan.explain()` says what was chosen and why.
"""

from __future__ import annotations

import dataclasses
import functools
import os

import numpy as np
import torch

from sparsebert.executor.program import TRITON, FlatProgram, build_program
from sparsebert.masks import AttentionMask
from sparsebert.planfile import load_plan, save_plan
from sparsebert.report import PlanReport
from sparsebert.tiles import TileSet


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
        programs: what runs, as tensors on one device, by backend; those that are not the plan's
            own choice for the torch executor ("auto") are made when they are first asked for.
    """

    mask: AttentionMask
    head_map: np.ndarray
    dense_heads: np.ndarray
    tiles: TileSet
    target: str
    objective: str
    report: PlanReport
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
    ) -> AttentionPlan:
        """A plan on the CPU, ready for its first call."""
        with torch.inference_mode(False):  # or a later training could not use the tensors
            programs = {"auto": build_program(mask, head_map, dense_heads, tiles).flatten()}
        return cls(mask, head_map, dense_heads, tiles, target, objective, report, programs)

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
    def device(self) -> torch.device:
        """Where the plan's tensors lie."""
        return self.programs["auto"].tensors[0].device

    @property
    def fingerprint(self) -> str:
        """Identifies the mask and everything that shaped the plan."""
        calls = f"d{self.report.head_dim}-t{self.report.threads}-c{self.report.copies}"
        return f"{self.mask.fingerprint}-{self.target}-{self.objective}-{calls}"

    @functools.cached_property
    def transposed(self) -> TileSet:
        """Tiles of the transposed mask, all heads: key rows, gathered queries; for dK and dV."""
        from sparsebert.compiler import compile_tiles

        return compile_tiles(self, transposed=True)

    def to(self, device: torch.device | str) -> AttentionPlan:
        """The same plan with its tensors on `device`."""
        if torch.empty(0, device=device).device == self.device:  # "cuda" is its current one
            return self
        with torch.inference_mode(False):
            programs = {name: program.to(device) for name, program in self.programs.items()}
        return dataclasses.replace(self, programs=programs)

    def program_for(self, backend: str) -> FlatProgram:
        """What runs for backend "auto", "torch" (tiles only), "dense" or "triton" (kernels)."""
        if backend not in self.programs:
            with torch.inference_mode(False):
                self.programs[backend] = self._build_program(backend).to(self.device)
        return self.programs[backend]

    def _build_program(self, backend: str) -> FlatProgram:
        if backend == "dense":
            every = np.ones_like(self.dense_heads)
            return build_program(self.mask, self.head_map, every, self.tiles).flatten()
        if backend == "triton":
            from sparsebert.kernels.program import build_program as build_kernel_program

            built = build_kernel_program(self)
            return FlatProgram(built.arrays, [TRITON, *built.sizes])
        if not self.dense_heads.any():
            return self.programs["auto"]
        from sparsebert.compiler import compile_tiles

        none = np.zeros_like(self.dense_heads)
        return build_program(self.mask, self.head_map, none, compile_tiles(self)).flatten()

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
        from sparsebert.compiler import crop_plan

        mask = self.mask.crop(q_len, kv_len)
        return self if mask.shape == self.mask.shape else crop_plan(self, mask)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan, without its mask, to one safetensors file; see `load`."""
        save_plan(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], mask: AttentionMask) -> AttentionPlan:
        """Read the plan of `mask` (one layer) from a file that `save` wrote.

        It is checked in full: the file's sums, all indices, and that the tiles cover exactly the
        entries of `mask`. Raises FileNotFoundError, or `sparsebert.planfile.PlanFileError` (a
        ValueError) that says what is wrong; then compile the mask again.

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
        """What the plan executes, what that should cost, and why it was chosen."""
        return self.report

    def __repr__(self) -> str:
        return (
            f"AttentionPlan({self.num_heads} heads, {self.q_len} x {self.kv_len}, "
            f"density {self.report.density:.4f}, executed {self.report.executed_fraction:.4f}, "
            f"target {self.target!r}, device {str(self.device)!r})"
        )
