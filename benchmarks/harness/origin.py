"""Where results come from and where they go."""

from __future__ import annotations

import os
from pathlib import Path

from sparsebert.reporting.provenance import provenance

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = ("processor", "threads", "torch", "sparsebert", "commit", "tree", "date")
"""What `origin` says of a run."""


def out_folder() -> Path:
    """Where the caller wants the results: $OUT, else the committed ones' folder."""
    return Path(os.environ.get("OUT") or RESULTS)


def origin(device: str | None = None) -> dict[str, str]:
    """Machine, versions, commit and date; goes into every row.

    A change to the committed results alone leaves the tree clean.

    Args:
        device: "cpu" or "cuda", what is measured on; None means the GPU if there is one.
    """
    return provenance(device, checkout=ROOT, results=RESULTS.relative_to(ROOT).as_posix())
