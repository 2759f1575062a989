"""Attention on the CPU: a plan against what a user would otherwise call.

    python -m benchmarks                  # every mask and length, some minutes
    python -m benchmarks --quick          # the lengths 512 and 2048 of four masks, under a minute

B = 1, H = 12, D = 64, fp32. The rivals run in turn with the plan, in one process: torch's SDPA
with the boolean mask, SDPA without any mask (other numbers, but the time of dense attention), and
compiled FlexAttention with the same mask, which has no backward pass on the CPU. Before anything
is timed, the plan's output and gradients must equal the fp64 reference. Ratios are medians of the
ratios of single rounds. Results: `attention_cpu.csv` (a row for each case and contender, with
provenance) and, made from that alone, `attention_cpu.md`.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention
from tqdm import tqdm

from benchmarks.masks import learned_looking
from benchmarks.measure import RESULTS, provenance, quantiles, side_by_side
from sparsebert import patterns
from sparsebert.compiler import compile_plan
from sparsebert.masks import AttentionMask
from sparsebert.ops import sparse_attention
from sparsebert.plan import AttentionPlan
from sparsebert.reference import reference_attention

BATCH, HEADS, HEAD_DIM = 1, 12, 64
LENGTHS = (128, 512, 1024, 2048)
OURS, MASKED, DENSE, FLEX = "sparsebert", "sdpa + mask", "sdpa, no mask", "flex, compiled"
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def masks(length: int) -> Iterator[tuple[str, AttentionMask]]:
    """The masks of one length; windows grow with it."""
    window = max(5, length // 64)
    yield "star", patterns.star(length)
    yield f"longformer({window}, 2 global)", patterns.longformer(length, window, 2)
    yield "log_sparse", patterns.log_sparse(length)
    yield f"strided({math.isqrt(length)})", patterns.strided(length, math.isqrt(length))
    yield "bigbird(1, 2, 2)", patterns.bigbird(length, 1, 2, 2)
    yield f"sliding_window({window})", patterns.sliding_window(length, window)
    heads = [learned_looking(length, seed) for seed in range(HEADS)]
    yield "learned-looking, 12 heads", AttentionMask.stack_heads(heads)
    yield "random 10 %", patterns.random(length, 0.1)
    yield "dense, no diagonal", patterns.dense(length).without_diagonal()


def check(plan: AttentionPlan, mask: AttentionMask, inputs: Tensors, grad_o: torch.Tensor) -> None:
    """Refuse to time a plan whose output or gradients differ from the reference.

    The plan runs all heads; the first and the last are compared, to bound the memory in fp64.
    """

    def run(
        attention: Callable[..., torch.Tensor], inputs: Iterable[torch.Tensor], grad: torch.Tensor
    ) -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        o = attention(*leaves)
        return [o, *torch.autograd.grad(o, leaves, grad)]

    found = run(lambda *x: sparse_attention(*x, plan), inputs, grad_o)
    for head in (0, HEADS - 1):
        of_head = mask.head(head if mask.num_heads > 1 else 0)
        exact = run(
            lambda *x, of_head=of_head: reference_attention(*x, of_head),
            [x[:, head, None].double() for x in inputs],
            grad_o[:, head, None].double(),
        )
        for name, result, expected in zip(("o", "dq", "dk", "dv"), found, exact, strict=True):
            # A chain of fp32 operations as long as the row.
            bound = torch.finfo(torch.float32).eps * mask.kv_len * expected.abs().max().item()
            error = (result[:, head, None].double() - expected).abs().max().item()
            if not error <= bound:
                raise SystemExit(f"{name} is off by {error:.2e}, more than {bound:.2e}: not timed")


@functools.cache
def compiled_flex() -> Callable[..., torch.Tensor]:
    """FlexAttention as its documentation advises to call it."""
    from torch.nn.attention.flex_attention import flex_attention

    # Static shapes: with dynamic ones the generated C++ does not build for masks that are data.
    return torch.compile(flex_attention, dynamic=False)


def contenders(
    mask: AttentionMask, plan: AttentionPlan, inputs: Tensors, with_flex: bool
) -> dict[str, Callable[[], torch.Tensor]]:
    """The forward passes to compare."""
    q, k, v = inputs
    dense = mask.dense()  # [1, H or 1, N, N]
    calls: dict[str, Callable[[], torch.Tensor]] = {
        OURS: lambda: sparse_attention(q, k, v, plan),
        MASKED: lambda: scaled_dot_product_attention(q, k, v, attn_mask=dense),
        DENSE: lambda: scaled_dot_product_attention(q, k, v),
    }
    if with_flex:
        block_mask = mask.to_block_mask()
        detached = [x.detach() for x in inputs]  # it refuses tensors that need gradients
        calls[FLEX] = lambda: compiled_flex()(*detached, block_mask=block_mask)
    return calls


def without_gradients(call: Callable[[], torch.Tensor]) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            call()

    return run


def with_backward(
    call: Callable[[], torch.Tensor], inputs: Tensors, grad_o: torch.Tensor
) -> Callable[[], object]:
    return lambda: torch.autograd.grad(call(), inputs, grad_o)


def measure(
    name: str, mask: AttentionMask, seconds: float, with_flex: bool
) -> Iterator[dict[str, object]]:
    """The rows of one mask."""
    length = mask.q_len
    shape = (BATCH, length, HEADS, HEAD_DIM)  # HuggingFace's memory order
    inputs = tuple(torch.randn(shape).transpose(1, 2).requires_grad_() for _ in range(3))
    grad_o = torch.randn(shape).transpose(1, 2)
    before = time.perf_counter()
    plan = compile_plan(mask, target="cpu")
    compile_ms = (time.perf_counter() - before) * 1e3
    check(plan, mask, inputs, grad_o)
    report = plan.explain()
    common = {
        "mask": name,
        "N": length,
        "density": f"{report.density:.4f}",
        "executed": f"{report.executed_fraction:.4f}",
        "compile_ms": f"{compile_ms:.1f}",
    }
    calls = contenders(mask, plan, inputs, with_flex)
    forward = {who: without_gradients(call) for who, call in calls.items()}
    both = {w: with_backward(c, inputs, grad_o) for w, c in calls.items() if w != FLEX}
    for direction, timed in (("forward", forward), ("forward + backward", both)):
        times = side_by_side(timed, seconds=seconds)
        for who in (OURS, MASKED, DENSE, FLEX):
            row = {**common, "direction": direction, "contender": who}
            if who not in times:
                why = "no backward on the CPU" if with_flex else "left out on request"
                yield {**row, "note": why}
                continue
            low, median, high = quantiles(times[who])
            ratios = [t / ours for t, ours in zip(times[who], times[OURS], strict=True)]
            yield {
                **row,
                "ms_20": f"{low:.3f}",
                "ms_50": f"{median:.3f}",
                "ms_80": f"{high:.3f}",
                "speedup": f"{statistics.median(ratios):.3f}",
                "note": "",
            }


def write_csv(rows: list[dict[str, object]], path: Path) -> None:
    """One row for each case and contender."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def summary(rows: list[dict[str, str]]) -> list[str]:
    """A small table: SDPA's time with the mask over ours, forward / forward + backward."""
    against = [row for row in rows if row["contender"] == MASKED]
    lengths = sorted({int(row["N"]) for row in against})
    names = dict.fromkeys(row["mask"].split("(")[0] for row in against)
    cells = {
        (row["mask"].split("(")[0], int(row["N"]), row["direction"]): float(row["speedup"])
        for row in against
    }
    lines = [
        f"| mask | {' | '.join(f'N = {length}' for length in lengths)} |",
        f"|---|{'---|' * len(lengths)}",
    ]
    for name in names:
        ratios = (
            f"{cells[name, length, 'forward']:.2f} / "
            f"{cells[name, length, 'forward + backward']:.2f}"
            for length in lengths
        )
        lines.append(f"| {name} | {' | '.join(ratios)} |")
    return lines


