"""Where results come from: machine, versions, commit and date; goes into every row and report."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

import torch

from sparsebert import __version__
from sparsebert.machine import processor

CHECKOUT = Path(__file__).resolve().parents[2]
"""Where this package is run from: a checkout, unless it is installed."""


def provenance(
    device: str | None = None, *, checkout: Path = CHECKOUT, results: str | None = None
) -> dict[str, str]:
    """What a measured number depends on besides what was measured.

    Args:
        device: "cpu" or "cuda", what was measured on; None means the GPU if there is one.
        checkout: the folder whose git commit is meant.
        results: a folder in it, "benchmarks/results": changes to it alone leave the tree clean,
            for results do not make the code that made them another.

    Returns "processor", "threads" (of torch), "torch", "sparsebert", "commit", "tree" ("clean" or
    "dirty", by tracked files; both are "unknown" where there is no checkout or no git), "date".

    >>> sorted(provenance("cpu"))
    ['commit', 'date', 'processor', 'sparsebert', 'threads', 'torch', 'tree']
    """
    on_gpu = torch.cuda.is_available() if device is None else device != "cpu"
    sources = ["--", ".", *([] if results is None else [f":!{results}"])]
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no", *sources)
    return {
        "processor": torch.cuda.get_device_name() if on_gpu else processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "sparsebert": __version__,
        "commit": _git(checkout, "rev-parse", "--short", "HEAD") or "unknown",
        "tree": "unknown" if changes is None else "dirty" if changes else "clean",
        "date": datetime.date.today().isoformat(),
    }


def in_words(about: dict[str, str]) -> str:
    """Provenance as a line of a report, without what is unknown."""
    return "; ".join(f"{name} {value}" for name, value in about.items() if value != "unknown")


def _git(checkout: Path, *arguments: str) -> str | None:
    """What git says of the checkout; None outside one, though a folder above it may be one."""
    if not (checkout / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=checkout, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):  # no git here, or none that may look
        return None
    return done.stdout.strip()
