"""Documents as tokens: encoded to one length, split by class, and in batches that can be repeated.

>>> import torch
>>> from benchmarks.learned_masks.documents import Batches, Encoded
>>> ids = torch.arange(1, 41).view(8, 5)
>>> encoded = Encoded(ids, torch.full((8,), 5), torch.full((8,), 5))
>>> batches = Batches(encoded, torch.zeros(8, dtype=torch.int64), batch_size=4, seed=1)
>>> batches.batch(1000)["input_ids"].shape  # the same whenever it is asked for
torch.Size([4, 5])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch

from benchmarks.learned_masks.labelled_text import Documents
from sparsebert.support import checks


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """K documents as tokens, each padded or truncated to N.

    Attributes:
        ids: int64 [K, N]: [CLS], tokens, [SEP], then [PAD].
        lengths: int64 [K], tokens that are no padding.
        whole: int64 [K], what lengths would be without truncation.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    whole: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def truncated(self) -> int:
        """How many documents lost their end."""
        return int((self.whole > self.lengths).sum())

    def describe(self) -> str:
        """What was truncated, in a sentence."""
        count, n = self.ids.shape
        lost = 1.0 - int(self.lengths.sum()) / int(self.whole.sum())
        return (
            f"{self.truncated:,} of {count:,} documents ({self.truncated / count:.1%}) are longer "
            f"than {n} tokens and were truncated; {lost:.1%} of all tokens are left out."
        )

    def take(self, rows: torch.Tensor) -> Encoded:
        """Some of the documents, by their places, int64 [R]."""
        return Encoded(self.ids[rows], self.lengths[rows], self.whole[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Places of documents, int64, ascending; no document is in both."""

    train: torch.Tensor
    validation: torch.Tensor


def encode(
    texts: Sequence[str], tokenizer: Any, seq_len: int, *, truncate: bool = True
) -> Encoded:
    """Documents as [CLS], their tokens, [SEP] and padding, N = `seq_len` in all.

    Args:
        texts: one each.
        tokenizer: a transformers tokenizer with [CLS], [SEP] and [PAD].
        seq_len: N, which is what the mask covers; at least 8.
        truncate: whether documents of more tokens lose their ends; `Encoded.describe` says how
            much that is.

    Raises:
        TypeError, ValueError: seq_len out of range; a tokenizer without the special tokens; no
            documents; `truncate` is False and a document is longer than the mask.
    """
    seq_len = checks.integer("encode", "seq_len", seq_len, 8)
    if not texts:
        raise ValueError("encode: texts is empty; give at least one document")
    first, last, padding = (
        _special(tokenizer, name) for name in ("cls_token_id", "sep_token_id", "pad_token_id")
    )
    rows: list[list[int]] = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # it would warn of what is counted here
    )["input_ids"]
    whole = torch.tensor([len(row) + 2 for row in rows])
    longer = int((whole > seq_len).sum())
    if longer and not truncate:
        raise ValueError(
            f"encode: {longer} of {len(rows)} documents are longer than the {seq_len} tokens of "
            f"the mask (document {int(whole.argmax())} has {int(whole.max())}); make a mask for "
            "more, or let them be cut (truncate=True)"
        )
    ids = torch.full((len(rows), seq_len), padding, dtype=torch.int64)
    for target, row in zip(ids, rows, strict=True):
        kept = [first, *row[: seq_len - 2], last]
        target[: len(kept)] = torch.tensor(kept)
    return Encoded(ids, whole.clamp(max=seq_len), whole)


def _special(tokenizer: Any, name: str) -> int:
    value = getattr(tokenizer, name)
    if value is None:
        raise ValueError(
            f"encode: the tokenizer has no {name}; documents need one with [CLS], [SEP] and "
            "[PAD], as encoders have"
        )
    return int(value)


def split(
    documents: Documents, share: float, seed: int = 0, *, classes: Sequence[str] = ()
) -> Split:
    """Put a share of the documents of each class aside for validation.

    At least one document of each class is on each side. Equal texts stay together, so that no
    document is validated that was trained with; therefore the share is that of different texts.

    Args:
        documents: a training set.
        share: for validation, in (0, 1).
        seed: of the choice, which depends on nothing else.
        classes: their names, for messages, and how many there must be; () takes the labels'.

    Raises:
        ValueError: share out of range; labels that are no places among the classes; a class with
            fewer than two different documents.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"split: share must be in (0, 1), got {share}")
    seed = checks.integer("split", "seed", seed, 0)
    if not documents.texts:
        raise ValueError("split: there are no documents")
    _check_labels("split", documents, documents.labels)
    labels = documents.labels.numpy()
    names = tuple(classes) or tuple(map(str, range(labels.max() + 1)))
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"split: labels are places among {len(names)} classes, from 0 to {len(names) - 1}, "
            f"but they go from {labels.min()} to {labels.max()}"
        )
    first = {}  # of each different text, its first place
    owners = np.array([first.setdefault(text, i) for i, text in enumerate(documents.texts)])
    different = owners == np.arange(len(owners))
    generator = np.random.default_rng(seed)
    held_out = np.zeros(len(owners), dtype=bool)
    for label, name in enumerate(names):
        places = np.flatnonzero(different & (labels == label))
        if len(places) < 2:
            raise ValueError(
                f"split: the class {name!r} has {len(places)} different documents, but "
                "training and validation need one each; add some, or leave the class out"
            )
        wanted = min(max(1, round(share * len(places))), len(places) - 1)
        held_out[generator.permutation(places)[:wanted]] = True
    held_out = held_out[owners]
    return Split(*(torch.from_numpy(np.flatnonzero(side)) for side in (~held_out, held_out)))


