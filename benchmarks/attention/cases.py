"""The cases of the attention benchmark: one table for every machine.

A case is one mask at one shape, dtype and direction. `select` gives those that a machine runs:
a GPU gets batches of a constant number of tokens, a CPU one sequence and fewer, shorter cases.
Cases come in groups, so that each group can be run by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from benchmarks.harness import named_masks
from sparsebert.masks import AttentionMask

FORWARD, BOTH = "forward", "forward + backward"
DIRECTIONS = (FORWARD, BOTH)
DEVICES, TIERS = ("cpu", "cuda"), ("quick", "full")
TOKENS = 32768  # tokens of a batch on a GPU
DROPOUT, PADDING = 0.1, 0.25

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
        found = tuple(_quick(device))
    else:
        found = tuple(case for group in _GROUPS.values() for case in group(device))
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


def _cases(
    group: str,
    device: str,
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
    for length in lengths:
        for name in names:
            for direction in directions:
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


def _on(device: str, cpu: tuple[int, ...], cuda: tuple[int, ...]) -> tuple[int, ...]:
    return cpu if device == "cpu" else cuda


def _paper_short(device: str) -> Iterator[Case]:
    yield from _cases("paper-short", device, (128, 512, 1024), PAPER)


def _paper_long(device: str) -> Iterator[Case]:
    group = "paper-long"
    if device == "cuda":
        yield from _cases(group, device, (2048, 4096, 8192), PAPER)
        return
    yield from _cases(group, device, (2048,), PAPER)
    yield from _cases(group, device, (4096,), ("longformer",), directions=(FORWARD,))


def _other_patterns(device: str) -> Iterator[Case]:
    yield from _cases("patterns", device, _on(device, (1024,), (512, 1024, 4096)), OTHERS)


def _no_gain(device: str) -> Iterator[Case]:
    lengths = _on(device, (128, 512, 1024), (128, 512, 1024, 2048, 4096))
    yield from _cases("no-gain", device, lengths, NO_GAIN)


def _learned(device: str) -> Iterator[Case]:
    lengths = _on(device, (128, 512, 1024), (128, 512, 1024, 2048))
    yield from _cases("learned", device, lengths, (named_masks.LEARNED_LOOKING,))
    files = named_masks.learned_files()
    for path in files:
        mask = AttentionMask.load(path)
        shape = BERT_BASE if mask.num_heads == 1 else Shape("as learned", mask.num_heads, 64)
        name = named_masks.LEARNED_PREFIX + path.stem
        yield from _cases("learned", device, (mask.q_len,), (name,), shape=shape)
    if not files:
        yield from _cases("learned", device, (128,), (named_masks.NONE_LEARNED,))


def _shapes(device: str) -> Iterator[Case]:
    names = ("longformer", "strided", named_masks.NO_DIAGONAL)
    for shape in (BERT_LARGE, MINILM, WIDE_HEADS):
        yield from _cases(
            "shapes", device, _on(device, (512,), (512, 1024, 4096)), names, shape=shape
        )


def _vit(device: str) -> Iterator[Case]:
    names = ("neighborhood_2d", named_masks.NO_DIAGONAL)
    yield from _cases("vit", device, VIT_LENGTHS, names, shape=VIT_LARGE)


def _dtypes(device: str) -> Iterator[Case]:
    # bf16 is what all other cases on a GPU have, fp32 what those on a CPU have. Nobody trains in
    # bf16 on a CPU that has no instructions for it, where torch's backward pass takes seconds.
    directions = (FORWARD,) if device == "cpu" else DIRECTIONS
    for dtype in ("bfloat16",) if device == "cpu" else ("float16", "float32"):
        for lengths in _on(device, (512,), (512, 2048)):
            names = ("longformer", "log_sparse", named_masks.NO_DIAGONAL)
            yield from _cases(
                "dtypes", device, (lengths,), names, dtype=dtype, directions=directions
            )


def _dropout(device: str) -> Iterator[Case]:
    names = ("star", "longformer", named_masks.NO_DIAGONAL)
    yield from _cases(
        "dropout", device, _on(device, (512,), (512, 2048)), names,
        directions=(BOTH,), dropout=DROPOUT,
    )  # fmt: skip


def _padding(device: str) -> Iterator[Case]:
    names = ("longformer", "strided", named_masks.NO_DIAGONAL)
    yield from _cases(
        "padding", device, _on(device, (512,), (512, 2048)), names, padding=PADDING, batch=2
    )


def _batch(device: str) -> Iterator[Case]:
    if device == "cpu":
        yield from _cases("batch", device, (512,), ("longformer",), batch=4)
        return
    for tokens in (TOKENS // 2, TOKENS * 2):
        yield from _cases("batch", device, (512, 2048), ("longformer", "strided"), tokens=tokens)


_GROUPS = {
    "paper-short": _paper_short,
    "paper-long": _paper_long,
    "patterns": _other_patterns,
    "no-gain": _no_gain,
    "learned": _learned,
    "shapes": _shapes,
    "vit": _vit,
    "dtypes": _dtypes,
    "dropout": _dropout,
    "padding": _padding,
    "batch": _batch,
}


def _quick(device: str) -> Iterator[Case]:
    yield from _cases("quick", device, (512, 1024), ("longformer", named_masks.NO_DIAGONAL))
