"""The compiler's table: what masks of many kinds and lengths cost after compiling.

    python -m benchmarks.cost.compile_table                  # N = 128 ... 8192, about ten minutes
    python -m benchmarks.cost.compile_table --lengths 128 512 --no-timing
    python -m benchmarks.cost.compile_table --report         # the page again, of the same rows

For every mask: density; share of the scores in 128 x 128 and 64 x 64 blocks that are not empty
(what block-sparse attention computes); rows in order, 64 a tile, columns gathered (one pass); the
compiled cover of least area; the time to compile it, for all heads; then with objective "time" the
executed share and predicted speed-up on the CPU and on sm90; and up to N = 2048 the measured CPU
times of the plan and of torch's SDPA with the same mask (B = 1, H = 12, D = 64, fp32, forward, CPU
time of one thread, least of several repeats). Losses stand beside wins: 1.0 means that the plan
runs dense. Blocks, one pass and "how" are those of head 0.

Results: benchmarks/results/compile_table.csv and .md, provenance in every row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

import sparsebert
from benchmarks.cost.timed_calls import HEADS
from benchmarks.harness import origin
from benchmarks.harness.named_masks import block_fraction, learned_looking, permuted_blocks
from benchmarks.harness.options import positive
from benchmarks.harness.rows import RowFile
from sparsebert import patterns
from sparsebert.compiler import bitmatrix
from sparsebert.compiler.orders import in_order
from sparsebert.compiler.pieces import cut
from sparsebert.compiler.pricing import Area
from sparsebert.masks import AttentionMask
from sparsebert.plan import compile_plan
from sparsebert.reporting.timing import own_clock, side_by_side

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
TIMED_UP_TO = 2048
SECONDS = 0.2
COLUMNS = {
    "mask": "mask",
    "N": "N",
    "density": "density",
    "blocks_128": "128 x 128 blocks",
    "blocks_64": "64 x 64 blocks",
    "one_pass": "one pass, 64 rows",
    "cover": "cover",
    "cover_name": "how",
    "compile_s": "compile s",
    "time_cpu": "executed, cpu",
    "speedup_cpu": "predicted cpu",
    "time_sm90": "executed, sm90",
    "speedup_sm90": "predicted sm90",
    "plan_ms": "plan ms",
    "sdpa_ms": "SDPA ms",
    "measured": "measured cpu",
}


def masks(length: int) -> Iterator[tuple[str, AttentionMask]]:
    """The patterns with parameters that suit the length, and learned-looking masks."""
    window = max(5, length // 64)
    root = int(np.sqrt(length))
    yield "star", patterns.star(length)
    yield f"longformer({window}, 2)", patterns.longformer(length, window, 2)
    yield "log_sparse", patterns.log_sparse(length)
    yield f"strided({root})", patterns.strided(length, root)
    yield "fixed(32)", patterns.fixed(length, 32, 1)
    yield "bigbird(1, 2, 2)", patterns.bigbird(length, 1, 2, 2)
    yield "dilated_window(8, 4)", patterns.dilated_window(length, 8, 4)
    yield "sliding_window(16)", patterns.sliding_window(length, 16)
    width = 1 << (length.bit_length() // 2)
    name = f"neighborhood_2d({length // width} x {width}, 7)"
    yield name, patterns.neighborhood_2d(length // width, width, 7)
    yield "causal", patterns.causal(length)
    yield "permuted blocks of 64", permuted_blocks(length, 64)
    yield "learned-looking", learned_looking(length)
    if length <= TIMED_UP_TO:
        heads = [learned_looking(length, seed) for seed in range(HEADS)]
        yield f"learned-looking, {HEADS} different heads", AttentionMask.stack_heads(heads)
    yield "random 1 %", patterns.random(length, 0.01)
    yield "random 10 %", patterns.random(length, 0.1)


def one_pass_fraction(mask: AttentionMask) -> float:
    """Share executed by rows in order, 64 a tile, with gathered columns."""
    words = bitmatrix.to_words(mask.bits[0, 0])
    order = in_order(np.arange(mask.q_len), 64)
    return cut(words, order, Area().tile, (64,)).cost / (mask.q_len * mask.kv_len)


def row(name: str, mask: AttentionMask, timing: bool) -> dict[str, object]:
    """One line of the table."""
    start = time.perf_counter()
    area = compile_plan(mask, target="cpu", objective="area")
    compile_s = time.perf_counter() - start
    on_cpu = compile_plan(mask, target="cpu")
    on_gpu = compile_plan(mask, target="sm90").explain()
    found: dict[str, object] = {
        "mask": name,
        "N": mask.q_len,
        "density": f"{mask.density:.4f}",
        "blocks_128": f"{block_fraction(mask, 128):.3f}",
        "blocks_64": f"{block_fraction(mask, 64):.3f}",
        "one_pass": f"{one_pass_fraction(mask):.3f}",
        "cover": f"{area.explain().executed_fraction:.4f}",
        "cover_name": area.explain().per_head[0].cover,
        "compile_s": f"{compile_s:.2f}",
        "time_cpu": f"{on_cpu.explain().executed_fraction:.3f}",
        "speedup_cpu": f"{on_cpu.explain().predicted_speedup:.2f}",
        "time_sm90": f"{on_gpu.executed_fraction:.3f}",
        "speedup_sm90": f"{on_gpu.predicted_speedup:.2f}",
        "plan_ms": "",
        "sdpa_ms": "",
        "measured": "",
    }
    if timing and mask.q_len <= TIMED_UP_TO:
        q, k, v = torch.randn(3, 1, mask.q_len, HEADS, 64).transpose(2, 3).unbind(0)
        dense = mask.dense()
        calls = {
            "plan": lambda: sparsebert.sparse_attention(q, k, v, on_cpu),
            "sdpa": lambda: scaled_dot_product_attention(q, k, v, attn_mask=dense),
        }
        times = side_by_side(calls, seconds=SECONDS, clock=own_clock()[0])
        plan_ms, sdpa_ms = min(times["plan"]), min(times["sdpa"])
        found["plan_ms"], found["sdpa_ms"] = f"{plan_ms:.2f}", f"{sdpa_ms:.2f}"
        found["measured"] = f"{sdpa_ms / plan_ms:.2f}"
    return found


def row_file(folder: Path, where: dict[str, str] | None = None) -> RowFile:
    """The rows of the table; `where` is the origin of the run that writes them."""
    path = folder / "compile_table.csv"
    return RowFile(path, COLUMNS, origin=where, made_by="python -m benchmarks.cost.compile_table")


def write_page(folder: Path) -> Path:
    """Make compile_table.md of the folder's compile_table.csv; returns its path."""
    rows = row_file(folder).read()
    text = [
        "# Masks after compiling",
        "",
        "Made by `python -m benchmarks.cost.compile_table`.",
        ", ".join(f"{name} {rows[0][name]}" for name in origin.COLUMNS) + ".",
        "",
        *(__doc__ or "").split("\n\n")[2].splitlines(),
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|---" * len(COLUMNS) + "|",
        *("| " + " | ".join(row[name] for name in COLUMNS) + " |" for row in rows),
    ]
    path = folder / "compile_table.md"
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Measure all rows and write them; or only the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost.compile_table", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--lengths", type=positive, nargs="+", default=LENGTHS)
    parser.add_argument("--no-timing", action="store_true", help="leave the measured times out")
    parser.add_argument("--report", action="store_true", help="only make the page of the rows")
    arguments = parser.parse_args()
    if not arguments.report:
        torch.set_num_threads(1)
        rows = []
        for length in arguments.lengths:
            for name, mask in masks(length):
                rows.append(row(name, mask, not arguments.no_timing))
                print(*rows[-1].values(), sep=" | ", flush=True)
        row_file(origin.RESULTS, origin.origin("cpu")).write(rows)
    print(write_page(origin.RESULTS))


if __name__ == "__main__":
    main()
