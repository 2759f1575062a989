"""What the timing model makes of one row of `kernel_steps.csv`."""

from __future__ import annotations

import functools

import numpy as np

from benchmarks.attention.cases import BERT_BASE, TOKENS
from benchmarks.harness import named_masks
from benchmarks.harness.rows import Row
from benchmarks.predictions.call_model import Side, call_of, side_of
from benchmarks.predictions.gpu_machines import H100
from benchmarks.predictions.kernel_counts import VERSIONS, counts_of
from benchmarks.predictions.launch_model import launch_times
from sparsebert.compiler import bitmatrix
from sparsebert.compiler.cost.launches import SPLIT
from sparsebert.compiler.cover_search import Cover
from sparsebert.compiler.orders import in_order
from sparsebert.compiler.pieces import cut, split_wide
from sparsebert.compiler.pricing import Area
from sparsebert.compiler.shared_tiles import tiles_of

MASK, LENGTH = "longformer", 2048
"""Over this mask, in tiles of the row's height, those over more than SPLIT columns split."""

_BETWEEN = "delta in dq"
"""The version that the steps without one of their own are predicted as."""


@functools.cache
def _side(height: int) -> Side:
    mask = named_masks.build(MASK, LENGTH, BERT_BASE.heads)
    words = bitmatrix.to_words(mask.bits[0, 0])
    piece = cut(words, in_order(np.arange(LENGTH), height), Area().tile, (height,))
    pieces = tuple(split_wide((piece,), SPLIT, LENGTH))
    tiles = tiles_of({0: Cover(MASK, pieces, 0.0)}, 1, LENGTH, LENGTH)
    return side_of(tiles, chained=False)


def predicted_us(row: Row) -> str:
    """Microseconds of the kernel's launches on an H100, 32,768 tokens and 12 heads; "" for a row
    without counts.
    """
    if row["error"]:
        return ""
    kernel, height = row["kernel"], int(row["rows"])
    counts = counts_of([row])[kernel, height]
    designs = {design.name: design for design, _ in VERSIONS}
    design = designs.get(str(row["step"]), designs[_BETWEEN])
    call = call_of(H100, TOKENS // LENGTH * BERT_BASE.heads, LENGTH, LENGTH)
    seconds = sum(
        H100.launch + launch_times(kernel, launch, counts, design, H100, call).total
        for launch in _side(height).launches
    )
    return f"{1e6 * seconds:.1f}"
