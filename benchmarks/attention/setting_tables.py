"""Tables over the settings of a CPU (threads, MKL, instruction set), and what limits each case."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.attention.attention_tables import case_name, scores
from benchmarks.attention.cases import DIRECTIONS, FORWARD
from benchmarks.attention.result_files import (
    KEY,
    Row,
    key_of,
    setting_of,
    with_best_dense,
)
from benchmarks.attention.rivals import OURS, RIVALS
from benchmarks.harness import mkl
from benchmarks.harness.markdown import table

Setting = tuple[str, ...]
_GOAL = 0.6  # share of a core's peak that is worth naming what falls short of it


def settings_of(rows: Sequence[Row]) -> list[Setting]:
    """The settings that rows are of, the most telling first.

    Those that most cases were timed in come first, of these MKL at its best, then more threads.
    """
    counts: dict[Setting, int] = {}
    for row in rows:
        if row["contender"] == OURS and row["ms_50"]:
            counts[setting_of(row)] = counts.get(setting_of(row), 0) + 1
    most = max(counts.values(), default=0)

    def rank(setting: Setting) -> tuple[bool, bool, int]:
        threads, how, _ = setting
        return 2 * counts[setting] < most, how != mkl.AVX512, -int(threads)

    return sorted(counts, key=rank)


def of_setting(rows: Sequence[Row], setting: Setting) -> list[Row]:
    """The rows of one setting."""
    return [row for row in rows if setting_of(row) == setting]


def name_of(setting: Setting) -> str:
    """A setting in words: "2 threads, MKL as shipped, avx512 bf16"."""
    return mkl.in_words(*setting)


def by_setting(rows: Sequence[Row]) -> list[str]:
    """A line for each setting and rival: geometric means, wins and losses, and the worst case.

    Of settings in which fewer cases were timed, the line says how many.
    """
    body = []
    every = with_best_dense(rows)
    cases = {
        setting: sum(row["contender"] == OURS and bool(row["ms_50"]) for row in mine)
        for setting in settings_of(rows)
        if (mine := of_setting(rows, setting))
    }
    for setting, count in cases.items():
        most = max(cases.values())
        few = f" ({count} of {most} cases)" if count < most else ""
        timed = [r for r in of_setting(every, setting) if r["speedup"]]
        for rival in (rival.name for rival in RIVALS if rival.name != OURS):
            mine = [row for row in timed if row["contender"] == rival]
            if not mine:
                continue
            cells = [
                scores(float(row["speedup"]) for row in mine if row["direction"] == direction)
                for direction in DIRECTIONS
            ]
            worst = min(mine, key=lambda row: float(row["speedup"]))
            body.append(
                [
                    name_of(setting) + few,
                    rival,
                    *(cell or "-" for cell in cells),
                    f"{float(worst['speedup']):.2f}: {case_name(worst)}, {worst['direction']}",
                ]
            )
    return table(["setting", "against", *DIRECTIONS, "worst case"], body)


def half_precision(rows: Sequence[Row]) -> list[str]:
    """Our own times in fp32 over those in 16 bits, where a case was timed in both."""
    times: dict[tuple[object, ...], dict[str, float]] = {}
    dtype_at, group_at = KEY.index("dtype"), KEY.index("group")
    for row in rows:
        if row["contender"] != OURS or not row["ms_50"]:
            continue
        key = [x for at, x in enumerate(key_of(row)) if at not in (dtype_at, group_at)]
        times.setdefault((*setting_of(row), *key), {})[row["dtype"]] = float(row["ms_50"])
    ratios = [
        (found["float32"] / ms, dtype)
        for found in times.values()
        if "float32" in found
        for dtype, ms in found.items()
        if dtype != "float32"
    ]
    if not ratios:
        return []
    lines = []
    for dtype in sorted({dtype for _, dtype in ratios}):
        mine = [ratio for ratio, of in ratios if of == dtype]
        lines.append(
            f"In {dtype} we take 1 / {statistics.geometric_mean(mine):.2f} of our own time in "
            f"float32 (geometric mean of {len(mine)} cases; from {min(mine):.2f} to "
            f"{max(mine):.2f})."
        )
    return lines


def limits(rows: Sequence[Row]) -> list[str]:
    """What limits the native kernels, in a few lines."""
    ours = _with_peak(rows)
    if not ours:
        return ["No peak was measured: that takes the native kernels and a C++ compiler."]
    lines = []
    for direction in DIRECTIONS:
        mine = [row for row in ours if row["direction"] == direction]
        shares = [float(row["of_peak"]) for row in mine]
        if shares:
            lines += [
                f"- {direction}: {statistics.median(shares):.0%} of the peak in the median, "
                f"{sum(share >= _GOAL for share in shares)} of {len(shares)} cases at {_GOAL:.0%} "
                f"or more, at most {max(shares):.0%}; 2^x takes "
                f"{statistics.median(float(r['exp_share']) for r in mine):.0%} of the time in the "
                "median."
            ]
    tiles = [
        float(row["of_peak"])
        for row in ours
        if int(row["tile_scores"]) > 20 * int(row["entry_scores"]) and row["direction"] == FORWARD
    ]
    if tiles:
        lines.append(
            f"- tiles alone (hardly any single entries), forward: {min(tiles):.0%} to "
            f"{max(tiles):.0%}."
        )
    entries = [float(row["of_peak"]) for row in ours if not int(row["tile_scores"])]
    if entries:
        lines.append(
            f"- single entries alone: {min(entries):.0%} to {max(entries):.0%}; each reads a row "
            "of K and one of V for one score."
        )
    return lines


def roofline(rows: Sequence[Row]) -> list[str]:
    """A line for each case of the native kernels: what it computes and moves, how fast."""
    body = []
    for row in _with_work(rows):
        ms, floor = float(row["ms_50"]), float(row["floor_ms"])
        tiles, entries = int(row["tile_scores"]), int(row["entry_scores"])
        body.append(
            [
                case_name(row),
                row["direction"],
                row["routes"],
                f"{tiles / 1e3:,.0f}",
                f"{entries / 1e3:,.0f}",
                f"{ms:.3f}",
                row["gflop_s"],
                f"{float(row['of_peak']):.0%}" if row["of_peak"] else "-",
                f"{float(row['exp_share']):.0%}" if row["exp_share"] else "-",
                row["read_gb_s"] or "-",
                f"{float(row['of_l2']):.0%}" if row["of_l2"] else "-",
                f"{float(row['moved_mb']):.2f}",
                f"{ms / floor:.1f}" if floor else "-",
            ]
        )
    header = [
        "case", "direction", "heads", "tile scores, 10^3", "single entries, 10^3", "ms",
        "GFLOP/s", "of peak", "2^x", "k and v read, GB/s", "of L2", "q, k, v, o: MB",
        "time over moving them once",
    ]  # fmt: skip
    return table(header, body)


def _with_work(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["contender"] == OURS and row["gflop_s"]]


def _with_peak(rows: Sequence[Row]) -> list[Row]:
    return [row for row in _with_work(rows) if row["of_peak"]]
