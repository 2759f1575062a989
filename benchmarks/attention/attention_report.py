"""A report of the attention benchmark for people, made from the CSV files alone.

    python -m benchmarks report                # benchmarks/results
    python -m benchmarks report --readme       # and the table and plot in README.md
    python -m benchmarks report --out DIR      # reads DIR/attention_*/, writes DIR/attention.md

Markdown and, where matplotlib is installed, plots beside it. What was not measured is shown as
such: a group without rows, a contender without times, a whole device.
"""

from __future__ import annotations

import argparse
import collections
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.attention import attention_plots
from benchmarks.attention.cases import DIRECTIONS, PAPER, group_names, select
from benchmarks.attention.result_files import BEST_DENSE, Row, key_of, read, with_best_dense
from benchmarks.attention.rivals import DENSE, FLASH, FLEX, OURS, RIVALS, SDPA_MASK
from benchmarks.harness.named_masks import NO_DIAGONAL
from benchmarks.harness.origin import out_folder

EVEN = 0.05  # times this close count neither as won nor as lost
NOT_MEASURED = "not measured yet"
SIMPLE_GROUPS = ("paper-short", "paper-long", "patterns", "no-gain", "learned", "quick")
TITLES = {"cpu": "CPU", "cuda": "GPU"}

Table = list[list[str]]


def markdown(header: Sequence[str], body: Table) -> list[str]:
    """The lines of a table."""
    rows = [list(header), ["---"] * len(header), *body]
    return [f"| {' | '.join(row)} |" for row in rows]


def scores(values: Iterable[float]) -> str:
    """Geometric mean, and how many won, even and lost, e.g. "1.52 (3/1/0)"."""
    values = list(values)
    if not values:
        return ""
    won = sum(value > 1.0 + EVEN for value in values)
    lost = sum(value < 1.0 - EVEN for value in values)
    mean = statistics.geometric_mean(values)
    return f"{mean:.2f} ({won}/{len(values) - won - lost}/{lost})"


def group_table(rows: Sequence[Row], column: str = "speedup") -> list[str]:
    """Geometric means, wins and losses by group and direction, against every rival."""
    timed = [row for row in with_best_dense(rows) if row[column] and row["contender"] != OURS]
    shown = [rival.name for rival in RIVALS if any(r["contender"] == rival.name for r in timed)]
    if sum(name in DENSE for name in shown) > 1:
        shown.append(BEST_DENSE)
    body = []
    groups = list(dict.fromkeys(row["group"] for row in rows))
    for group in [*groups, "all"] if len(groups) > 1 else groups:
        for direction in DIRECTIONS:
            here = [
                row
                for row in timed
                if group in ("all", row["group"]) and row["direction"] == direction
            ]
            if here:
                cells = [
                    scores(float(r[column]) for r in here if r["contender"] == name)
                    for name in shown
                ]
                body.append([group, direction, *cells])
    return markdown(["group", "direction", *shown], body)


def summary(
    rows: Sequence[Row], cell: Callable[[Row], str] | None = None, contender: str = SDPA_MASK
) -> list[str]:
    """Masks by lengths, forward / forward + backward; by default SDPA's time over ours."""
    show = cell or (lambda row: f"{float(row['speedup']):.2f}" if row["speedup"] else "-")
    simple = [
        row for row in rows if row["group"] in SIMPLE_GROUPS and row["contender"] == contender
    ]
    if not simple:
        return []
    lengths = sorted({int(row["length"]) for row in simple})
    found = {(row["mask"], int(row["length"]), row["direction"]): show(row) for row in simple}
    names = dict.fromkeys(row["mask"] for row in simple)
    body = [
        [name]
        + [
            " / ".join(found.get((name, length, direction), "-") for direction in DIRECTIONS)
            if any((name, length, direction) in found for direction in DIRECTIONS)
            else ""
            for length in lengths
        ]
        for name in names
    ]
    return markdown(["mask", *(f"N = {length}" for length in lengths)], body)


def losses(rows: Sequence[Row], most: int = 12) -> list[str]:
    """Where a route that does the same work is faster than ours by more than 5 %, worst first."""
    masked = {rival.name for rival in RIVALS if rival.masked} - {OURS}
    found = [
        row
        for row in rows
        if row["contender"] in masked and row["speedup"] and float(row["speedup"]) < 1.0 - EVEN
    ]
    if not found:
        return ["None."]
    found.sort(key=lambda row: float(row["speedup"]))
    body = [
        [
            row["group"],
            f"{row['mask']}, N = {row['length']}{_extras(row)}",
            row["direction"],
            row["contender"],
            f"{float(row['speedup']):.2f}",
        ]
        for row in found[:most]
    ]
    table = markdown(["group", "case", "direction", "against", "ratio"], body)
    return [f"{len(found)}; the worst of them:", "", *table]


