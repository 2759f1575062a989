"""Tables of the GPU's report, from the rows of `gpu_times.csv` and the others alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from benchmarks.attention.attention_tables import scores
from benchmarks.attention.cases import BOTH, DIRECTIONS, FORWARD, PAPER
from benchmarks.attention.rivals import (
    CUDNN,
    FLASH,
    FLEX,
    FLEX_FORMULA,
    FLEX_TUNED,
    OURS,
    SDPA_MASK,
)
from benchmarks.harness.markdown import table
from benchmarks.harness.rows import Row

DENSE, BEST_FLEX = "best dense", "best Flex"
_BEST_OF = {DENSE: (CUDNN, FLASH), BEST_FLEX: (FLEX, FLEX_FORMULA, FLEX_TUNED)}
_SHOWN = (DENSE, FLEX, FLEX_FORMULA, FLEX_TUNED, SDPA_MASK)
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}
"""Bytes a second of the memory, by data sheet: SXM5 with HBM3, and HBM3e."""
_TENSORS = {FORWARD: 4, BOTH: 4 + 8}
"""What must move at least, in tensors of the size of q: q, k, v and o; backward q, k, v, o and its
gradient, and the gradients of q, k and v, too."""
Case = tuple[str, int, str]
"""Mask, length, direction."""


def timed(rows: Sequence[Row]) -> dict[tuple[Case, str], Row]:
    """The rows with times by case and contender; the best dense and FlexAttention among them."""
    found = {(case_of(row), row["contender"]): row for row in rows if row["ms_50"]}
    for name, rivals in _BEST_OF.items():
        for case in {case for case, _ in found}:
            these = [found[case, rival] for rival in rivals if (case, rival) in found]
            if these:
                found[case, name] = min(these, key=lambda row: ratio(found, row))
    return found


def case_of(row: Row) -> Case:
    """The case of a timing or a prediction."""
    return row["mask"], int(row["n"]), row["direction"]


def ratio(found: dict[tuple[Case, str], Row], row: Row) -> float:
    """A rival's time over ours: of single rounds where the row has it, else of the medians."""
    if row["speedup"]:
        return float(row["speedup"])
    ours = found.get((case_of(row), OURS))
    return float(row["ms_50"]) / float(ours["ms_50"]) if ours else float("nan")


def cases(found: Iterable[tuple[Case, str]]) -> list[tuple[str, int]]:
    """Masks and lengths, the paper's patterns first, the longest first."""
    place = {mask: at for at, mask in enumerate(PAPER)}
    masks = {case[:2] for case, _ in found}
    return sorted(masks, key=lambda of: (-of[1], place.get(of[0], len(place)), of[0]))


def speedups(rows: Sequence[Row]) -> list[str]:
    """Rivals' times over ours, forward / forward + backward, a line for each mask and length."""
    found = timed(rows)
    names = [name for name in _SHOWN if any(who == name for _, who in found)]
    body = [
        [
            str(n),
            mask,
            *(_both(lambda key: _ratio_text(found, key), mask, n, name) for name in names),
        ]
        for mask, n in cases(found)
    ]
    means = []
    for name in names:
        parts = []
        for direction in DIRECTIONS:
            values = [
                ratio(found, row) for (case, who), row in found.items()
                if who == name and case[2] == direction
            ]  # fmt: skip
            parts.append(scores(value for value in values if value == value) or "-")
        means.append(" / ".join(parts))
    return table(["N", "mask", *names], [*body, ["", "**all**", *means]])


def milliseconds(rows: Sequence[Row]) -> list[str]:
    """Medians of single calls, forward / forward + backward, and ours in a CUDA graph."""
    found = timed(rows)
    names = [OURS, *(name for name in _SHOWN if any(who == name for _, who in found))]

    def cell(column: str) -> Callable[[tuple[Case, str]], str]:
        def text(key: tuple[Case, str]) -> str:
            value = found[key][column] if key in found else ""
            return f"{float(value):.3f}" if value else "-"

        return text

    body = [
        [
            str(n), mask, _both(cell("graph_ms"), mask, n, OURS),
            *(_both(cell("ms_50"), mask, n, name) for name in names),
        ]
        for mask, n in cases(found)
    ]  # fmt: skip
    return table(["N", "mask", f"{OURS}, graph", *names], body)


def floor_ms(row: Row) -> float | None:
    """The time that moving the tensors once takes by the data sheet; None for other GPUs."""
    rate = next((rate for name, rate in BANDWIDTH.items() if name in row["processor"]), None)
    if rate is None:
        return None
    itemsize = 4 if row["dtype"] == "float32" else 2
    size = int(row["batch"]) * int(row["heads"]) * int(row["n"]) * int(row["dim"]) * itemsize
    return 1e3 * _TENSORS[row["direction"]] * size / rate


