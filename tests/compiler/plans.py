"""Plans for a backend that a test names, whichever the machine at hand would be planned for."""

from __future__ import annotations

from typing import Any

from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan, compile_for_backend

KINDS = (("cpu", "torch"), ("cpu", "native"), ("sm90", "triton"))
"""Targets and backends: tiles alone, tiles with single entries beside them, and on a GPU."""


def tiles_plan(mask: AttentionMask, *, target: str = "cpu", **how: Any) -> AttentionPlan:
    """A plan that covers everything with tiles."""
    backend = "torch" if target == "cpu" else "triton"
    return compile_for_backend(mask, backend, target=target, **how)


def singles_plan(mask: AttentionMask, **how: Any) -> AttentionPlan:
    """A plan with single entries beside tiles of 16 rows."""
    return compile_for_backend(mask, "native", target="cpu", **how)