def not_timed(rows: Sequence[Row]) -> list[str]:
    """Who could not run what, and why."""
    counted = collections.Counter(
        (row["contender"], row["note"]) for row in rows if not row["ms_50"]
    )
    if not counted:
        return ["Everything was timed."]
    body = [[who, why, str(number)] for (who, why), number in sorted(counted.items())]
    return markdown(["contender", "why", "rows"], body)


def every_case(rows: Sequence[Row]) -> list[str]:
    """A line for each case: our time, the share of the bound, and the rivals' times over ours."""
    rivals = [
        r.name for r in RIVALS if r.name != OURS and any(x["contender"] == r.name for x in rows)
    ]
    gpu_only = {"in a graph, ms": "graph_ms", "peak MB": "peak_mb"}
    more = [title for title, column in gpu_only.items() if any(row[column] for row in rows)]
    by_case: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        by_case.setdefault(key_of(row), {})[row["contender"]] = row
    body = []
    for contenders in by_case.values():
        ours = contenders.get(OURS)
        if ours is None:
            continue
        shape = f"{ours['batch']} x {ours['heads']} x {ours['length']} x {ours['dim']}"
        line = [ours["group"], ours["mask"] + _extras(ours), shape, ours["direction"]]
        if not ours["ms_50"]:
            body.append([*line, *[""] * 4, ours["note"], *[""] * (len(more) + len(rivals))])
            continue
        low, median, high = (float(ours[name]) for name in ("ms_20", "ms_50", "ms_80"))
        line += [
            f"{float(ours['density']):.3f}",
            f"{float(ours['executed']):.3f}",
            f"{float(ours['compile_ms']):.0f}",
            f"{float(ours['first_ms']):.1f}",
            f"{median:.2f} ({low:.2f} to {high:.2f})",
            *(ours[gpu_only[title]] for title in more),
        ]
        for name in rivals:
            speedup = contenders[name]["speedup"] if name in contenders else ""
            line.append(f"{float(speedup):.2f}" if speedup else "-")
        body.append(line)
    header = ["group", "mask", "B x H x N x D", "direction", "density", "executed", "compile ms"]
    return markdown([*header, "first call ms", "ours, ms (20 to 80 %)", *more, *rivals], body)


def _extras(row: Row) -> str:
    names = {"dropout": "dropout", "padding": "padding"}
    found = [f", {text} {row[name]}" for name, text in names.items() if float(row[name])]
    if row["dtype"] != ("float32" if row["device"] == "cpu" else "bfloat16"):
        found.append(f", {row['dtype']}")
    return "".join(found)


def aims(rows: Sequence[Row]) -> list[str]:
    """What we want to reach on a GPU, and what was found there."""
    rows = [
        row
        for row in with_best_dense(rows)
        if row["speedup"] and row["dtype"] == "bfloat16" and row["dim"] == "64"
    ]

    def speedups(contender: str, keep: Callable[[Row], bool]) -> list[float]:
        return [float(r["speedup"]) for r in rows if r["contender"] == contender and keep(r)]

    body = []
    for direction in DIRECTIONS:
        found = speedups(
            FLEX,
            lambda row, direction=direction: (
                row["mask"] in PAPER
                and row["direction"] == direction
                and 512 <= int(row["length"]) <= 4096
                and row["group"].startswith("paper")
            ),
        )
        value = f"{statistics.geometric_mean(found):.2f}" if found else NOT_MEASURED
        body.append(
            [f"{FLEX}, paper's patterns, N = 512 to 4096, {direction}", "2.5 or more", value]
        )
    wide = [
        float(row["of_bound"])
        for row in rows
        if row["contender"] == OURS and float(row["executed"]) > 0.1
    ]
    value = f"{min(wide):.0%} to {max(wide):.0%}" if wide else NOT_MEASURED
    body.append(["share of the bound, plans that execute over 0.1", "70 % or more", value])
    dense = speedups(BEST_DENSE, lambda row: True)
    value = f"{min(dense):.2f} at worst" if dense else NOT_MEASURED
    body.append(["the best dense route, any mask", "0.95 or more", value])
    diagonal = speedups(FLASH, lambda row: row["mask"] == NO_DIAGONAL)
    value = f"{min(diagonal):.2f} at worst" if diagonal else NOT_MEASURED
    body.append([f"{FLASH}, dense without its diagonal", "0.95 or more", value])
    return markdown(["against", "aim (bf16, D = 64)", "found"], body)


