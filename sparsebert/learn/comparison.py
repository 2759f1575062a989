"""What the masks are compared by: losses at equal sparsity, and speed, predicted and measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsebert.learn import speed
from sparsebert.learn.phases import DENSE, LEARNED, Tuned
from sparsebert.masks import AttentionMask
from sparsebert.reporting.timing import Spread


def comparison(
    masks: Mapping[str, AttentionMask],
    tuned: Mapping[str, Tuned],
    times: Mapping[str, Mapping[str, Spread]],
    calls: speed.Calls,
) -> list[dict[str, Any]]:
    """One row for each mask, and one for none, best loss first."""
    learned = tuned[LEARNED].after
    rows = []
    for name, result in tuned.items():
        difference = result.after - learned
        row: dict[str, Any] = {
            "mask": name,
            "kind": name if name in (DENSE, LEARNED) else "hand-made",
            "parameters": "",
            "sparsity": 0.0,
            "loss_swapped_in": result.before.mean().item(),
            "loss": result.after.mean().item(),
            "difference": difference.mean().item(),
            "difference_error": difference.std().item() / len(difference) ** 0.5,
            "executed": 1.0,
            "predicted": 1.0,
            f"predicted_{speed.GPU}": 1.0,
            "measured": "",
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


def _parameters(mask: AttentionMask) -> str:
    hidden = ("pattern", "seq_len", "seed", "num_heads", "density")
    settings = {k: v for k, v in mask.provenance.items() if k not in hidden}
    if "dam" in settings:
        return str(settings["dam"]["structure"])
    return ", ".join(f"{name} {value}" for name, value in sorted(settings.items()))
