"""The facts about a mask that one wants to see first.

>>> import sparsebert as sb
>>> from sparsebert.masks.summary import summarise
>>> print(summarise(sb.patterns.causal(4)).splitlines()[1])
  density      62.50% allowed, 37.50% forbidden
"""

from __future__ import annotations

import json

from sparsebert.masks import AttentionMask


def summarise(mask: AttentionMask) -> str:
    """Shape, density, diagonal, dead rows and columns, where it comes from: one a line."""
    layers, heads, q_len, kv_len = mask.shape
    densities = []
    diagonal = blind = unseen = 0
    symmetric = q_len == kv_len
    for layer in range(layers):  # a head at a time: a dense mask of all can be gigabytes
        for head in range(heads):
            dense = mask.layer(layer).head(head).dense()[0, 0]
            densities.append(int(dense.sum()) / dense.numel())
            diagonal += int(dense.diagonal().sum())
            blind += int((~dense.any(dim=1)).sum())
            unseen += int((~dense.any(dim=0)).sum())
            symmetric = symmetric and dense.equal(dense.T)
    facts = {
        "shape": f"{layers} layer(s), {heads} head(s), {q_len} queries x {kv_len} keys",
        "density": f"{mask.density:.2%} allowed, {mask.sparsity:.2%} forbidden",
        "diagonal": f"{diagonal / (layers * heads * min(q_len, kv_len)):.2%} of it allowed",
        "symmetric": "yes" if symmetric else "no",
        "dead rows": f"{blind} (queries that attend to nothing)",
        "dead columns": f"{unseen} (keys that nothing attends to)",
        "fingerprint": mask.fingerprint,
        "provenance": json.dumps(mask.provenance) if mask.provenance else "not recorded",
    }
    if layers * heads > 1:
        facts["density"] += f"; by head {min(densities):.2%} to {max(densities):.2%}"
    return "\n".join(f"  {name:<12} {fact}" for name, fact in facts.items())
