"""MiniLM dense and with the committed learned masks: time and memory, of attention and the whole.

    python -m benchmarks.learned_masks.learned_speed             # what has no rows yet
    python -m benchmarks.learned_masks.learned_speed --readme    # README's table, of all rows

For each length that a learned mask is committed for, and for 1 and 2 threads: the encoder with
torch's SDPA without a mask, and sparsified with each of the length's masks, in turn in one
process; and so the attention calls of all layers alone, replayed with the same q, k and v (fp32,
no padding). Before a sparse model is timed its hidden states must equal those of eager attention
with the same masks. Weights are those of the dense model: they change no time. With one thread
times are that thread's CPU time. Peak memory is what torch allocates in a call beyond what is
there before it.

Rows go to learned_speed.csv; a case that has rows of this machine, commit and masks is not run
again. What a mask costs in quality is in learned_masks.csv, from
python -m benchmarks.learned_masks --task embeddings-128 (or 256, or 512), which also makes the
masks.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks; read when torch is loaded

import torch
from torch import nn

import sparsebert as sb
from benchmarks.end_to_end import model_families as models
from benchmarks.harness import mkl
from benchmarks.harness.memory import keep_memory, peak_bytes
from benchmarks.harness.options import duration, positive
from benchmarks.harness.origin import RESULTS, origin, out_folder
from benchmarks.learned_masks.learned_speed_table import (
    LENGTHS,
    PARTS,
    SPARSITIES,
    mask_path,
    row_file,
    update,
)
from sparsebert.kernels.cpu.build import BuildError
from sparsebert.machine import threads_for
from sparsebert.reporting.timing import Spread, own_clock, side_by_side

_TOKENS = 2048  # in a call
_LEAST = 5  # rounds
_DENSE = ""

Masks = Mapping[float, sb.AttentionMask]


def committed(seq_len: int, folder: Path) -> dict[float, sb.AttentionMask]:
    """The learned masks of a length that are there, by the sparsity asked of them."""
    paths = {asked: mask_path(folder, seq_len, asked) for asked in SPARSITIES}
    return {asked: sb.AttentionMask.load(path) for asked, path in paths.items() if path.exists()}


def measure(
    build: Callable[[], nn.Module], masks: Masks, *, batch: int, seconds: float
) -> list[dict[str, Any]]:
    """Time a model dense and with each mask, in turn; with torch's threads as they are.

    Args:
        build: makes the dense model, with SDPA, in eval mode.
        masks: of one length N, by the sparsity asked of them; of all layers or one for each.
        batch: sequences of N tokens in a call.
        seconds: of rounds at least, of the whole model and of its attention.

    Returns a row for the dense model and one for each mask.

    Raises:
        ValueError: no masks.
        SystemExit: a sparse model's result is wrong; nothing is timed then.
    """
    if not masks:
        raise ValueError("measure: masks must hold at least one mask, got none")
    seq_len = next(iter(masks.values())).q_len
    dense = build()
    inputs = models.inputs(dense, batch, seq_len, torch.device("cpu"))
    runs: dict[str, nn.Module] = {_DENSE: dense}
    for asked, mask in masks.items():
        runs[f"{asked:g}"] = sb.sparsify(build(), mask)
        one = {name: x[:1] for name, x in inputs.items()}
        models.check(dense, runs[f"{asked:g}"], mask, one)

    def whole(model: nn.Module) -> Callable[[], object]:
        return lambda: model(**inputs)

    calls: dict[str, dict[str, Callable[[], object]]] = {
        "attention": {
            name: models.attention_calls(model, inputs, training=False)
            for name, model in runs.items()
        },
        "encoder": {name: whole(model) for name, model in runs.items()},
    }
    rows: list[dict[str, Any]] = [
        {"N": seq_len, "asked": name, "batch": batch, "fingerprint": "", "sparsity": ""}
        for name in runs
    ]
    for row, mask in zip(rows[1:], masks.values(), strict=True):
        row |= {"fingerprint": mask.fingerprint, "sparsity": f"{mask.sparsity:.4f}"}
    with torch.inference_mode():
        for part in PARTS:
            times = side_by_side(calls[part], seconds=seconds, least=_LEAST, clock=own_clock()[0])
            for row in rows:
                mine = times[row["asked"]]
                row |= _spread(f"{part}_ms", Spread.of(mine))
                row |= _spread(f"{part}_ratio", Spread.ratio(times[_DENSE], mine))
                peak = peak_bytes(calls[part][row["asked"]], "cpu")
                row |= {f"{part}_rounds": len(mine), f"{part}_mb": f"{peak / 2**20:.2f}"}
    return rows


def _spread(name: str, spread: Spread) -> dict[str, str]:
    values = {"20": spread.low, "50": spread.middle, "80": spread.high}
    return {f"{name}_{quantile}": f"{value:.4f}" for quantile, value in values.items()}


def run_case(
    build: Callable[[], nn.Module],
    masks: Masks,
    out: Path,
    *,
    batch: int,
    seconds: float,
) -> bool:
    """Measure, and put the rows in the place of older ones of the same setting.

    Returns whether anything was measured; not where there are rows of this very run already.
    """
    file = row_file(out, {**origin("cpu"), "mkl": mkl.active()})
    seq_len = next(iter(masks.values())).q_len
    wanted = {"": ""} | {f"{asked:g}": mask.fingerprint for asked, mask in masks.items()}
    there = {
        row["asked"]: row["fingerprint"]
        for row in file.of_this_run()
        if row["N"] == str(seq_len) and row["batch"] == str(batch)
    }
    if all(there.get(asked) == fingerprint for asked, fingerprint in wanted.items()):
        return False
    rows = measure(build, masks, batch=batch, seconds=seconds)
    setting = {name: file.origin[name] for name in ("processor", "threads", "mkl")}
    kept = [
        row
        for row in (file.read() if file.path.exists() else [])
        if row["N"] != str(seq_len) or any(row[name] != setting[name] for name in setting)
    ]
    file.write([*kept, *rows])
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run what is left, or write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learned_masks.learned_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lengths", type=positive, nargs="+", choices=LENGTHS, default=LENGTHS)
    parser.add_argument("--threads", type=positive, nargs="+", default=(1, 2))
    parser.add_argument(
        "--seconds", type=duration, default=5.0, help="of rounds at least, a case and part"
    )
    parser.add_argument(
        "--mkl", choices=mkl.MODES, default=mkl.active(), help="how MKL runs (default: as shipped)"
    )
    parser.add_argument("--out", type=Path, default=out_folder())
    parser.add_argument("--readme", action="store_true", help="only write README's table")
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen = parser.parse_args(arguments)
    if chosen.readme:
        update()
        return 0
    if chosen.mkl != mkl.active():
        try:
            return mkl.run_again("benchmarks.learned_masks.learned_speed", arguments, chosen.mkl)
        except BuildError as error:
            parser.error(f"--mkl: {error}")
    from sparsebert.demo.encoder import Encoder

    keep_memory()
    torch.manual_seed(0)
    encoder = Encoder()
    for threads in chosen.threads:
        with threads_for(given=threads) as sentence:
            print(sentence, flush=True)
            for seq_len in chosen.lengths:
                masks = committed(seq_len, RESULTS / "learned_masks")
                if not masks:
                    print(f"N = {seq_len}: no learned mask is there", flush=True)
                    continue
                batch = max(1, _TOKENS // seq_len)
                done = run_case(
                    encoder.new_model, masks, chosen.out, batch=batch, seconds=chosen.seconds
                )
                print(f"N = {seq_len}: {'measured' if done else 'there already'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
