"""What a backend is, and what it is given: the interface behind `sparse_attention`.

A backend makes a program of a plan's schedule once, and runs calls with it, forward and backward.
Everything that all of them would have to do the same way is done above them, in `routing` and
`execution`: which heads run in tiles and which dense, who runs them, what padding must not reach,
which heads share a key head, and in what order and precision results leave.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from sparsebert import dropout
from sparsebert.compiler.schedule import Schedule


class CallKind(NamedTuple):
    """What decides which backends can run a call.

    Attributes:
        device: where the tensors lie: "cpu", "cuda", "meta", ...
        dtype: of q, k and v.
        head_dim: D.
        composed: a transform of torch.func or forward-mode differentiation is at work, which asks
            for operations that torch has all rules for.
    """

    device: str
    dtype: torch.dtype
    head_dim: int
    composed: bool = False


class Call(NamedTuple):
    """One call, or the part of it that a backend runs.

    Attributes:
        q: [B, H, N, D]; k, v: [B, H_kv, M, D] with H a multiple of H_kv; any strides.
        key_mask: bool [B, M], True = a real token; None if nothing is hidden.
        seed: int64 [1], for dropout; None without.
        scale: factor of the scores.
        dropout_p: probability to drop, 0.0 for none.
        heads: int64, which heads of `all_heads` these are, for dropout; None means all.
        all_heads: the heads of the whole call, where `heads` is given.
        wants_lse: the LSE is asked for; else a backend may leave it out.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    key_mask: torch.Tensor | None
    seed: torch.Tensor | None
    scale: float
    dropout_p: float
    heads: torch.Tensor | None = None
    all_heads: int = 0
    wants_lse: bool = True

    def dropout_keys(self) -> torch.Tensor:
        """The Philox key of each batch and head, int64 [B, H]; see `sparsebert.dropout`."""
        assert self.seed is not None
        batch, heads = self.q.shape[:2]
        if self.heads is None:
            return dropout.head_keys(self.seed, batch, heads)
        return dropout.head_keys(self.seed, batch, self.all_heads).index_select(1, self.heads)


class Upstream(NamedTuple):
    """What a backward pass gets beside the call.

    Attributes:
        o, lse: what the forward pass returned, [B, H, N, D] and [B, H, N].
        grad_o: the gradient of o; any strides.
        grad_lse: that of the LSE, or None.
    """

    o: torch.Tensor
    lse: torch.Tensor
    grad_o: torch.Tensor
    grad_lse: torch.Tensor | None


Forward = tuple[torch.Tensor, torch.Tensor]
ForwardAsked = tuple[torch.Tensor, torch.Tensor | None]
"""o and LSE, which may be None where the call does not want it."""
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Backend(abc.ABC):
    """One way to run attention; `sparsebert.backends.registry` knows them by name.

    A module of a backend holds one instance, `BACKEND`. The least that a backend needs are
    `Program`, `lower`, `forward` and `backward`.

    Attributes:
        name: as users write it.
        Program: a NamedTuple of tensors, numbers and tuples of these, see `program`. It travels
            through torch's graphs, so it must hold all that a call needs of the plan.
        picks_heads: a program that is not for all heads names its own, so that the backend takes
            the tensors of all of them, without copies, and leaves zeros (an LSE of -inf) for the
            others. Else it gets the tensors of its heads alone.
        skips_padding: k and v rows that the key mask hides are never read, and their gradients are
            zero. Else such rows are set to zero before, and their gradients after.
        finishes: the results of a program for all heads are as they leave `execution`: in the
            call's dtype, in memory as [B, N, H, D], gradients of query heads that share a key head
            added up, and those of rows that the key mask hides zero.
        composes: it has `compose`; torch.func transforms and second derivatives need that.
        composes_densely: its composed operations take all scores, so that "auto" prefers others
            for calls that need such operations.
    """

    name: ClassVar[str]
    Program: ClassVar[type[Any]]
    picks_heads: ClassVar[bool] = False
    skips_padding: ClassVar[bool] = False
    finishes: ClassVar[bool] = False
    composes: ClassVar[bool] = False
    composes_densely: ClassVar[bool] = False

    def refuses(self, kind: CallKind) -> list[str]:
        """Every reason against running such a call, each to follow "it"; [] if it can.

        It goes by `kind` alone: what "auto" chose is remembered for the next call of the kind.
        A reason says what came, and what to do: "needs CUDA tensors, got cpu; move them".
        """
        return []

    def passed_over(self, kind: CallKind) -> None:  # noqa: B027 - most have nothing to say
        """ "auto" would have preferred it, but it refuses: say so, if a user can do about it."""

    @abc.abstractmethod
    def lower(self, schedule: Schedule, heads: np.ndarray) -> Any:
        """The program of some distinct heads, bool [U], with its tensors on the CPU."""

    @abc.abstractmethod
    def forward(self, call: Call, program: Any) -> ForwardAsked:
        """o [B, H, N, D] in q's dtype and LSE [B, H, N], fp32 or better.

        A query with nothing to attend gives 0 and -inf. Of a call that does not want the LSE
        there may be None.
        """

    @abc.abstractmethod
    def backward(self, call: Call, program: Any, upstream: Upstream) -> Gradients:
        """dq [B, H, N, D], dk and dv [B, H, M, D] of each query head, fp32 or the call's dtype.

        The same bits for the same inputs. Unless the backend `finishes`, those of query heads that
        share a key head are added up by the caller, so there they should be fp32. q and grad_o of
        queries that padding leaves nothing to attend are zero.
        """

    def passes_on(self, program: Any) -> bool:
        """Whether o is rounded between two passes over a row, see `testing.Arithmetic`."""
        return False

    def speed_depends_on(self) -> tuple[str, ...]:
        """What its speed depends on beside processor, torch and threads, to be calibrated by.

        () if plans for it go by the constants alone, see `sparsebert.calibration`.
        """
        return ()

    def runs_directly(self, call: Call, program: Any, *, alone: bool) -> bool:
        """Whether `direct` is quicker than our op for a call without dropout and LSE.

        `alone` if no other backend runs heads of it; the call may have more heads.
        """
        return False

    def direct(self, call: Call, program: Any) -> torch.Tensor:
        """o by operations that torch differentiates itself; see `runs_directly`."""
        raise NotImplementedError(f"backend {self.name!r} does not run calls directly")

    def compose(self, call: Call, program: Any) -> Forward:
        """As `forward`, by operations for which torch has all rules; needs `composes`."""
        raise NotImplementedError(f"backend {self.name!r} has no composed operations")
