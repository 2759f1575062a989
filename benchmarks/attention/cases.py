"""The cases of the attention benchmark: one table for every machine.

A case is one mask at one shape, dtype and direction. `select` gives those that a machine runs:
a GPU gets batches of a constant number of tokens, a CPU one sequence and fewer, shorter cases.
Cases come in groups, so that each group can be run by itself.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import TypeVar

from benchmarks.harness import named_masks
from sparsebert.masks import AttentionMask

FORWARD, BOTH = "forward", "forward + backward"
DIRECTIONS = (FORWARD, BOTH)
DEVICES, TIERS = ("cpu", "cuda"), ("quick", "full")
TOKENS = 32768  # tokens of a batch on a GPU
DROPOUT, PADDING = 0.1, 0.25
HALF_PADDED = 0.5

PAPER = ("star", "longformer", "log_sparse", "strided", "fixed", "bigbird")
"""The patterns that the SparseBERT paper compares, in `sparsebert.masks.patterns`."""
OTHERS = (
    "sliding_window",
    "dilated_window",
    "block_local",
    "causal",
    "neighborhood_2d",
    "random",
)
NO_GAIN = ("dense", named_masks.NO_DIAGONAL, named_masks.RANDOM)
"""Masks that no kernel can make much faster; a plan should cost nothing there."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Shape:
    """The attention of a model.

    Attributes:
        name: the model.
        heads, dim: attention heads, and their size.
    """

    name: str
    heads: int
    dim: int


BERT_BASE = Shape("BERT-base", 12, 64)
BERT_LARGE = Shape("BERT-large", 16, 64)
MINILM = Shape("MiniLM", 12, 32)
VIT_LARGE = Shape("ViT-L", 16, 64)
WIDE_HEADS = Shape("D = 128 model", 16, 128)
VIT_LENGTHS = (577, 1025)  # 24 x 24 and 32 x 32 patches and [CLS]


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        group: which part of the benchmark it belongs to.
        shape: the model that heads and dim are taken from.
        batch, heads, length, dim: q, k and v are [batch, heads, length, dim].
        mask: its name in `benchmarks.harness.named_masks`.
        direction: "forward" or "forward + backward".
        dtype: "float32", "bfloat16" or "float16".
        dropout: probability to drop.
        padding: mean share of padded keys; 0 means no key mask at all.
    """

    group: str
    shape: str
    batch: int
    heads: int
    length: int
    dim: int
    mask: str
    direction: str
    dtype: str
    dropout: float = 0.0
    padding: float = 0.0

    @property
    def key(self) -> tuple[str, ...]:
        """What tells this case from all others, as text: the CSV's columns of the same names."""
        return tuple(str(value) for value in dataclasses.astuple(self))

    @property
    def trains(self) -> bool:
        """The backward pass is timed too."""
        return self.direction == BOTH

    def __str__(self) -> str:
        extras = f", dropout {self.dropout}" if self.dropout else ""
        extras += f", padding {self.padding}" if self.padding else ""
        return f"{self.group}: {self.mask}, N = {self.length}, {self.direction}{extras}"


KEY = tuple(field.name for field in dataclasses.fields(Case))


def build_mask(case: Case) -> AttentionMask:
    """The case's mask, one layer; NoSuchMask if it is not there."""
    return named_masks.build(case.mask, case.length, case.heads)


def select(device: str, tier: str = "full", groups: tuple[str, ...] = ()) -> tuple[Case, ...]:
    """The cases of a device ("cpu" or "cuda") and tier, of all groups or only some.

    Raises ValueError if there is no such device, tier or group.
    """
    for name, value, known in (("device", device, DEVICES), ("tier", tier, TIERS)):
        if value not in known:
            raise ValueError(f"select: {name} must be one of {', '.join(known)}; got {value!r}")
    if tier == "quick":
        names = ("longformer", named_masks.NO_DIAGONAL)
        found = tuple(_cases(device, "quick", (512, 1024), names))
    else:
        found = tuple(_all_cases(device))
    known_groups = group_names(found)
    for group in groups:
        if group not in known_groups:
            raise ValueError(
                f"select: no group {group!r} for {device}; groups are {', '.join(known_groups)}"
            )
    return tuple(case for case in found if not groups or case.group in groups)


def group_names(cases: tuple[Case, ...]) -> tuple[str, ...]:
    """The groups of some cases, in order."""
    return tuple(dict.fromkeys(case.group for case in cases))


