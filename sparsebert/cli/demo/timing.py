"""How long do the sparse encoder and its attention take, against dense ones?

Models take turns, and each figure is a median over the rounds, so that a machine that slows down
half-way slows them all down.
"""

from __future__ import annotations

import datetime
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sparsebert import __version__
from sparsebert.cli.demo.encoder import Encoder
from sparsebert.compiler import compile_plan
from sparsebert.integrations.huggingface import sparsify
from sparsebert.masks import AttentionMask
from sparsebert.ops import sparse_attention

Calls = dict[str, Callable[[], object]]

TOKENS = 512  # in a forward pass: texts of 64 tokens go eight at a time


def time_lengths(
    encoder: Encoder,
    masks: dict[str, AttentionMask],
    text: list[str],
    lengths: tuple[int, ...],
    repeats: int,
) -> list[dict[str, Any]]:
    """One row for each length and mask: encoder and attention alone, dense and sparse, in ms.

    Every text has at least as many tokens as the longest length. Dense is PyTorch's SDPA without
    any mask, the fastest that the machine has.
    """
    models = {name: sparsify(encoder.new_model(), mask) for name, mask in masks.items()}
    about = provenance()
    rows = []
    rounds = tqdm(total=len(lengths) * repeats, desc="timings", leave=False, disable=None)
    for length in lengths:
        batch = max(1, TOKENS // length)
        ids = torch.tensor(
            [encoder.exactly(text[row % len(text)], length) for row in range(batch)]
        )
        config = encoder.model.config
        heads, dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        q, k, v = torch.randn(3, batch, heads, length, dim)
        plans = {
            name: compile_plan(mask.crop(length), target="cpu", head_dim=dim, copies=batch * heads)
            for name, mask in masks.items()
        }
        encoders: Calls = {name: partial(model, ids) for name, model in models.items()}
        encoders["dense"] = partial(encoder.model, ids)
        attentions: Calls = {
            name: partial(sparse_attention, q, k, v, plan) for name, plan in plans.items()
        }
        attentions["dense"] = partial(torch.nn.functional.scaled_dot_product_attention, q, k, v)
        spent = {
            "encoder": interleaved(encoders, repeats, rounds.update),
            "attention": interleaved(attentions, 5 * repeats),
        }
        for name, plan in plans.items():
            report = plan.explain()
            row: dict[str, Any] = {
                "tokens": length,
                "texts": batch,
                "pattern": name,
                "density": report.density,
                "executed": report.executed_fraction,
            }
            for part, times in spent.items():
                dense, sparse = times["dense"], times[name]
                row[f"{part}_dense_ms"] = statistics.median(dense)
                row[f"{part}_sparse_ms"] = statistics.median(sparse)
                row[f"{part}_speedup"] = statistics.median(dense) / statistics.median(sparse)
                for quantile, place in (("p20", 0), ("p80", 3)):
                    row[f"{part}_dense_{quantile}_ms"] = _quintiles(dense)[place]
                    row[f"{part}_sparse_{quantile}_ms"] = _quintiles(sparse)[place]
            rows.append(row | about)
    rounds.close()
    return rows


def _quintiles(times: list[float]) -> list[float]:
    return statistics.quantiles(times, n=5, method="inclusive") if len(times) > 1 else times * 4


def interleaved(
    calls: Calls, repeats: int, progress: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, after one call that does not count."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for call in calls.values():
            call()
        for _ in range(repeats):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                spent[name].append(1e3 * (time.perf_counter() - start))
            progress()
    return spent


def provenance() -> dict[str, Any]:
    """What a timing depends on: machine, versions, date."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sparsebert": __version__,
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _commit() -> str:
    """The checkout's commit, with "dirty" if files differ from it; "" outside a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        return run.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            " dirty" if git("status", "--porcelain") else ""
        )
    except OSError:  # no git on this machine
        return ""
