"""A report of the attention benchmark for people, made from the CSV files alone.

    python -m benchmarks report                # benchmarks/results
    python -m benchmarks report --readme       # and the table and plot in README.md
    python -m benchmarks report --out DIR      # reads DIR/attention_*/, writes DIR/attention.md

Markdown and, where matplotlib is installed, plots beside it. What was not measured is shown as
such: a group without rows, a contender without times, a whole device.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.attention import attention_plots, readme_section, setting_tables
from benchmarks.attention import attention_tables as tables
from benchmarks.attention.cases import group_names, select
from benchmarks.attention.result_files import Row, key_of, read, setting_of
from benchmarks.attention.rivals import OURS, RIVALS, SDPA_DENSE
from benchmarks.harness.markdown import table
from benchmarks.harness.origin import out_folder

TITLES = {"cpu": "CPU", "cuda": "GPU"}


def device_section(device: str, rows: Sequence[Row], folder: Path) -> list[str]:
    """The part of the report about one device; its plots are written to the folder."""
    order = {group: at for at, group in enumerate(group_names(select(device)))}
    rows = sorted(rows, key=lambda row: order.get(row["group"], len(order)))  # stable
    lines = [f"## {TITLES[device]}", ""]
    if device == "cuda":
        lines += [*tables.aims(rows), ""]
    settings = setting_tables.settings_of(rows)
    main = setting_tables.of_setting(rows, settings[0]) if settings else list(rows)
    if not rows:
        return [*lines, *_missing(device, rows)]
    lines += [*_origins(rows), ""]
    if device == "cpu":
        lines += [
            "### Every setting",
            "",
            "Geometric mean of the rival's time over ours, and in brackets how many cases are "
            f"won, even (within {tables.EVEN:.0%}) and lost; and the case that is worst.",
            "",
            *setting_tables.by_setting(rows),
            "",
            *setting_tables.half_precision(main),
            "",
        ]
    for setting in settings or [None]:
        mine = list(rows) if setting is None else setting_tables.of_setting(rows, setting)
        if len(settings) > 1 and setting is not None:
            lines += [f"## {TITLES[device]}: {setting_tables.name_of(setting)}", ""]
        lines += _setting_section(device, mine, folder, is_main=mine == main)
    return lines


def _setting_section(
    device: str, rows: Sequence[Row], folder: Path, *, is_main: bool
) -> list[str]:
    """What was found in one setting of the machine; plots and single cases for the main one."""
    lines = [*_missing(device, rows), "### Speed-up over SDPA with the same mask", ""]
    lines += [*tables.summary(rows), ""]
    if is_main:
        path = folder / f"attention_{device}_speedup.png"
        lines += _plot(attention_plots.speedups, rows, path)
    if device == "cpu":
        lines += ["### Speed-up over dense SDPA without a mask", ""]
        lines += [*tables.summary(rows, contender=SDPA_DENSE), ""]
    lines += [
        "### By group",
        "",
        "Geometric mean of the rival's time over ours, and in brackets how many cases are won, "
        f"even (within {tables.EVEN:.0%}) and lost.",
        "",
        *tables.group_table(rows),
        "",
    ]
    if any(row["graph_speedup"] for row in rows):
        bound = sum(row["launch_bound"] == "yes" and row["contender"] == OURS for row in rows)
        lines += [
            f"The same in CUDA graphs, without the host's part ({bound} of our cases are bound by "
            "their launches otherwise):",
            "",
            *tables.group_table(rows, "graph_speedup"),
            "",
        ]
    lines += ["### Lost cases", "", *tables.losses(rows, most=30), ""]
    if device == "cpu":
        lines += ["### What limits the native kernels", "", *setting_tables.limits(rows), ""]
    if not is_main:
        return lines
    if device == "cpu":
        lines += [
            "All scores of a tile's column are counted, 16, and the peak is that of fused "
            "multiply-adds in registers (of bf16 dot products for bf16), measured in the same run "
            "on one core, times the threads. *2^x* is the share that the time of one 2^x a score "
            "would be, at the kernels' own rate. *k and v read* counts a row of each for a column "
            "of a tile and for a single entry; *of L2* is its share of the rate of reading from "
            "the second cache (window masks read the same rows again, from the first). The last "
            "column is our time over that of moving q, k, v and o once (in training also their "
            "gradients) at the rate of a copy.",
            "",
            *setting_tables.roofline(rows),
            "",
        ]
    lines += [
        "### How close to the machine's bound",
        "",
        "Percent of the bound that our time reaches: the time that the executed scores or moving "
        "q, k, v and o must take at the measured rates, over ours "
        "(`benchmarks/attention/roofs.py`).",
        "",
        *tables.summary(rows, _share_of_bound, OURS),
        "",
        *_plot(attention_plots.bounds, rows, folder / f"attention_{device}_bound.png"),
    ]
    lines += ["### What was not timed", "", *tables.not_timed(rows), ""]
    lines += ["### Every case", ""]
    if device == "cpu":
        lines += [
            "Peak memory and CUDA graphs are measured on GPUs only. The single cases of other "
            "settings are in the CSV files.",
            "",
        ]
    lines += [*tables.every_case(rows), ""]
    return lines


def _share_of_bound(row: Row) -> str:
    return f"{float(row['of_bound']):.0%}" if row["of_bound"] else "-"


def _missing(device: str, rows: Sequence[Row]) -> list[str]:
    """A table of the groups of the full set of which cases are missing, if there are any."""
    found = {key_of(row) for row in rows}
    cases = select(device)
    if {row["group"] for row in rows} == {"quick"}:
        return []
    missing = {
        group: sum(case.group == group and case.key not in found for case in cases)
        for group in group_names(cases)
    }
    body = [[group, str(n), tables.NOT_MEASURED] for group, n in missing.items() if n]
    return [*table(["group", "cases", "state"], body), ""] if body else []


def _origins(rows: Sequence[Row]) -> list[str]:
    """Where the numbers come from; several lines if several runs are mixed."""
    names = ("processor", "python", "torch", "triton", "commit", "tree", "method", "date")
    found = dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    lines = [
        f"{processor}; Python {python}, torch {torch}, Triton {triton}; commit "
        f"{commit} ({tree}), {method}, {date}."
        for processor, python, torch, triton, commit, tree, method, date in found
    ]
    for setting in dict.fromkeys(map(setting_of, rows)):
        mine = [row for row in setting_tables.of_setting(rows, setting) if row["roof_gb_s"]]
        if not mine:
            continue
        rates = {row["dtype"]: row["roof_tflop_s"] for row in mine}
        peaks = {row["dtype"]: row["peak_gflop_s"] for row in mine if row["peak_gflop_s"]}
        told = ", ".join(f"{dtype} {rate}" for dtype, rate in rates.items())
        line = (
            f"Measured roofs, {setting_tables.name_of(setting)}: copying {mine[0]['roof_gb_s']} "
            f"GB/s; torch.mm {told} TFLOP/s"
        )
        if peaks:
            told = ", ".join(f"{dtype} {float(peak):.0f}" for dtype, peak in peaks.items())
            line += f"; multiply-adds in registers {told} GFLOP/s"
        lines += ["", f"{line}."]
    return lines


def _plot(
    draw: Callable[[Sequence[Row], Path], None], rows: Sequence[Row], path: Path
) -> list[str]:
    try:
        draw(rows, path)
    except ModuleNotFoundError as error:
        return [f"(No plot: {error}.)", ""]
    return [f"![{path.stem}]({path.name})", ""]


INTRODUCTION = """# Attention

