"""Hand-made sparsity patterns, each a function from a sequence length to an AttentionMask.

    >>> from sparsebert import patterns
    >>> patterns.star(128)
    <AttentionMask star: 1 layer, 1 head, 128 x 128, density 3.87%>
    >>> patterns.longformer(512, window=8, num_global=1).without_diagonal().shape
    (1, 1, 512, 512)
    >>> patterns.build("strided", 64, stride=8) == patterns.strided(64, stride=8)
    True

How to read them.  Query i may attend to key j where the formula of a pattern holds; i and j run
from 0 to N - 1.  A mask has one layer and one head, which serve every layer and head; the two
patterns that draw at random can give each head a draw of its own (``num_heads``).

The patterns look both ways, as encoders do, even where the source is autoregressive: intersect
with ``causal(N)`` for a decoder.  Any of them without self-attention is
``.without_diagonal()``; ``&``, ``|`` and ``~`` combine them.

Windows count positions **on each side** (``window=5`` keeps 11 keys).  Global tokens are the
first of the sequence; where there are fewer tokens than that, all are global.  Parameters that
leave nothing to forbid, such as a window as wide as the sequence, give a UserWarning.  Masks of
more than `sparsebert.masks.bits.MAX_BYTES` are refused.

Defaults are the parameters with which the SparseBERT paper (arXiv:2102.12871) is reproduced at
N = 128, where it reports a pattern:

    star 96.13, log_sparse 89.83, longformer 88.62, bigbird 93.07, fixed 72.66, strided 70.75
    (percent of positions forbidden; the paper: 96.1, 89.8, 88.7, 93.2, 72.7, 70.4)

``mask.provenance`` names the pattern and every parameter, enough to build the mask again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsebert.masks.bits import Bool, Int32Array, Int64Array, check_size, pack
from sparsebert.masks.mask import AttentionMask
from sparsebert.masks.rules import (
    Rule,
    check_seed,
    count,
    distance,
    draw_keys,
    from_rule,
    mask_of_bits,
    mask_of_rule,
    warn,
)


def dense(seq_len: int) -> AttentionMask:
    """Everything attends to everything: all (i, j).

    Example:
        >>> dense(4).sparsity
        0.0
    """
    return mask_of_rule(
        "dense", count("dense", "seq_len", seq_len, 1), lambda i, j: (i >= 0) & (j >= 0)
    )


def causal(seq_len: int) -> AttentionMask:
    """Each token attends to itself and what came before: j <= i.

    Source: Attention Is All You Need, arXiv:1706.03762, section 3.2.3.

    Example:
        >>> causal(3).dense()[0, 0].int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    return mask_of_rule("causal", count("causal", "seq_len", seq_len, 1), lambda i, j: j <= i)


def sliding_window(seq_len: int, window: int = 5) -> AttentionMask:
    """A band around the diagonal: abs(i - j) <= window.

    Source: Longformer, arXiv:2004.05150, section 3.1 (its window counts both sides: 2 * window).

    Args:
        seq_len: N, the number of tokens.
        window: neighbours on each side, 0 or more.

    Example:
        >>> sliding_window(4, window=1).dense()[0, 0].int().tolist()
        [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    """
    window = count("sliding_window", "window", window, 0)
    n = count("sliding_window", "seq_len", seq_len, 1)
    return mask_of_rule("sliding_window", n, lambda i, j: distance(i, j) <= window, window=window)


def dilated_window(seq_len: int, window: int = 5, dilation: int = 2) -> AttentionMask:
    """A band with gaps: i - j is a multiple of `dilation`, at most `window` steps away.

    Formula: ``(i - j) % dilation == 0 and abs(i - j) <= window * dilation``.
    Source: Longformer, arXiv:2004.05150, section 3.1.

    Args:
        seq_len: N, the number of tokens.
        window: keys on each side, 0 or more.
        dilation: distance from one of them to the next, 1 (a plain window) or more.

    Example:
        >>> dilated_window(5, window=1, dilation=2).dense()[0, 0, 2].int().tolist()
        [1, 0, 1, 0, 1]
    """
    window = count("dilated_window", "window", window, 0)
    dilation = count("dilated_window", "dilation", dilation, 1)
    n = count("dilated_window", "seq_len", seq_len, 1)
    if window and dilation >= n > 1:
        warn(
            f"dilated_window: dilation={dilation} is longer than seq_len={n}, so this mask is its "
            "diagonal alone; ask for less"
        )

    def rule(i: Int32Array, j: Int32Array) -> Bool:
        gap = distance(i, j)
        kept: Bool = (gap <= window * dilation) & (gap % dilation == 0)
        return kept

    return mask_of_rule("dilated_window", n, rule, window=window, dilation=dilation)