def write_markdown(csv_path: Path, path: Path) -> None:
    """The table for people, from the CSV alone."""
    with csv_path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    where = rows[0]
    lines = [
        "# Attention on the CPU",
        "",
        f"B = {BATCH}, H = {HEADS}, D = {HEAD_DIM}, fp32; {where['processor']}, "
        f"{where['threads']} threads, torch {where['torch']}, commit {where['commit']} "
        f"({where['tree']}), {where['date']}.",
        "Milliseconds are medians. A ratio is the rival's time over ours, median of the rounds: "
        "above 1 we win, below 1 we lose. *executed* is the share of the scores that the plan "
        "computes; 1 means that it chose dense attention.",
        "",
        *summary(rows),
        "",
        "| N | mask | density | executed | direction | ours, ms | sdpa + mask, ms | ratio "
        "| sdpa, no mask | flex, compiled |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        key = tuple(row[c] for c in ("N", "mask", "density", "executed", "direction"))
        cases.setdefault(key, {})[row["contender"]] = row
    won = lost = 0
    for key, by_name in cases.items():
        ratio = float(by_name[MASKED]["speedup"])
        won, lost = won + (ratio > 1.1), lost + (ratio < 0.9)
        rivals = " | ".join(
            f"{float(by_name[who]['speedup']):.2f}" if by_name[who]["speedup"]
            else by_name[who]["note"]
            for who in (DENSE, FLEX)
        )  # fmt: skip
        ms = [f"{float(by_name[who]['ms_50']):.2f}" for who in (OURS, MASKED)]
        lines.append(f"| {' | '.join(key)} | {ms[0]} | {ms[1]} | **{ratio:.2f}** | {rivals} |")
    lines += [
        "",
        f"Against SDPA with the same mask: {won} of {len(cases)} cases more than 10 % faster, "
        f"{lost} more than 10 % slower, the others within 10 %.",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few cases, without FlexAttention")
    parser.add_argument("--no-flex", action="store_true", help="leave FlexAttention out")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--seconds", type=float, help="least time for each case and direction")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    lengths = (512, 2048) if chosen.quick else LENGTHS
    seconds = chosen.seconds or (0.5 if chosen.quick else 2.0)
    cases = [case for length in lengths for case in masks(length)]
    if chosen.quick:
        cases = [case for case in cases if case[0].startswith(("star", "longf", "log", "dense"))]
    where, rows = provenance(), []
    for name, mask in tqdm(cases, unit="mask"):
        with_flex = not (chosen.quick or chosen.no_flex)
        rows += [{**row, **where} for row in measure(name, mask, seconds, with_flex)]
    chosen.out.mkdir(parents=True, exist_ok=True)
    table = chosen.out / "attention_cpu.csv"
    write_csv(rows, table)
    write_markdown(table, table.with_suffix(".md"))
    print(table.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"written: {table} and {table.with_suffix('.md').name}")
