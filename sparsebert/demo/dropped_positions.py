"""The paper's first claim on this model: how much does the diagonal of the attention matter?

Each experiment forbids about as many positions as a sentence has tokens, in every layer and head,
and nothing else: the diagonal, the left or the right neighbour of each token, the column of a
special token, or positions drawn at random. Sentences are grouped by their exact number of
tokens, so that there is no padding and the number of dropped positions is exact.

The weights stay as they are. The paper trains with the mask in place, which can only help.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from typing import Any

import torch

from sparsebert.demo.encoder import Encoder, nearest, pool
from sparsebert.integrations.huggingface.api import densify, sparsify
from sparsebert.masks import AttentionMask
from sparsebert.support.progress import Progress

_FEWEST = 16  # sentences, however little time there is

SHORTEST, LONGEST = 16, 32  # tokens of a sentence, [CLS] and [SEP] included
DROPS = {
    "diagonal": "the diagonal, j = i",
    "left": "left neighbours, j = i - 1",
    "right": "right neighbours, j = i + 1",
    "cls": "column of [CLS]",
    "sep": "column of [SEP]",
    "random": "random positions, j != i",
}


def choose(token_ids: list[list[int]], count: int) -> list[int]:
    """Indices of `count` sentences of `SHORTEST` to `LONGEST` tokens, evenly from the whole text.

    All of them if there are fewer.
    """
    suitable = [i for i, ids in enumerate(token_ids) if SHORTEST <= len(ids) <= LONGEST]
    count = min(count, len(suitable))
    return [suitable[place * len(suitable) // count] for place in range(count)]


def dropped(kind: str, length: int, seed: int = 0) -> torch.Tensor:
    """The mask of one experiment, bool [length, length], False where attention is dropped."""
    kept = torch.ones(length, length, dtype=torch.bool)
    token = torch.arange(length)
    if kind == "diagonal":
        kept[token, token] = False
    elif kind == "left":
        kept[token[1:], token[:-1]] = False
    elif kind == "right":
        kept[token[:-1], token[1:]] = False
    elif kind == "cls":
        kept[:, 0] = False
    elif kind == "sep":
        kept[:, -1] = False
    elif kind == "random":
        generator = torch.Generator().manual_seed(1000 * seed + length)
        others = torch.nonzero(~torch.eye(length, dtype=torch.bool))
        drawn = others[torch.randperm(len(others), generator=generator)[:length]]
        kept[drawn[:, 0], drawn[:, 1]] = False
    else:
        raise ValueError(f"dropped: kind must be one of {', '.join(DROPS)}, got {kind!r}")
    return kept


def embed(
    encoder: Encoder, sentences: list[list[int]], kind: str | None, seed: int = 0
) -> torch.Tensor:
    """Embeddings [K, E] of tokenized sentences; `kind` is one of `DROPS`, None drops nothing."""
    by_length = defaultdict(list)
    for index, sentence in enumerate(sentences):
        by_length[len(sentence)].append(index)
    embeddings = torch.empty(len(sentences), encoder.model.config.hidden_size)
    for length, indices in by_length.items():
        ids = torch.tensor([sentences[index] for index in indices])
        if kind is not None:
            sparsify(encoder.model, AttentionMask.from_dense(dropped(kind, length, seed)))
        with torch.inference_mode():
            hidden = encoder.model(ids).last_hidden_state
        embeddings[indices] = pool(hidden, torch.ones_like(ids, dtype=torch.bool))
    if kind is not None:
        densify(encoder.model)
    return embeddings


def measure(
    encoder: Encoder,
    sentences: list[list[int]],
    dense: torch.Tensor,
    seeds: int,
    seconds: float = math.inf,
) -> list[dict[str, Any]]:
    """One row for each experiment, and one for each seed of the random one.

    `dense` are the embeddings with nothing dropped. "moved" is the mean of 1 - cosine to them,
    "changed" the share of sentences whose nearest neighbour is another one than before. If all
    sentences would take longer than `seconds`, fewer are taken, evenly from the whole.
    """
    runs = [(kind, seed) for kind in DROPS for seed in range(seeds if kind == "random" else 1)]
    rows: list[dict[str, Any]] = []
    with Progress("dropped positions", len(runs), "experiments") as progress:
        started = time.perf_counter()
        first = embed(encoder, sentences, *runs[0])
        enough = affordable(len(sentences), len(runs), time.perf_counter() - started, seconds)
        chosen = [place * len(sentences) // enough for place in range(enough)]
        sentences, dense = [sentences[place] for place in chosen], dense[chosen]
        before = nearest(dense)
        for kind, seed in runs:
            after = first[chosen] if not rows else embed(encoder, sentences, kind, seed)
            rows.append(
                {
                    "kind": kind,
                    "dropped": DROPS[kind],
                    "seed": seed,
                    "sentences": len(sentences),
                    "moved": (1.0 - (after * dense).sum(-1)).mean().item(),
                    "changed": (nearest(after) != before).double().mean().item(),
                }
            )
            progress.update()
    return rows


def affordable(count: int, runs: int, first: float, seconds: float) -> int:
    """How many of `count` sentences all runs have time for, if the first took `first` seconds."""
    if first * runs <= seconds:
        return count
    return max(min(count, _FEWEST), int(count * seconds / (first * runs)))


def average_random(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the seeds of the random experiment averaged, and their range added."""
    averaged = []
    for kind in DROPS:
        group = [row for row in rows if row["kind"] == kind]
        moved, changed = ([row[key] for row in group] for key in ("moved", "changed"))
        averaged.append(
            {
                "dropped": DROPS[kind] + (f", {len(group)} draws" if kind == "random" else ""),
                "kind": kind,
                "moved": sum(moved) / len(group),
                "moved_range": (min(moved), max(moved)),
                "changed": sum(changed) / len(group),
                "changed_range": (min(changed), max(changed)),
            }
        )
    return averaged


def conclusion(averaged: list[dict[str, Any]]) -> str:
    """What the numbers say about the diagonal, in words."""
    by_kind = {row["kind"]: row for row in averaged}
    diagonal = by_kind["diagonal"]
    clauses = []
    for kind, name in (
        ("random", "random positions"),
        ("left", "left neighbours"),
        ("right", "right neighbours"),
        ("cls", "the [CLS] column"),
        ("sep", "the [SEP] column"),
    ):
        low, high = by_kind[kind]["moved_range"]
        if low <= diagonal["moved"] <= high:
            clauses.append(f"within the range of {name}")
        else:
            ratio = diagonal["moved"] / by_kind[kind]["moved"]
            clauses.append(f"{ratio:.1f} times {name}")
    at_random = by_kind["random"]["changed"]
    return (
        f"Dropping the diagonal moves the embeddings by {diagonal['moved']:.4f}: "
        f"{', '.join(clauses)}. {diagonal['changed']:.0%} of the sentences get another nearest "
        f"neighbour; with random positions dropped, {at_random:.0%}. (The paper, on models that "
        "train with the mask, ranks the diagonal lowest, neighbours and special tokens highest.)"
    )