Made by `make bench` from the rows in `attention_cpu/` and `attention_cuda/`; see
[CONTRIBUTING.md](../../CONTRIBUTING.md).

Every result was first checked against the fp64 reference, forward and, in training, backward.
Contenders take turns in one process, on inputs that rotate through more memory than the last
cache holds, or 64 sets of them. On a CPU each is called twice in its turn and the second call
timed, and the C library keeps freed memory; with one thread it is the CPU time of that thread.
Milliseconds are medians. A ratio is a rival's time
over ours, the median over the rounds: above 1 we win, below 1 we lose. *executed* is the share of
the N x N scores that the plan computes; 1 means that it chose dense attention. Compiling the plan,
once for a mask, is not part of the times; it stands beside them.

"""


def write(folder: Path) -> Path:
    """Write attention.md and its plots for the results in a folder."""
    lines = [*INTRODUCTION.splitlines(), ""]
    lines += table(["contender", "what it is"], [[rival.name, rival.what] for rival in RIVALS])
    lines += [""]
    for device in TITLES:
        results = folder / f"attention_{device}"
        lines += device_section(device, read(results) if results.is_dir() else [], folder)
    path = folder / "attention.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Write the report; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=out_folder())
    parser.add_argument("--readme", action="store_true", help="also bring README.md up to date")
    chosen = parser.parse_args(arguments)
    try:
        print(f"report: {write(chosen.out)}")
        if chosen.readme:
            readme_section.update(results=chosen.out / "attention_cpu")
    except ValueError as error:
        parser.error(str(error))
    return 0