def block_local(seq_len: int, block: int = 32) -> AttentionMask:
    """Blocks along the diagonal: i // block == j // block.

    Source: the local part of Sparse Transformers' fixed pattern, arXiv:1904.10509, section 4.3.

    Args:
        seq_len: N, the number of tokens; the last block may be shorter.
        block: tokens in a block, 1 or more.

    Example:
        >>> block_local(4, block=2).dense()[0, 0].int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    block = count("block_local", "block", block, 1)
    n = count("block_local", "seq_len", seq_len, 1)
    return mask_of_rule("block_local", n, lambda i, j: i // block == j // block, block=block)


def strided(seq_len: int, stride: int = 17) -> AttentionMask:
    """A window and every stride-th key: abs(i - j) < stride, or stride divides i - j.

    Source: Sparse Transformers, arXiv:1904.10509, section 4.3, which takes a stride near
    sqrt(N); made symmetric.  The default gives 70.75 % at N = 128; no stride gives the 70.4 %
    that the SparseBERT paper reports.

    Args:
        seq_len: N, the number of tokens.
        stride: 1 (which is dense) or more.

    Example:
        >>> strided(6, stride=2).dense()[0, 0, 0].int().tolist()
        [1, 1, 1, 0, 1, 0]
    """
    stride = count("strided", "stride", stride, 1)
    n = count("strided", "seq_len", seq_len, 1)

    def rule(i: Int32Array, j: Int32Array) -> Bool:
        gap = distance(i, j)
        kept: Bool = (gap < stride) | (gap % stride == 0)
        return kept

    return mask_of_rule("strided", n, rule, stride=stride)


def fixed(seq_len: int, block: int = 32, summary: int = 1) -> AttentionMask:
    """Blocks, and the last `summary` columns of every block for all rows.

    Formula: ``i // block == j // block or j % block >= block - summary``.
    Source: Sparse Transformers, arXiv:1904.10509, section 4.3 (block is its l, summary its c);
    made symmetric in time.  The defaults give 72.66 % at N = 128.

    Args:
        seq_len: N, the number of tokens.
        block: tokens in a block, 1 or more.
        summary: summary columns of each block, 1 to block.

    Example:
        >>> fixed(4, block=2).dense()[0, 0].int().tolist()
        [[1, 1, 0, 1], [1, 1, 0, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    """
    block = count("fixed", "block", block, 1)
    summary = count("fixed", "summary", summary, 1)
    if summary > block:
        raise ValueError(f"fixed: summary={summary} but must be at most block={block}")
    n = count("fixed", "seq_len", seq_len, 1)

    def rule(i: Int32Array, j: Int32Array) -> Bool:
        kept: Bool = (i // block == j // block) | (j % block >= block - summary)
        return kept

    return mask_of_rule("fixed", n, rule, block=block, summary=summary)


def star(seq_len: int, window: int = 1) -> AttentionMask:
    """A relay token that sees all and is seen by all, and a narrow band.

    Formula: ``i == 0 or j == 0 or abs(i - j) <= window``; the relay is token 0.
    Source: Star-Transformer, NAACL 2019 (N19-1133), section 3; its ring is left open here, the
    last token does not meet the first.  The defaults give 96.13 % at N = 128.

    Args:
        seq_len: N, the number of tokens, relay included.
        window: neighbours on each side, 0 or more.

    Example:
        >>> star(4).dense()[0, 0].int().tolist()
        [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 1]]
    """
    window = count("star", "window", window, 0)
    n = count("star", "seq_len", seq_len, 1)

    def rule(i: Int32Array, j: Int32Array) -> Bool:
        kept: Bool = (i == 0) | (j == 0) | (distance(i, j) <= window)
        return kept

    return mask_of_rule("star", n, rule, window=window)


def log_sparse(seq_len: int) -> AttentionMask:
    """Keys at distance 0, 1, 2, 4, 8, ...: abs(i - j) is 0 or a power of two.

    Source: LogSparse Transformer, Li et al., NeurIPS 2019, arXiv:1907.00235, section 4.2; made
    symmetric.  89.83 % at N = 128.

    Example:
        >>> log_sparse(6).dense()[0, 0, 0].int().tolist()
        [1, 1, 1, 0, 1, 0]
    """

    def rule(i: Int32Array, j: Int32Array) -> Bool:
        gap = distance(i, j)
        kept: Bool = gap & (gap - 1) == 0
        return kept

    return mask_of_rule("log_sparse", count("log_sparse", "seq_len", seq_len, 1), rule)


def longformer(seq_len: int, window: int = 5, num_global: int = 2) -> AttentionMask:
    """A sliding window and a few global tokens.

    Formula: ``abs(i - j) <= window or i < num_global or j < num_global``.
    Source: Longformer, arXiv:2004.05150, section 3.1.  The defaults give 88.62 % at N = 128.

    Args:
        seq_len: N, the number of tokens.
        window: neighbours on each side, 0 or more.
        num_global: leading tokens that attend to all and are attended by all, 0 or more.

    Example:
        >>> longformer(5, window=0, num_global=1).dense()[0, 0, 3].int().tolist()
        [1, 0, 0, 1, 0]
    """
    window = count("longformer", "window", window, 0)
    num_global = count("longformer", "num_global", num_global, 0)
    n = count("longformer", "seq_len", seq_len, 1)
    rule = _band(window, num_global)
    return mask_of_rule("longformer", n, rule, window=window, num_global=num_global)


def _band(window: int, num_global: int) -> Rule:
    return lambda i, j: (distance(i, j) <= window) | (i < num_global) | (j < num_global)


def bigbird(
    seq_len: int,
    window: int = 1,
    num_global: int = 2,
    num_random: int = 2,
    seed: int = 0,
    num_heads: int = 1,
) -> AttentionMask:
    """Longformer's window and global tokens, and a few random keys in every row.

    Formula: ``abs(i - j) <= window or i < num_global or j < num_global or j in R(i)``, where
    R(i) holds `num_random` different keys drawn from those that the window and the global
    tokens leave (all of them if there are fewer), so the density does not depend on the seed.
    Source: BigBird, arXiv:2007.14062, section 2, token by token (its block size is 1 here).
    The defaults give 93.07 % at N = 128.

    Args:
        seq_len: N, the number of tokens.
        window: neighbours on each side, 0 or more.
        num_global: leading global tokens, 0 or more.
        num_random: random keys of each row, 0 or more.
        seed: 0 to 2**64 - 1; the same seed gives the same mask everywhere, as in `random`.
        num_heads: heads with a draw of their own, 1 or more.

    Example:
        >>> bigbird(128, num_heads=12, seed=7).shape
        (1, 12, 128, 128)
    """
    seq_len = count("bigbird", "seq_len", seq_len, 1)
    window = count("bigbird", "window", window, 0)
    num_global = count("bigbird", "num_global", num_global, 0)
    num_random = count("bigbird", "num_random", num_random, 0)
    seed = check_seed("bigbird", seed)
    num_heads = count("bigbird", "num_heads", num_heads, 1)
    n = seq_len
    check_size("bigbird", num_heads, n, n)

    # What the band leaves for row i, in order: the keys from num_global on, less [lo, hi).
    rows = np.arange(n, dtype=np.int64)
    first = min(num_global, n)
    lo, hi = np.clip(rows - window, first, n), np.clip(rows + window + 1, first, n)
    counts = np.where(rows < first, 0, n - first - (hi - lo))

    def key_of(rank: Int64Array) -> Int64Array:
        key = first + rank
        return np.where(key < lo, key, key + (hi - lo))

    bits = np.repeat(from_rule(n, _band(window, num_global))[None], num_heads, axis=0)
    for head in range(num_heads):
        bits[head] |= draw_keys(counts, num_random, seed, head, key_of)
    record = {"pattern": "bigbird", "seq_len": n, "window": window, "num_global": num_global}
    record.update(num_random=num_random, seed=seed, num_heads=num_heads)
    return mask_of_bits(bits, n, record)


def random(seq_len: int, density: float = 0.1, seed: int = 0, num_heads: int = 1) -> AttentionMask:
    """Every row attends to the same number of keys, drawn uniformly without replacement.

    Formula: row i keeps ``max(1, round(density * N))`` of its N keys, so no row is empty and
    the density does not depend on the seed.

    The draw is the same on every machine and in every version; `sparsebert.masks.rules.draw_keys`
    states the algorithm.  If more than half the keys are kept, the forbidden ones are drawn.

    Args:
        seq_len: N, the number of tokens.
        density: share of positions kept, above 0 and at most 1.
        seed: 0 to 2**64 - 1.
        num_heads: heads with a draw of their own, 1 or more; head h is the same for any number.

    Example:
        >>> random(100, density=0.25, seed=3).density
        0.25
    """
    n = count("random", "seq_len", seq_len, 1)
    if isinstance(density, bool) or not isinstance(density, (int, float, np.floating)):
        raise TypeError(f"random: density must be a number, got {type(density).__name__}")
    density = float(density)
    if not 0 < density <= 1:
        raise ValueError(f"random: density={density} but must be above 0 and at most 1")
    seed = check_seed("random", seed)
    num_heads = count("random", "num_heads", num_heads, 1)
    check_size("random", num_heads, n, n)
    if n > 1 and density * n < 0.5:
        warn(
            f"random: density={density:g} of seq_len={n} is less than one key a row; each row "
            f"keeps one, a density of {1 / n:.2g}"
        )
    keep = max(1, round(density * n))
    drop = keep > n // 2
    number = n - keep if drop else keep
    counts = np.full(n, n, dtype=np.int64)
    bits = np.stack([draw_keys(counts, number, seed, head) for head in range(num_heads)])
    if drop:
        bits ^= pack(np.ones(n, dtype=np.bool_))
    record = {"pattern": "random", "seq_len": n, "density": density}
    return mask_of_bits(bits, n, {**record, "seed": seed, "num_heads": num_heads})


def neighborhood_2d(
    height: int, width: int, kernel_size: int = 7, num_special: int = 0
) -> AttentionMask:
    """Patches of an image attend to the kernel_size x kernel_size patches around them.

    The tokens are `num_special` special ones ([CLS], registers), which attend to all and are
    attended by all, then the grid row by row: N = num_special + height * width.

    Formula: patch (r, c) attends to (r', c') where
    ``s(r, height) <= r' < s(r, height) + kernel_size``, and the same for columns with `width`,
    with ``s(x, size) = clip(x - kernel_size // 2, 0, max(0, size - kernel_size))``: at the
    border the window moves inwards, so each patch keeps as many neighbours as one in the middle.
    Source: Neighborhood Attention Transformer, arXiv:2204.07143, section 3.1.

    Args:
        height, width: the grid; 14 x 14 for a ViT on 224-pixel images with 16-pixel patches.
        kernel_size: odd, 1 or more; one larger than the grid sees all of it.
        num_special: leading special tokens, 0 or more.

    Example:
        >>> neighborhood_2d(14, 14, kernel_size=3, num_special=1).shape
        (1, 1, 197, 197)
    """
    height = count("neighborhood_2d", "height", height, 1)
    width = count("neighborhood_2d", "width", width, 1)
    kernel_size = count("neighborhood_2d", "kernel_size", kernel_size, 1)
    if kernel_size % 2 == 0:
        raise ValueError(f"neighborhood_2d: kernel_size={kernel_size} but must be odd")
    num_special = count("neighborhood_2d", "num_special", num_special, 0)
    n = num_special + height * width
    check_size("neighborhood_2d", 1, n, n)

    def inside(query: Int32Array, key: Int32Array, size: int) -> Bool:
        start = np.clip(query - kernel_size // 2, 0, max(0, size - kernel_size))
        return (key >= start) & (key - start < kernel_size)

    def rule(i: Int32Array, j: Int32Array) -> Bool:
        row_i, col_i = np.divmod(i - num_special, width)
        row_j, col_j = np.divmod(j - num_special, width)
        near = inside(row_i, row_j, height) & inside(col_i, col_j, width)
        return near | (i < num_special) | (j < num_special)

    grid = {"height": height, "width": width, "kernel_size": kernel_size}
    record = {"pattern": "neighborhood_2d", **grid, "num_special": num_special}
    return mask_of_bits(from_rule(n, rule), n, record)


PATTERNS: dict[str, Callable[..., AttentionMask]] = {
    function.__name__: function
    for function in (
        dense,
        causal,
        sliding_window,
        dilated_window,
        block_local,
        strided,
        fixed,
        star,
        log_sparse,
        longformer,
        bigbird,
        random,
        neighborhood_2d,
    )
}


def build(name: str, seq_len: int | None = None, **parameters: Any) -> AttentionMask:
    """Build a pattern by its name in `PATTERNS`.

    Args:
        name: "star", "longformer", ...
        seq_len: N.  neighborhood_2d has height and width instead; N is then only checked.
        parameters: the pattern's own, by name.

    Raises:
        ValueError: no such pattern, a parameter out of range, or N does not fit the grid.
        TypeError: a parameter missing, unknown, or of the wrong type.

    Example:
        >>> build("neighborhood_2d", 65, height=8, width=8, num_special=1).kv_len
        65
    """
    if name not in PATTERNS:
        raise ValueError(f"build: no pattern {name!r}; the patterns are {', '.join(PATTERNS)}")
    function = PATTERNS[name]
    signature = inspect.signature(function)
    if seq_len is not None and "seq_len" in signature.parameters:
        parameters["seq_len"] = seq_len
    try:
        signature.bind(**parameters)
    except TypeError as error:
        names = ", ".join(signature.parameters)
        raise TypeError(f"{name}: {error}; its parameters are {names}") from None
    mask = function(**parameters)
    if seq_len is not None and mask.q_len != seq_len:
        raise ValueError(
            f"{name}: seq_len={seq_len} but num_special + height * width = {mask.q_len}"
        )
    return mask
