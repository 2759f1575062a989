"""The report of the end-to-end benchmark, made from its CSV files alone.

python -m benchmarks.end_to_end.end_to_end_report [--out DIR]   # writes DIR/end_to_end.md
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import mkl, origin
from benchmarks.harness.markdown import table
from benchmarks.harness.rows import RowFile
from sparsebert.reporting.figures import new_figure, save_figure
from sparsebert.support.colours import COLOURS

COLUMNS = (
    "device", "model", "layers", "N", "batch", "dtype", "route", "mode", "ms_20", "ms_50", "ms_80",
    "tokens_per_s", "speedup", "peak_mb", "attention_ms", "attention_share", "attention_speedup",
    "executed", "predicted_share", "predicted_attention_speedup", "predicted_speedup", "note",
)  # fmt: skip
SETTINGS = ("threads", "mkl")
"""What a machine's runs differ in; rows of several settings stand beside each other."""
SDPA, OURS = "sdpa", "sparsebert"
LEFT_OUT = "left out of this run (--routes)"
TITLES = {"cpu": "On the CPU", "cuda": "On a GPU"}
MARKERS = ("o", "s", "^", "D")
Row = dict[str, str]

_INTRODUCTION = """\
# Whole models, dense and sparse

Made by `python -m benchmarks.end_to_end`. Random weights at the size of the base models, no
dropout, no padding, a vocabulary of 1,024. A training step is forward and backward, without the
optimiser. The sparse models' hidden states equal those of eager attention with the same mask,
within twice the root mean square error that it makes itself. HuggingFace's own BigBird and
Longformer have the size of BERT-base and compute masks of their own.

*Share* is the time of the dense model's attention calls alone over the whole; *best* what the
model would gain if they took no time (Amdahl). *Whole* and *attention* are the dense model's time
over the sparse one's, medians: above 1 is a gain. In brackets what `sparsebert estimate` predicts.
Peak memory is what torch allocates beyond the model and its inputs.
"""


def row_file(folder: Path, device: str, where: dict[str, str] | None = None) -> RowFile:
    """The rows of one device; `where` is the origin of the run that writes them."""
    path = folder / f"end_to_end_{device}.csv"
    columns = (*COLUMNS, *origin.COLUMNS, "mkl")
    return RowFile(path, columns, origin=where, made_by="python -m benchmarks.end_to_end")


def write_report(folder: Path) -> Path:
    """Write end_to_end.md, and a plot for each device that has rows."""
    lines = _INTRODUCTION.splitlines()
    for device, title in TITLES.items():
        file = row_file(folder, device)
        lines += ["", f"## {title}", ""]
        if not file.path.exists():
            lines.append("Not measured yet.")
            continue
        rows = file.read()
        lines += _section(rows)
        plot = folder / f"end_to_end_{device}.png"
        try:
            draw(_of(rows, _settings(rows)[0]), plot)
            lines += ["", f"![speed-ups, Amdahl's line, throughput]({plot.name})"]
        except ModuleNotFoundError as error:
            lines += ["", f"(No plot: {error}.)"]
    report = folder / "end_to_end.md"
    report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return report


def _section(rows: Sequence[Row]) -> list[str]:
    runs: dict[str, dict[str, str]] = {}  # rows may be of several runs
    for row in rows:
        run = (
            f"{row['processor']}, {mkl.in_words(row['threads'], row['mkl'])}, {row['dtype']}, "
            f"torch {row['torch']}, commit {row['commit']} ({row['tree']}), {row['date']}"
        )
        runs.setdefault(run, {})[row["model"]] = row["layers"]
    lines = [
        f"{run}: " + ", ".join(f"{model} with {n} layers" for model, n in models.items()) + "."
        for run, models in runs.items()
    ]
    header = [
        "model", "N", "batch", "route", "ms", "tokens/s", "peak MB", "executed", "share",
        "best", "attention", "whole",
    ]  # fmt: skip
    settings = _settings(rows)
    for setting in settings:
        mine = _of(rows, setting)
        name = f", {mkl.in_words(*setting)}" if len(settings) > 1 else ""
        lines += ["", *_outcome(mine, f"{mkl.in_words(*setting)}: " if name else ""), ""]
        for mode in ("inference", "training"):
            lines += [f"### {mode.capitalize()}{name}", ""]
            shown = [row for row in mine if row["mode"] == mode and row["note"] != LEFT_OUT]
            lines += [*table(header, map(_line, shown)), ""]
        missing = dict.fromkeys(
            f"{row['route']} ({row['model']})" for row in mine if row["note"] == LEFT_OUT
        )
        if missing:
            lines += [f"Left out of this run (--routes): {', '.join(missing)}.", ""]
    return lines[:-1]


def _settings(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(tuple(row[name] for name in SETTINGS) for row in rows))


def _of(rows: Sequence[Row], setting: tuple[str, ...]) -> list[Row]:
    return [row for row in rows if tuple(row[name] for name in SETTINGS) == setting]


def _outcome(rows: Sequence[Row], about: str) -> list[str]:
    """Gains and losses counted, and how far the predictions are off."""
    ours = [row for row in rows if row["route"].startswith(OURS) and not row["note"]]
    gains = [float(row["speedup"]) for row in ours]
    errors = [float(row["predicted_speedup"]) / float(row["speedup"]) - 1.0 for row in ours]
    off = np.quantile(np.abs(errors), [0.5, 0.9])
    return [
        f"{about}Of {len(ours)} sparse cases {sum(gain > 1.05 for gain in gains)} are more than "
        f"5 % faster than the dense model, {sum(gain < 0.95 for gain in gains)} more than 5 % "
        f"slower; geometric mean {statistics.geometric_mean(gains):.2f}, from {min(gains):.2f} to "
        f"{max(gains):.2f}. The predicted gain of the whole model is off by {off[0]:.0%} in the "
        f"median, and by less than {off[1]:.0%} in nine of ten cases."
    ]


