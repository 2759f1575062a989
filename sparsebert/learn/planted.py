"""A task whose right mask is known: many weak votes that draw the attention, few needed positions.

A sequence has N tokens. At N / 8 fixed positions stand *votes* for one topic of the sequence, each
of them right in 7 cases of 10. All others are *content*, drawn at random. What is asked for at
each position i, for every head h, is the content at its *partner* of that head, `partners[h, i]`,
which may be anywhere in the sequence; and the topic.

The model comes with its weights (`planted_model`), so that masks can be compared at once: in each
head, a position attends to every vote more than to its partner, five times as much on average.
So average attention sees the votes and not the partner, although a vote more or less hardly
matters, and without the partner all is lost. Nor do gradients of the dense model tell: it is sure
of what it reads from the partner, and then they vanish.

    >>> from sparsebert.learn.planted import PlantedTask
    >>> task = PlantedTask(seq_len=64)
    >>> task.needed().shape, task.training_set(4).batch(range(4))["labels"].shape
    ((1, 2, 64, 64), torch.Size([4, 64]))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch.utils.data import Dataset

from sparsebert.masks import AttentionMask
from sparsebert.support import checks

HEADS = 2
VALUES = 4
"""A topic, and a content, is one of so many."""
CODE = 32
"""Numbers that tell positions apart, in the model."""
_RIGHT = 0.7  # of the votes


class PlantedSequences(Dataset[dict[str, torch.Tensor]]):
    """Sequences of a `PlantedTask`; item i, always the same, has "input_ids" and "labels", [N].

    Args:
        task: where votes and partners are.
        length: number of items.
        start: the number of the first one.
        stream: 0 for training, 1 for validation; they share no sequence.
    """

    def __init__(self, task: PlantedTask, length: int, start: int = 0, stream: int = 0) -> None:
        self.task = task
        self.length = checks.integer("PlantedSequences", "length", length, 1)
        self.start = start
        self.stream = stream

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: SupportsIndex) -> dict[str, torch.Tensor]:
        i = index.__index__()
        if not 0 <= i < self.length:
            raise IndexError(f"PlantedSequences: item {i} of {self.length}")
        # Of a seed torch takes the lower 32 bits: numbers far apart for neighbouring items.
        mixed = (2 * self.task.seed + self.stream) * 0x9E3779B97F4A7C15
        mixed = (mixed + (self.start + i) * 0xBF58476D1CE4E5B9) % 2**63
        generator = torch.Generator().manual_seed(mixed)
        task = self.task
        topic = int(torch.randint(VALUES, (), generator=generator))
        tokens = torch.randint(VALUES, (task.seq_len,), generator=generator)
        right = torch.rand(len(task.votes), generator=generator) < _RIGHT
        tokens[task.votes] = torch.where(right, topic, tokens[task.votes])
        labels = torch.full_like(tokens, topic)
        for partners in task.partners:
            labels = labels * VALUES + tokens[partners]
        tokens += VALUES
        tokens[task.votes] -= VALUES
        return {"input_ids": tokens, "labels": labels}

    def batch(self, items: Sequence[int]) -> dict[str, torch.Tensor]:
        """Several items, stacked: "input_ids" and "labels", int64 [B, N]."""
        rows = [self[i] for i in items]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@dataclasses.dataclass
class PlantedTask:
    """Where votes and partners are, the sequences, and the model that knows them.

    Args:
        seq_len: N, at least 32.
        seed: of the places, of the sequences, and of the weights that decide nothing.
        validated: sequences for validation.

    Attributes:
        votes: positions of the votes, sorted, int64 [N / 8].
        partners: the position that each one needs, int64 [H, N]; never a vote.
        codes: fp32 [N, 32], +1 and -1, by which the model tells positions apart.
        validation: always the same sequences.

    Raises:
        TypeError, ValueError: fewer than 32 positions.
    """

    seq_len: int = 128
    seed: int = 0
    validated: int = 64

    def __post_init__(self) -> None:
        n = checks.integer("PlantedTask", "seq_len", self.seq_len, 32)
        generator = torch.Generator().manual_seed(self.seed)
        places = torch.randperm(n, generator=generator)
        self.votes = places[: n // 8].sort().values
        content = places[n // 8 :]
        # Each content position is the partner of one or two others in each head.
        self.partners = torch.stack(
            [
                torch.cat([torch.randperm(len(content), generator=generator)] * 2)[:n]
                for _ in range(HEADS)
            ]
        )
        self.partners = content[self.partners]
        self.codes = self._drawn_codes(generator)
        self.validation = PlantedSequences(self, self.validated, stream=1)

    def training_set(self, length: int, start: int = 0) -> PlantedSequences:
        """`length` sequences, from number `start` on."""
        return PlantedSequences(self, length, start)

    def needed(self) -> AttentionMask:
        """The positions without which all is lost, one a row: a mask [1, H, N, N]."""
        bits = torch.zeros(HEADS, self.seq_len, self.seq_len, dtype=torch.bool)
        bits.scatter_(2, self.partners[..., None], True)
        return AttentionMask.from_dense(bits[None].numpy())

    def kept(self, mask: AttentionMask) -> float:
        """The share of the needed positions that a mask of one layer keeps."""
        bits = torch.as_tensor(mask.dense())
        bits = bits.expand(1, HEADS, self.seq_len, self.seq_len)[0]
        return bits.gather(2, self.partners[..., None]).float().mean().item()

    def __str__(self) -> str:
        return (
            f"a planted task: at every position the content at {HEADS} others is asked for, one "
            f"for each head, and what most of {len(self.votes)} votes say; the model's weights "
            "are written down"
        )

    @property
    def guessing(self) -> float:
        """The loss of guessing, in nats a position."""
        return (1 + HEADS) * math.log(VALUES)

    def _drawn_codes(self, generator: torch.Generator) -> torch.Tensor:
        """A code of +1 and -1 for each position, fp32 [N, 32], as many of one as of the other.

        Codes of content are orthogonal to one that those of votes hardly differ from, so that
        votes get much the same attention from all positions.
        """
        half = CODE // 2
        signs = torch.tensor([1.0, -1.0]).repeat(half // 2)
        codes = torch.stack(
            [
                torch.cat([signs[torch.randperm(half, generator=generator)] for _ in range(2)])
                for _ in range(self.seq_len)
            ]
        )
        for vote in self.votes.tolist():
            codes[vote] = torch.cat([torch.ones(half), -torch.ones(half)])
            first, second = torch.randint(half, (2,), generator=generator).tolist()
            codes[vote, first], codes[vote, half + second] = -1.0, 1.0
        return codes
