"""Whole models: inference and training, dense against sparse.

    python -m benchmarks.end_to_end             # this machine; about five minutes on 2 CPU cores
    python -m benchmarks.end_to_end --quick     # one model and length, under 40 seconds
    python -m benchmarks.end_to_end --models ViT-B/16 --lengths 577   # a part; other rows are kept

BERT-base-, ModernBERT- and ViT-B-sized models with random weights: fp32 and two layers on a CPU
(labelled), bf16 and full depth on a CUDA device. For each length, in turn in one process: the
model with torch's SDPA, the same model sparsified, and beside BERT HuggingFace's own BigBird and
Longformer of that size, which compute masks of their own. A training step is forward and backward;
the optimiser, equal for all, is left out. Before a sparse model is timed its hidden states must
equal those of eager attention with the same mask.

The share of attention is the time of the model's attention calls alone, replayed with the same
tensors, over the time of the whole; `sparsebert.estimate`'s predictions stand beside it. Peak
memory is what torch allocates above what is there before the call: on CUDA max_memory_allocated,
on a CPU the allocations and releases that torch's profiler saw in one call. With one CPU thread
times are that thread's CPU time.

Rows with provenance go to end_to_end_cpu.csv or end_to_end_cuda.csv; from these alone come
end_to_end.md and its plot.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks; read when torch is loaded

import torch
from tqdm import tqdm

from benchmarks.end_to_end import model_families as models
from benchmarks.end_to_end.end_to_end_report import SETTINGS, row_file, write_report
from benchmarks.end_to_end.model_case import ModelCase
from benchmarks.harness import mkl
from benchmarks.harness.memory import keep_memory
from benchmarks.harness.options import duration, positive
from benchmarks.harness.origin import origin, out_folder
from sparsebert.kernels.cpu.build import BuildError
from sparsebert.machine import threads_for


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [family.name for family in models.FAMILIES]
    parser.add_argument("--quick", action="store_true", help="BERT at N = 512, few rounds")
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument(
        "--lengths", type=positive, nargs="+", metavar="N", help="only these lengths"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--layers", type=positive, help="layers (default: 2 on a CPU, else all)")
    parser.add_argument(
        "--tokens", type=positive, help="tokens a batch (default: 512; CUDA: 16384)"
    )
    parser.add_argument(
        "--threads", type=positive, help="CPU threads (default: as the machine allows)"
    )
    parser.add_argument(
        "--mkl", choices=mkl.MODES, default=mkl.active(), help="how MKL runs (default: as shipped)"
    )
    parser.add_argument(
        "--routes", nargs="*", metavar="NAME",
        help="only these masks and models beside SDPA: learned-looking, star, 'HF BigBird', ...",
    )  # fmt: skip
    parser.add_argument("--seconds", type=duration, help="least time for the rounds of a case")
    parser.add_argument("--out", type=Path, default=out_folder())
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = parser.parse_args(arguments)
    if chosen.mkl != mkl.active():
        try:
            return mkl.run_again("benchmarks.end_to_end", arguments, chosen.mkl)
        except BuildError as error:
            parser.error(f"--mkl: {error}")
    known = [*models.masks(64, 1), *models.RIVALS]
    for name in chosen.routes or ():
        if name not in known:
            parser.error(f"--routes: there is no {name!r}; there are {', '.join(known)}")
    device = torch.device(chosen.device)
    keep_memory()
    torch.manual_seed(0)
    families = [family for family in models.FAMILIES if family.name in chosen.models]
    cases = [
        (family, length)
        for family in (families[:1] if chosen.quick else families)
        for length in (family.cpu_lengths if device.type == "cpu" else family.lengths)
        if length in (chosen.lengths or ((512,) if chosen.quick else (length,)))
    ]
    if not cases:
        parser.error(
            f"--lengths: none of {chosen.lengths} is a length of {', '.join(chosen.models)}"
        )
    with threads_for(given=chosen.threads) as sentence:
        print(sentence, flush=True)
        _measure(chosen, cases, device)
    print(f"written: {write_report(chosen.out)}")
    return 0


def _measure(
    chosen: argparse.Namespace, cases: list[tuple[models.Family, int]], device: torch.device
) -> None:
    """Time the cases, and write their rows in the place of older ones of the same setting."""
    where = {
        **origin(device.type),
        "mkl": mkl.active() if device.type == "cpu" else "",
    }
    file = row_file(chosen.out, device.type, where)
    setting = tuple(where[name] for name in SETTINGS)
    measured = {(family.name, str(length), *setting) for family, length in cases}
    rows: list[dict[str, Any]] = [
        dict(row)
        for row in (file.read() if file.path.exists() and not chosen.quick else [])
        if (row["model"], row["N"], *(row[name] for name in SETTINGS)) not in measured
    ]
    for family, length in tqdm(cases, unit="case"):
        layers = chosen.layers or (family.cpu_layers if device.type == "cpu" else family.layers)
        tokens = chosen.tokens or (512 if device.type == "cpu" else 16384)
        seconds = chosen.seconds or (0.5 if chosen.quick else 2.0)
        routes = None if chosen.routes is None else tuple(chosen.routes)
        batch = max(1, tokens // length)
        case = ModelCase(family, layers, length, batch, device, seconds, routes)
        rows += case.measure()
        file.write(rows)  # after each case: an interrupted run keeps what it has
    print(f"written: {file.path}")


if __name__ == "__main__":
    raise SystemExit(main())