def predicted(rows: Sequence[Row], predictions: Sequence[Row]) -> list[str]:
    """Predicted and measured microseconds, and the floor by the memory's data sheet."""
    found = timed(rows)
    body, off = [], []
    for mask, n in cases(found):
        for direction in DIRECTIONS:
            row = found.get(((mask, n, direction), OURS))
            if row is None:
                continue
            measured = 1e3 * float(row["graph_ms"] or row["ms_50"])
            expected = prediction(predictions, row)
            floor = floor_ms(row)
            if expected:
                off.append(measured / expected)
            body.append(
                [
                    str(n), mask, direction, f"{expected:.0f}" if expected else "-",
                    f"{measured:.0f}", f"{measured / expected:.2f}" if expected else "-",
                    f"{1e3 * floor:.0f}" if floor else "-",
                    f"{1e3 * floor / measured:.0%}" if floor else "-",
                ]
            )  # fmt: skip
    header = [
        "N",
        "mask",
        "direction",
        "predicted us",
        "measured us",
        "ratio",
        "floor us",
        "of it",
    ]
    lines = table(header, body)
    if off:
        mean, low, high = statistics.geometric_mean(off), min(off), max(off)
        lines += ["", f"Measured over predicted: {mean:.2f} on average, {low:.2f} to {high:.2f}."]
    return lines


def prediction(predictions: Sequence[Row], row: Row) -> float | None:
    """The predicted microseconds of a timing of ours, by the last step of the kernels."""
    column = next((f"us_{name}" for name in BANDWIDTH if name in row["processor"]), "")
    same = ("contender", "mask", "batch", "n", "heads", "dim", "dtype", "direction")
    mine = [
        each for each in predictions
        if each["kernel"] == "all" and all(each[name] == row[name] for name in same)
    ]  # fmt: skip
    return float(mine[-1][column]) if mine and mine[-1].get(column) else None


def profiles(rows: Sequence[Row]) -> list[str]:
    """What limits the kernels, by the GPU's counters."""
    header = [
        "mask",
        "N",
        "kernel",
        "us",
        "occupancy",
        "tensor cores",
        "L2 hits",
        "L2 GB",
        "waits",
    ]
    body = []
    for row in rows:
        if row["passed"] == "True":
            percent = [_percent(row[f"{name}_pct"]) for name in ("occupancy", "tensor", "l2_hit")]
            moved = f"{float(row['l2_bytes']) / 1e9:.2f}" if row["l2_bytes"] else "-"
            waits = "; ".join(row["stalls"].split("; ")[:4])
            body.append(
                [row["mask"], row["n"], row["kernel"], row["microseconds"], *percent, moved, waits]
            )
    return table(header, body) if body else []


def not_timed(rows: Sequence[Row]) -> list[str]:
    """Each reason, and what was not timed for it."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if not row["ms_50"]:
            what = f"{row['contender']} on {row['mask']}, N = {row['n']}"
            reasons.setdefault(row["why"], []).append(what)
    lines = []
    for why, what in reasons.items():
        more = f" and {len(what) - 3} more" if len(what) > 3 else ""
        lines.append(f"- {why}: {'; '.join(what[:3])}{more}")
    return lines or ["Everything was timed."]


def checked(rows: Sequence[Row]) -> list[str]:
    """How many checks passed, and each that is wrong."""
    found = [row for row in rows if row["check"] != "machine"]
    passed = sum(row["passed"] == "True" for row in found)
    wrong = [row for row in found if row["passed"] == "False"]
    left = len(found) - passed - len(wrong)
    bounds = [float(row["error_over_bound"]) for row in found if row["error_over_bound"]]
    largest = f"; the largest error is {max(bounds):.2f} of its bound" if bounds else ""
    lines = [f"{passed} checks passed, {len(wrong)} are wrong, {left} were not made{largest}."]
    for row in wrong:
        named = ("check", "phase", "plan", "mask", "n", "dim", "dtype", "features", "test", "why")
        lines.append("- WRONG: " + ", ".join(row[name] for name in named if row[name]))
    return lines


def _ratio_text(found: dict[tuple[Case, str], Row], key: tuple[Case, str]) -> str:
    return f"{ratio(found, found[key]):.2f}" if key in found else "-"


def _both(text: Callable[[tuple[Case, str]], str], mask: str, n: int, name: str) -> str:
    return " / ".join(text(((mask, n, direction), name)) for direction in DIRECTIONS)


def _percent(value: str) -> str:
    return f"{float(value):.0f} %" if value else "-"
