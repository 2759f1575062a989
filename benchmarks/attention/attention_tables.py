"""The tables of the attention benchmark's report and of README.md, from its rows alone."""

from __future__ import annotations

import collections
import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from benchmarks.attention.cases import DIRECTIONS, PAPER
from benchmarks.attention.result_files import BEST_DENSE, COLUMNS, Row, key_of, with_best_dense
from benchmarks.attention.rivals import DENSE, FLASH, FLEX, OURS, RIVALS, SDPA_MASK
from benchmarks.harness.markdown import table
from benchmarks.harness.named_masks import NO_DIAGONAL

EVEN = 0.05  # times this close count neither as won nor as lost
NOT_MEASURED = "not measured yet"
SIMPLE_GROUPS = (
    "paper-short", "paper-long", "patterns", "no-gain", "learned", "tiny", "crossover", "quick",
)  # fmt: skip


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
    timed = _timed(with_best_dense(rows), column)
    names = set(timed["contender"])
    shown = [rival.name for rival in RIVALS if rival.name in names]
    if sum(name in DENSE for name in shown) > 1:
        shown.append(BEST_DENSE)
    groups = list(dict.fromkeys(row["group"] for row in rows))
    if len(groups) > 1:
        groups.append("all")
        timed = pd.concat([timed, timed.assign(group="all")])
    found = _scores_by(timed, ["group", "direction"], column)
    order = [key for key in itertools.product(groups, DIRECTIONS) if key in found.index]
    body = [[*key, *found.loc[key, shown]] for key in order]
    return table(["group", "direction", *shown], body)


def _timed(rows: Sequence[Row], column: str) -> pd.DataFrame:
    """The rivals' rows that have a value there, as a number."""
    kept = [row for row in rows if row[column] and row["contender"] != OURS]
    return pd.DataFrame(kept, columns=COLUMNS).astype({column: float})


def _scores_by(timed: pd.DataFrame, keys: list[str], column: str) -> pd.DataFrame:
    """`scores` for each value of the keys (rows) and each contender (columns)."""
    return timed.groupby([*keys, "contender"])[column].agg(scores).unstack(fill_value="")


def summary(
    rows: Sequence[Row], cell: Callable[[Row], str] | None = None, contender: str = SDPA_MASK
) -> list[str]:
    """Masks by lengths, forward / forward + backward; by default SDPA's time over ours."""
    show = cell or (lambda row: f"{float(row['speedup']):.2f}" if row["speedup"] else "-")
    simple = [
        {**row, "length": int(row["length"]), "cell": show(row)}
        for row in rows
        if row["group"] in SIMPLE_GROUPS and row["contender"] == contender
    ]
    if not simple:
        return []
    keys = ["mask", "length", "direction"]
    cells = pd.DataFrame(simple).groupby(keys, sort=False)["cell"].last()
    by_direction = cells.unstack(fill_value="-", sort=False)
    both = by_direction.reindex(columns=DIRECTIONS, fill_value="-").agg(" / ".join, axis=1)
    by_length = both.unstack(fill_value="", sort=False).sort_index(axis=1)
    body = [[name, *line] for name, line in by_length.T.items()]
    return table(["mask", *(f"N = {length}" for length in by_length)], body)


def losses(rows: Sequence[Row], most: int = 12) -> list[str]:
    """Where another route is faster than ours by more than 5 %, worst first."""
    found = [
        row
        for row in rows
        if row["contender"] != OURS and row["speedup"] and float(row["speedup"]) < 1.0 - EVEN
    ]
    if not found:
        return ["None."]
    found.sort(key=lambda row: float(row["speedup"]))
    body = [
        [
            row["group"],
            case_name(row),
            row["direction"],
            row["contender"],
            f"{float(row['speedup']):.2f}",
        ]
        for row in found[:most]
    ]
    lines = table(["group", "case", "direction", "against", "ratio"], body)
    return [f"{len(found)}; the worst of them:", "", *lines]


def not_timed(rows: Sequence[Row]) -> list[str]:
    """Who could not run what, and why."""
    counted = collections.Counter(
        (row["contender"], row["note"]) for row in rows if not row["ms_50"]
    )
    if not counted:
        return ["Everything was timed."]
    body = [[who, why, str(number)] for (who, why), number in sorted(counted.items())]
    return table(["contender", "why", "rows"], body)


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
    return table([*header, "first call ms", "ours, ms (20 to 80 %)", *more, *rivals], body)


def case_name(row: Row) -> str:
    """A case in a few words: "star, N = 512, bfloat16"."""
    shape = "" if row["dim"] == "64" else f", D = {row['dim']}"
    return f"{row['mask']}, N = {row['length']}{shape}{_extras(row)}"


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
    return table(["against", "aim (bf16, D = 64)", "found"], body)