class Batches:
    """Batches for training: lap after lap through all documents, in an order of its own each time.

    Batch i is a function of the documents, the settings and i alone: a training that is resumed at
    step i sees what it would have seen. What does not fill a last batch is left out of the lap.

    Args:
        encoded: K documents.
        labels: int64 [K].
        batch_size: B, at most K.
        seed: of the order.
        multiple: batches are trimmed to the longest document in them, rounded up to a multiple of
            this; None: always N.
        pool: batches that are filled together with documents of like lengths, so that trimming
            leaves less padding; 1: by chance alone.

    Attributes:
        per_lap: batches in a lap.

    Raises:
        TypeError, ValueError: numbers out of range; more or fewer labels than documents.
    """

    def __init__(
        self,
        encoded: Encoded,
        labels: torch.Tensor,
        batch_size: int,
        *,
        seed: int = 0,
        multiple: int | None = 16,
        pool: int = 1,
    ) -> None:
        _check_labels("Batches", encoded, labels)
        self.encoded, self.labels = encoded, labels
        self.batch_size = checks.integer("Batches", "batch_size", batch_size, 1, len(encoded))
        self.seed = checks.integer("Batches", "seed", seed, 0)
        self.multiple = multiple
        if multiple is not None:
            self.multiple = checks.integer("Batches", "multiple", multiple, 1)
        self.pool = checks.integer("Batches", "pool", pool, 1)
        self.per_lap = len(encoded) // self.batch_size
        self._order = (-1, torch.empty(0))  # the latest lap, and its documents [per_lap, B]

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """Batch `step`, 0 or more: see `gather`."""
        lap, place = divmod(checks.integer("Batches.batch", "step", step, 0), self.per_lap)
        if self._order[0] != lap:
            self._order = (lap, self._order_of(lap))
        return gather(self.encoded, self.labels, self._order[1][place], self.multiple)

    def _order_of(self, lap: int) -> torch.Tensor:
        generator = np.random.default_rng((self.seed, lap))
        order = generator.permutation(len(self.encoded))[: self.per_lap * self.batch_size]
        lengths = self.encoded.lengths.numpy()
        together = self.pool * self.batch_size
        for start in range(0, len(order) if self.pool > 1 else 0, together):
            some = order[start : start + together]
            order[start : start + together] = some[np.argsort(lengths[some], kind="stable")]
        batches = order.reshape(self.per_lap, self.batch_size)
        return torch.from_numpy(generator.permutation(batches) if self.pool > 1 else batches)


def once(
    encoded: Encoded, labels: torch.Tensor, batch_size: int, *, multiple: int | None = 16
) -> Iterator[dict[str, torch.Tensor]]:
    """Every document once, for validation: from the longest to the shortest, the last batch short.

    "index" of a batch (see `gather`) says which ones they are.

    Raises:
        TypeError, ValueError: as `Batches`, but there may be fewer documents than batch_size.
    """
    _check_labels("once", encoded, labels)
    batch_size = checks.integer("once", "batch_size", batch_size, 1)
    order = encoded.lengths.argsort(descending=True, stable=True)
    for rows in order.split(batch_size):
        yield gather(encoded, labels, rows, multiple)


def gather(
    encoded: Encoded, labels: torch.Tensor, rows: torch.Tensor, multiple: int | None
) -> dict[str, torch.Tensor]:
    """The documents at `rows`, int64 [B], as a model takes them.

    Returns "input_ids" int64 [B, n], "attention_mask" bool [B, n] (True = a real token), "labels"
    int64 [B] and "index" int64 [B], which is `rows`. n is the longest document's length, rounded
    up to `multiple`, at most N; N if it is None.
    """
    lengths, n = encoded.lengths[rows], encoded.ids.shape[1]
    if multiple is not None:
        n = min(n, -(-int(lengths.max()) // multiple) * multiple)
    return {
        "input_ids": encoded.ids[rows, :n],
        "attention_mask": torch.arange(n) < lengths[:, None],
        "labels": labels[rows],
        "index": rows,
    }


def _check_labels(where: str, documents: Sized, labels: torch.Tensor) -> None:
    if labels.dtype != torch.int64 or labels.shape != (len(documents),):
        raise ValueError(
            f"{where}: labels must be int64 [{len(documents)}], one for each document, got "
            f"{labels.dtype} {list(labels.shape)}"
        )
