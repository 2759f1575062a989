"""What `gpu_check` checks: the cases of its gate and of its wide matrix, in order."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from benchmarks.attention import cases
from benchmarks.attention.cases import BERT_BASE, PAPER, TOKENS
from benchmarks.gpu.gpu_rows import BY_TIME
from benchmarks.harness import named_masks
from benchmarks.harness.named_masks import LEARNED_LOOKING, LEARNED_PREFIX, NO_DIAGONAL
from benchmarks.harness.rows import Row
from sparsebert.tiles.format import HEIGHTS

TIME, AREA = BY_TIME, "by area"
PLAIN, KEY_MASK, DROPOUT, GQA = "plain", "key mask", "dropout", "gqa"
LARGE = "large scores"
ALL = "key mask, dropout, gqa, LSE"
FEATURES = (PLAIN, KEY_MASK, DROPOUT, GQA, LARGE, ALL)
BAND = "band"
DTYPES = ("bfloat16", "float16", "float32")
HEAD_DIMS = (64, 128, 32, 16, 8, 40, 72, 80, 96, 256)
BATCH, HEADS = 2, 4

TIMED_LENGTHS = (4096, 2048, 512, 1024)
"""Of the timings, in their order; batches are of 32K tokens, 12 heads of 64, in bf16."""
TIMED_MASKS = (*PAPER, NO_DIAGONAL)
SMOKE_LENGTH = 17
"""Of the star that is timed in the interpreter."""

_LONGEST = 2048  # of the benchmark's cases in the wide matrix


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
        heads, batch: query heads, and sequences.
        parts: of a band's columns, each in tiles of its own: a row that several tiles cover is
            put together.
    """

    plan: str
    mask: str
    n: int
    dim: int
    dtype: str
    features: str
    heads: int = HEADS
    batch: int = BATCH
    parts: int = 1

    @property
    def row(self) -> Row:
        """The case as columns."""
        return {"check": "correct", **dataclasses.asdict(self)}


def case_of(row: Row) -> KernelCase:
    """The case that a row is of."""
    return KernelCase(**{field.name: row[field.name] for field in dataclasses.fields(KernelCase)})


def gate_cases() -> list[KernelCase]:
    """What has to be right before anything is timed, what protects most first, each once.

    The plans that are timed, at the shapes that are timed; then every tile height, for the head
    sizes, dtypes and features that models have.
    """
    return _once(timed_cases(), _heights())


def wide_cases() -> list[KernelCase]:
    """All else: the plans of the benchmark; then every height, head size, dtype and feature, for
    together these are all kernels that can be launched.
    """
    known = set(gate_cases())
    return [case for case in _once(_benchmark(), _rest()) if case not in known]


def timed_cases() -> Iterator[KernelCase]:
    """The plans that `gpu_check` times."""
    for mask, n, heads, batch in timed_shapes():
        yield KernelCase(TIME, mask, n, BERT_BASE.dim, DTYPES[0], PLAIN, heads, batch)


def timed_shapes() -> Iterator[tuple[str, int, int, int]]:
    """Mask, length, heads and batch of what is timed, in order."""
    for n, mask in itertools.product(TIMED_LENGTHS, TIMED_MASKS):
        yield mask, n, BERT_BASE.heads, TOKENS // n
        if mask == NO_DIAGONAL and n in (2048, 512):
            yield LEARNED_LOOKING, n, BERT_BASE.heads, TOKENS // n
    try:
        learned = cases.select("cuda", groups=("learned",))
    except ImportError:  # safetensors is not here
        return
    shapes = ((c.mask, c.length, c.heads, c.batch) for c in learned if LEARNED_PREFIX in c.mask)
    yield from dict.fromkeys(shapes)


def smoke_cases() -> list[KernelCase]:
    """A few tiny ones, for Triton's interpreter."""
    return [
        KernelCase(TIME, "star", SMOKE_LENGTH, 64, "bfloat16", PLAIN, heads=1, batch=1),
        KernelCase("16", BAND, 40, 16, "float32", LARGE, parts=2),
        KernelCase(AREA, "longformer", 40, 16, "float32", ALL),
        KernelCase(TIME, "strided", 40, 16, "float16", PLAIN),
    ]


def _once(*cases: Iterable[KernelCase]) -> list[KernelCase]:
    return list(dict.fromkeys(itertools.chain(*cases)))


def _heights() -> Iterator[KernelCase]:
    """Bands in tiles of one height; rows in one part, in two (chained) and in three (merged)."""

    def band(features: str, dtype: str, dim: int, parts: int) -> Iterator[KernelCase]:
        for height in HEIGHTS:
            yield KernelCase(str(height), BAND, 300, dim, dtype, features, parts=parts)

    half, *others = DTYPES
    for parts in (1, 2, 3):
        yield from band(PLAIN, half, 64, parts)
    yield from band(ALL, half, 64, 2)
    for features in (KEY_MASK, DROPOUT, LARGE, GQA):
        yield from band(features, half, 64, 1)
    yield from band(PLAIN, half, 128, 1)
    yield from band(ALL, half, 128, 3)
    for dtype, dim in itertools.product(others, (64, 128)):
        yield from band(PLAIN, dtype, dim, 1)
        yield from band(ALL, dtype, dim, 2)


def _benchmark() -> Iterator[KernelCase]:
    for case in cases.select("cuda"):
        if case.length <= _LONGEST and case.mask != named_masks.NONE_LEARNED:
            features = DROPOUT if case.dropout else KEY_MASK if case.padding else PLAIN
            heads = HEADS
            if case.mask == LEARNED_LOOKING or case.mask.startswith(LEARNED_PREFIX):
                heads = case.heads
            yield KernelCase(TIME, case.mask, case.length, case.dim, case.dtype, features, heads)
    for dtype, features in itertools.product(DTYPES, FEATURES):
        yield KernelCase(TIME, "longformer", 512, 64, dtype, features)


def _rest() -> Iterator[KernelCase]:
    for dim, dtype in itertools.product(HEAD_DIMS, DTYPES):
        for features, height in itertools.product(FEATURES, HEIGHTS):
            parts = 2 if features == ALL else 1
            yield KernelCase(str(height), BAND, 300, dim, dtype, features, parts=parts)
        for mask in ("longformer", "strided", "random"):
            yield KernelCase(AREA, mask, 512, dim, dtype, PLAIN)
            yield KernelCase(AREA, mask, 512, dim, dtype, ALL)
