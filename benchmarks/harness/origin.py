"""Where results come from and where they go."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.harness import checkout_stamp

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CARRIED = ROOT / "build" / "gpu_cache"
"""What travels with a checkout to a GPU machine, and git ignores; see `make gpu-cache`."""
COLUMNS = ("processor", "threads", "torch", "sparsebert", "commit", "tree", "date")
"""What `origin` says of a run."""


def out_folder() -> Path:
    """Where the caller wants the results: $OUT, else the committed ones' folder."""
    return Path(os.environ.get("OUT") or RESULTS)


def origin(device: str | None = None) -> dict[str, str]:
    """Machine, versions, commit and date; goes into every row.

    A change to the committed results alone leaves the tree clean. A checkout that was copied
    without git has its commit from the stamp that travels with it.

    Args:
        device: "cpu" or "cuda", what is measured on; None means the GPU if there is one.
    """
    from sparsebert.reporting.provenance import provenance  # which needs torch

    known = provenance(device, checkout=ROOT, results=RESULTS.relative_to(ROOT).as_posix())
    return known | (checkout_stamp.read(CARRIED, ROOT) if known["commit"] == "unknown" else {})
