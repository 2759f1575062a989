"""What `gpu_check` checks: the cases, in order."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from benchmarks.attention import cases
from benchmarks.harness import named_masks
from benchmarks.harness.rows import Row
from sparsebert.tiles.format import HEIGHTS

TIME, AREA = "by time", "by area"
PLAIN, KEY_MASK, DROPOUT, GQA = "plain", "key mask", "dropout", "gqa"
ALL = "key mask, dropout, gqa, LSE"
FEATURES = (PLAIN, KEY_MASK, DROPOUT, GQA, ALL)
BAND = "band"
DTYPES = ("bfloat16", "float16", "float32")
HEAD_DIMS = (64, 32, 128, 16, 8, 40, 72, 80, 96, 256)
QUICK_MASKS = ("star", "longformer", "strided", "log_sparse", named_masks.RANDOM)
QUICK_SHAPES = ((32, 512), (8, 2048))
"""Batch and length of `gpu_check`'s own timings, 12 heads of 64 in bf16."""

_LONGEST = 2048  # of what is compared in fp64; the benchmark itself checks what is longer
BATCH, HEADS = 2, 4


@dataclasses.dataclass(frozen=True)
class KernelCase:
    """One thing to check, forward and backward.

    Attributes:
        plan: "by time" (the compiler's plan for the card, by way of `sparse_attention`, as a user
            gets it), "by area" (the kernels alone over such a plan) or a tile height (the kernels
            over a band in tiles of that height).
        mask: its name in `benchmarks.harness.named_masks`, or "band".
        n, dim, dtype: length, head size, and the dtype's name in torch.
        features: of `FEATURES`.
        heads: query heads.
    """

    plan: str
    mask: str
    n: int
    dim: int
    dtype: str
    features: str
    heads: int = HEADS

    @property
    def row(self) -> Row:
        """The case as columns."""
        return {"check": "correct", **dataclasses.asdict(self)}


def key_of(row: Row) -> tuple[Any, ...]:
    """What tells a checked case from others."""
    return tuple(row[field.name] for field in dataclasses.fields(KernelCase))


def all_cases() -> list[KernelCase]:
    """Everything, the cheapest and most telling first, each once.

    Tile heights; the plans that this script times; those of the benchmark; then every height,
    head size, dtype and feature, for together these are all kernels that can be launched.
    """
    return list(dict.fromkeys(itertools.chain(_first(), timed_cases(), _benchmark(), _rest())))


def timed_cases() -> Iterator[KernelCase]:
    """The plans that `gpu_check` times."""
    for (_, n), mask in itertools.product(QUICK_SHAPES, QUICK_MASKS):
        yield KernelCase(TIME, mask, n, 64, "bfloat16", PLAIN)


def smoke_cases() -> list[KernelCase]:
    """A few tiny ones, for Triton's interpreter."""
    return [
        KernelCase("16", BAND, 40, 16, "float32", PLAIN),
        KernelCase(AREA, "longformer", 40, 16, "float32", ALL),
        KernelCase(TIME, "strided", 40, 16, "float16", PLAIN),
    ]


def _first() -> Iterator[KernelCase]:
    for features, height in itertools.product((PLAIN, ALL), HEIGHTS):
        yield KernelCase(str(height), BAND, 300, 64, "bfloat16", features)


def _benchmark() -> Iterator[KernelCase]:
    for case in cases.select("cuda"):
        if case.length <= _LONGEST and case.mask != named_masks.NONE_LEARNED:
            features = DROPOUT if case.dropout else KEY_MASK if case.padding else PLAIN
            heads = HEADS
            if case.mask == named_masks.LEARNED_LOOKING or case.mask.startswith(
                named_masks.LEARNED_PREFIX
            ):
                heads = case.heads
            yield KernelCase(TIME, case.mask, case.length, case.dim, case.dtype, features, heads)
    for dtype, features in itertools.product(DTYPES, FEATURES):
        yield KernelCase(TIME, "longformer", 512, 64, dtype, features)


def _rest() -> Iterator[KernelCase]:
    for dim, dtype in itertools.product(HEAD_DIMS, DTYPES):
        for features, height in itertools.product(FEATURES, HEIGHTS):
            yield KernelCase(str(height), BAND, 300, dim, dtype, features)
        for mask in ("longformer", "strided", "random"):
            yield KernelCase(AREA, mask, 512, dim, dtype, PLAIN)
            yield KernelCase(AREA, mask, 512, dim, dtype, ALL)
