"""Rows of what compilers make of the kernels: of which kernels, and whether they will do."""

from __future__ import annotations

import ast
import hashlib
from typing import Any

from benchmarks.harness.origin import ROOT
from sparsebert.kernels.configs import TILE_KERNELS, shared_limit

_SOURCES = (
    *("layout", "philox", "softmax", "primitives", "work_item"),
    *TILE_KERNELS,
    "merge",
)


def is_bad(row: dict[str, Any]) -> bool:
    """Whether it does not compile or fit, spills in its loops, or has a hazard."""
    if row["error"]:
        return True
    faults = int(row["loop_spills"]) + int(row["hazards"])
    return faults > 0 or int(row["shared_bytes"]) > shared_limit(row["arch"])


def kernels_fingerprint() -> str:
    """A hash of what the kernels do: of their syntax trees without docstrings."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        tree = ast.parse((ROOT / "kernels" / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            if documented and ast.get_docstring(node):
                node.body = node.body[1:]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:12]