def _line(row: Row) -> list[str]:
    cells = [row["model"], row["N"], row["batch"], row["route"]]
    if row["note"]:
        return [*cells, row["note"], *[""] * 7]
    share = best = attention = ""
    if row["route"] == SDPA:
        part = float(row["attention_share"])
        share, best = f"{part:.0%}", f"{_amdahl(part):.2f}"
    whole = f"{float(row['speedup']):.2f}"
    if row["route"].startswith(OURS):
        share = f"({float(row['predicted_share']):.0%})"
        predicted = float(row["predicted_attention_speedup"])
        attention = f"{float(row['attention_speedup']):.2f} ({predicted:.2f})"
        whole += f" ({float(row['predicted_speedup']):.2f})"
    executed = f"{float(row['executed']):.3f}" if row["executed"] else ""
    return [
        *cells, f"{float(row['ms_50']):.1f}", f"{float(row['tokens_per_s']):,.0f}",
        f"{float(row['peak_mb']):,.0f}", executed, share, best, attention, whole,
    ]  # fmt: skip


def _amdahl(share: float | np.ndarray) -> Any:
    """The gain if the part of that share took no time; noise may make a share of 1."""
    return 1.0 / np.maximum(1.0 - share, 0.01)


def _reach(ours: Sequence[Row], dense: Sequence[Row]) -> list[list[float]]:
    """How far the bars of speed-ups reach down and up, from the times' 20 and 80 % quantiles."""
    low, high = [], []
    for row, other in zip(ours, dense, strict=True):
        speedup = float(row["speedup"])
        low.append(speedup - float(other["ms_20"]) / float(row["ms_80"]))
        high.append(float(other["ms_80"]) / float(row["ms_20"]) - speedup)
    return [[max(0.0, x) for x in low], [max(0.0, x) for x in high]]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Gain over the share of attention with Amdahl's line, and throughput over N."""
    figure = new_figure(11, 4.6)
    gain, speed = figure.subplots(1, 2)
    timed = [row for row in rows if not row["note"]]
    shares = {
        (row["model"], row["N"], row["mode"]): float(row["attention_share"])
        for row in timed
        if row["route"] == SDPA
    }
    dense = {(r["model"], r["N"], r["mode"]): r for r in timed if r["route"] == SDPA}
    routes = [r for r in dict.fromkeys(row["route"] for row in timed) if r.startswith(OURS)]
    names = list(dict.fromkeys(row["model"] for row in timed))
    for colour, route in zip(COLOURS, routes, strict=False):
        for marker, name in zip(MARKERS, names, strict=False):
            for mode in ("inference", "training"):
                chosen = [
                    row for row in timed
                    if (row["route"], row["model"], row["mode"]) == (route, name, mode)
                ]  # fmt: skip
                gain.errorbar(
                    [shares[row["model"], row["N"], mode] for row in chosen],
                    [float(row["speedup"]) for row in chosen],
                    yerr=_reach(chosen, [dense[row["model"], row["N"], mode] for row in chosen]),
                    fmt=marker, color=colour, markersize=6, capsize=2, elinewidth=1,
                    markerfacecolor=colour if mode == "inference" else "none",
                    label=f"{name}, {route.split(', ')[1]}" if mode == "inference" else None,
                )  # fmt: skip
    most = min(0.97, max(shares.values()) * 1.1)
    line = np.linspace(0.0, most, 200)
    gain.plot(line, _amdahl(line), color="black", linewidth=1, label="attention for nothing")
    gain.axhline(1.0, color="gray", linewidth=0.8, linestyle=":")
    gain.set_xlabel("share of the dense model's time in attention")
    gain.set_ylabel("dense model's time over the sparse one's")
    gain.set_title("Whole model (hollow: training; bars: 20 to 80 % of the calls)", fontsize=10)
    gain.legend(fontsize=7)

    chosen = [row for row in timed if row["model"] == names[0] and row["mode"] == "inference"]
    for colour, route in zip(COLOURS, dict.fromkeys(row["route"] for row in chosen), strict=False):
        of_route = [row for row in chosen if row["route"] == route]
        rates = np.array([float(row["tokens_per_s"]) for row in of_route])
        fast, slow = (
            np.array([float(row["ms_50"]) / float(row[name]) for row in of_route])
            for name in ("ms_20", "ms_80")
        )
        speed.errorbar(
            [int(row["N"]) for row in of_route], rates,
            yerr=(rates * np.maximum(0.0, 1 - slow), rates * np.maximum(0.0, fast - 1)),
            marker="o", color=colour, capsize=2, elinewidth=1, label=route,
        )  # fmt: skip
    speed.set_xscale("log", base=2)
    lengths = sorted({int(row["N"]) for row in chosen})
    speed.set_xticks(lengths, [str(length) for length in lengths])
    speed.set_ylim(bottom=0)
    speed.set_xlabel("tokens in a sequence, N")
    speed.set_ylabel("tokens a second")
    speed.set_title(f"{names[0]}, inference")
    speed.legend(fontsize=7)
    save_figure(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """Write the report; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end.end_to_end_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=origin.out_folder())
    try:
        print(f"report: {write_report(parser.parse_args(arguments).out)}")
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