def _all_cases(device: str) -> Iterator[Case]:
    """The cases of a device, group by group in the order of the report."""

    def on(cpu: T, cuda: T) -> T:
        return cpu if device == "cpu" else cuda

    cases = functools.partial(_cases, device)
    no_diagonal = named_masks.NO_DIAGONAL
    yield from cases("paper-short", (128, 512, 1024), PAPER)
    yield from cases("paper-long", on((2048,), (2048, 4096, 8192)), PAPER)
    yield from cases("patterns", on((1024,), (512, 1024, 4096)), OTHERS)
    yield from cases("no-gain", on((128, 512, 1024), (128, 512, 1024, 2048, 4096)), NO_GAIN)
    lengths = on((128, 512, 1024), (128, 512, 1024, 2048))
    yield from cases("learned", lengths, (named_masks.LEARNED_LOOKING,))
    yield from _learned(device)
    for shape in (BERT_LARGE, MINILM, WIDE_HEADS):
        names = ("longformer", "strided", no_diagonal)
        yield from cases("shapes", on((512,), (512, 1024, 4096)), names, shape=shape)
    yield from cases("vit", VIT_LENGTHS, ("neighborhood_2d", no_diagonal), shape=VIT_LARGE)
    # bf16 is what all other cases on a GPU have, fp32 what those on a CPU have. Hardly anybody
    # trains in bf16 on a CPU; without instructions for it torch's backward pass takes seconds.
    names = ("longformer", "log_sparse", no_diagonal)
    if device == "cpu":
        names += (named_masks.LEARNED_LOOKING,)
        yield from cases("dtypes", (128, 512), names, dtype="bfloat16", directions=(FORWARD,))
        yield from cases("dtypes", (512,), ("longformer",), dtype="bfloat16", directions=(BOTH,))
    else:
        for dtype in ("float16", "float32"):
            yield from cases("dtypes", (512, 2048), names, dtype=dtype)
    lengths = on((512,), (512, 2048))
    names = ("star", "longformer", no_diagonal)
    yield from cases("dropout", lengths, names, directions=(BOTH,), dropout=DROPOUT)
    names = ("longformer", "strided", no_diagonal)
    yield from cases("padding", lengths, names, padding=PADDING, batch=2)
    names = on(("longformer",), ("longformer", "strided"))
    for tokens in on((TOKENS,), (TOKENS // 2, TOKENS * 2)):
        yield from cases("batch", lengths, names, batch=4, tokens=tokens)
    if device == "cpu":
        yield from _on_a_cpu()


def _on_a_cpu() -> Iterator[Case]:
    """What a CPU may gain where a GPU does not: short texts, masks of any density, padding; and
    what takes a CPU too long to be timed for every mask.
    """
    cases = functools.partial(_cases, "cpu")
    learned = named_masks.LEARNED_LOOKING
    yield from cases("paper-long", (4096,), ("star", "longformer"), directions=(FORWARD,))
    yield from cases("learned", (2048, 4096), (learned,), directions=(FORWARD,))
    yield from cases("no-gain", (2048, 4096), ("dense",), directions=(FORWARD,))
    names = ("longformer", "strided", learned, "dense")
    yield from cases("tiny", (32, 64), names)
    shares = (f"random {share} %" for share in named_masks.RANDOM_SHARES)
    yield from cases("crossover", (512,), tuple(shares))
    names = ("longformer", "strided", learned, "dense")
    yield from cases("half-padded", (128, 512, 1024), names, padding=HALF_PADDED)


def _learned(device: str) -> Iterator[Case]:
    """Masks that training left behind, at the length and heads that they have."""
    files = named_masks.learned_files()
    for path in files:
        mask = AttentionMask.load(path)
        shape = BERT_BASE if mask.num_heads == 1 else Shape("as learned", mask.num_heads, 64)
        name = named_masks.LEARNED_PREFIX + path.stem
        yield from _cases(device, "learned", (mask.q_len,), (name,), shape=shape)
    if not files:
        yield from _cases(device, "learned", (128,), (named_masks.NONE_LEARNED,))


def _cases(
    device: str,
    group: str,
    lengths: tuple[int, ...],
    names: tuple[str, ...],
    *,
    shape: Shape = BERT_BASE,
    directions: tuple[str, ...] = DIRECTIONS,
    dtype: str | None = None,
    dropout: float = 0.0,
    padding: float = 0.0,
    tokens: int = TOKENS,
    batch: int = 1,
) -> Iterator[Case]:
    """All combinations; `tokens` sets the batch on a GPU, `batch` on the CPU."""
    for length, name, direction in itertools.product(lengths, names, directions):
        yield Case(
            group,
            shape.name,
            batch if device == "cpu" else max(1, tokens // length),
            shape.heads,
            length,
            shape.dim,
            name,
            direction,
            dtype or ("float32" if device == "cpu" else "bfloat16"),
            dropout,
            padding,
        )