def device_section(device: str, rows: Sequence[Row], folder: Path) -> list[str]:
    """The part of the report about one device; its plots are written to the folder."""
    order = {group: at for at, group in enumerate(group_names(select(device)))}
    rows = sorted(rows, key=lambda row: order.get(row["group"], len(order)))  # stable
    lines = [f"## {TITLES[device]}", ""]
    if device == "cuda":
        lines += [*aims(rows), ""]
    missing = _missing(device, rows)
    if missing:
        body = [[group, str(number), NOT_MEASURED] for group, number in missing]
        lines += [*markdown(["group", "cases", "state"], body), ""]
    if not rows:
        return lines
    lines += [*_origins(rows), ""]
    lines += ["### Speed-up over SDPA with the same mask", ""]
    lines += [*summary(rows), ""]
    lines += [*_plot(attention_plots.speedups, rows, folder / f"attention_{device}_speedup.png")]
    lines += [
        "### By group",
        "",
        "Geometric mean of the rival's time over ours, and in brackets how many cases are won, "
        f"even (within {EVEN:.0%}) and lost.",
        "",
        *group_table(rows),
        "",
    ]
    if any(row["graph_speedup"] for row in rows):
        bound = sum(row["launch_bound"] == "yes" and row["contender"] == OURS for row in rows)
        lines += [
            f"The same in CUDA graphs, without the host's part ({bound} of our cases are bound by "
            "their launches otherwise):",
            "",
            *group_table(rows, "graph_speedup"),
            "",
        ]
    lines += ["### Lost cases", "", "Against routes that compute the same result:", ""]
    lines += [*losses(rows), ""]
    lines += [
        "### How close to the machine's bound",
        "",
        "Percent of the bound that our time reaches: the time that the executed scores or moving "
        "q, k, v and o must take at the measured rates, over ours "
        "(`benchmarks/attention/roofs.py`).",
        "",
        *summary(rows, lambda r: f"{float(r['of_bound']):.0%}" if r["of_bound"] else "-", OURS),
        "",
        *_plot(attention_plots.bounds, rows, folder / f"attention_{device}_bound.png"),
    ]
    lines += ["### What was not timed", "", *not_timed(rows), ""]
    lines += ["### Every case", ""]
    if device == "cpu":
        lines += ["Peak memory and CUDA graphs are measured on GPUs only.", ""]
    lines += [*every_case(rows), ""]
    return lines


def _missing(device: str, rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Groups of the full set that are not complete, and how many of their cases are missing."""
    found = {key_of(row) for row in rows}
    cases = select(device)
    if {row["group"] for row in rows} == {"quick"}:
        return []
    missing = [
        (group, sum(case.group == group and case.key not in found for case in cases))
        for group in group_names(cases)
    ]
    return [(group, number) for group, number in missing if number]


def _origins(rows: Sequence[Row]) -> list[str]:
    """Where the numbers come from; several lines if several runs are mixed."""
    names = ("processor", "threads", "python", "torch", "triton", "commit", "tree", "date")
    found = dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    lines = [
        f"{processor}, {threads} threads; Python {python}, torch {torch}, Triton {triton}; commit "
        f"{commit} ({tree}), {date}."
        for processor, threads, python, torch, triton, commit, tree, date in found
    ]
    rates = {row["dtype"]: row["roof_tflop_s"] for row in rows if row["roof_tflop_s"]}
    copies = [row["roof_gb_s"] for row in rows if row["roof_gb_s"]]
    if copies:
        matrices = ", ".join(f"{dtype} {rate}" for dtype, rate in rates.items())
        lines += ["", f"Measured roofs: copying {copies[0]} GB/s; matrices {matrices} TFLOP/s."]
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
timed, and the C library keeps freed memory. Milliseconds are medians. A ratio is a rival's time
over ours, the median over the rounds: above 1 we win, below 1 we lose. *executed* is the share of
the N x N scores that the plan computes; 1 means that it chose dense attention. Compiling the plan,
once for a mask, is not part of the times; it stands beside them.

"""


def write(folder: Path) -> Path:
    """Write attention.md and its plots for the results in a folder."""
    lines = [*INTRODUCTION.splitlines(), ""]
    lines += markdown(["contender", "what it is"], [[rival.name, rival.what] for rival in RIVALS])
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
            from benchmarks.attention import readme_section

            readme_section.update(results=chosen.out / "attention_cpu")
    except ValueError as error:
        parser.error(str(error))
    return 0
