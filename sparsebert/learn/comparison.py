"""What the masks are compared by: losses at equal sparsity, and speed, predicted and measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsebert.learn import speed
from sparsebert.learn.phases import DENSE, LEARNED, Tuned
from sparsebert.learn.settings import ATTENTION
from sparsebert.masks import AttentionMask
from sparsebert.reporting.timing import Spread


def comparison(
    masks: Mapping[str, AttentionMask],
    tuned: Mapping[str, Tuned],
    times: Mapping[str, Mapping[str, Spread]],
    calls: speed.Calls,
    guessing: float,
) -> list[dict[str, Any]]:
    """One row for each mask, and one for none, best loss first.

    "kept" is how much of what dense attention gains over `guessing`, a loss, is left.
    """
    learned = tuned[LEARNED].after
    gained = guessing - tuned[DENSE].after.mean().item()
    rows = []
    for name, result in tuned.items():
        difference = result.after - learned
        row: dict[str, Any] = {
            "mask": name,
            "kind": _kind(name),
            "parameters": "",
            "sparsity": 0.0,
            "loss_swapped_in": result.before.mean().item(),
            "loss": result.after.mean().item(),
            "kept": (guessing - result.after.mean().item()) / gained if gained > 0.0 else 0.0,
            "difference": difference.mean().item(),
            "difference_error": difference.std().item() / len(difference) ** 0.5,
            "executed": 1.0,
            "predicted": 1.0,
            f"predicted_{speed.GPU}": 1.0,
            "measured": "",
            "over_masked": "",
            "sparse_ms": "",
            "masked_ms": "",
            "dense_ms": "",
        }
        if name in masks:
            mask = masks[name]
            here = speed.predicted(mask, calls)
            row |= {
                "parameters": _parameters(mask),
                "sparsity": mask.sparsity,
                "executed": here["executed"],
                "predicted": here["speedup"],
                f"predicted_{speed.GPU}": speed.predicted(mask, calls, speed.GPU)["speedup"],
                **times[name],
            }
        rows.append(row)
    return sorted(rows, key=lambda row: row["loss"])


def _kind(name: str) -> str:
    if name in (DENSE, LEARNED):
        return name
    return "measured" if name == ATTENTION else "hand-made"


def _parameters(mask: AttentionMask) -> str:
    hidden = ("pattern", "seq_len", "seed", "num_heads", "density")
    settings = {k: v for k, v in mask.provenance.items() if k not in hidden}
    if "dam" in settings:
        return str(settings["dam"]["structure"])
    return ", ".join(f"{name} {value}" for name, value in sorted(settings.items()))
