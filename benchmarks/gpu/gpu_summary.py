"""What the rows of a GPU's run come to, short enough for the end of a log.

python -m benchmarks.gpu.gpu_summary gpu_check.jsonl    # of a file that came back
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu.gpu_rows import as_line, identity, latest
from benchmarks.harness.rows import Row, RowFile

_MOST = 25
"""Lines about what is wrong, and about why something was not run."""
_OURS = "sparsebert"
_RIVALS = {
    "cuDNN dense": "cuDNN",
    "flash dense": "flash",
    "FlexAttention": "Flex",
    "Flex, formula": "formula",
    "Flex, tuned": "tuned",
    "SDPA + mask": "SDPA",
}


def summary(rows: Sequence[Row]) -> str:
    """Phases, passed, failed and not run with the reasons; then the times."""
    last = list(latest(rows).values())
    verdicts = [row for row in last if row["check"] not in ("phase", "machine", "timing")]
    timings = [row for row in last if row["check"] == "timing"]
    failed = [row for row in last if row.get("passed") is False]
    lines = ["", *(as_line(row) for row in last if row["check"] == "phase")]
    lines += _by_plan([row for row in verdicts if row["check"] == "correct"])
    lines += _by_check([row for row in verdicts if row["check"] != "correct"])
    lines += _times(timings)
    lines += [f"FAILED: {as_line(row)}" for row in failed[:_MOST]]
    lines += [f"right now, but it was WRONG before: {as_line(row)}" for row in _unsteady(rows)]
    not_run = collections.Counter(
        row.get("why", "") for row in verdicts if row.get("passed", True) is None
    )
    passed = sum(row.get("passed") is True for row in verdicts)
    lines.append(f"{passed} passed, {len(failed)} failed, {sum(not_run.values())} not run")
    lines += [f"  not run: {count} x {why[:120]}" for why, count in not_run.most_common(_MOST)]
    made = sum("ms_50" in row for row in timings)
    lines.append(f"{made} timed, {len(timings) - made} not timed")
    why_not = collections.Counter(row["why"] for row in timings if "ms_50" not in row)
    lines += [f"  not timed: {n} x {why[:120]}" for why, n in why_not.most_common(_MOST)]
    return "\n".join(lines)


def _by_plan(cases: Sequence[Row]) -> Iterator[str]:
    if cases:
        yield "cases by plan and dtype: passed / all, the largest error over its bound"
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in cases:
        groups.setdefault((row["plan"], row["dtype"]), []).append(row)
    for (plan, dtype), these in groups.items():
        passed = sum(row["passed"] is True for row in these)
        worst = max(row.get("error_over_bound", 0.0) for row in these)
        yield f"  {plan:9}{dtype:9}{passed:4} / {len(these):<4} {worst:.2f}"


def _by_check(rows: Sequence[Row]) -> Iterator[str]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["check"], []).append(row)
    for check, these in groups.items():
        if len(these) == 1:
            yield as_line(these[0])
        else:
            passed = sum(row.get("passed", True) is True for row in these)
            yield f"{check}: {passed} of {len(these)} passed"


def _times(timings: Sequence[Row]) -> Iterator[str]:
    """This project's milliseconds, and how many times as long the rivals take."""
    cases: dict[tuple[int, str, str], dict[str, Row]] = {}
    for row in timings:
        if "ms_50" in row:
            case = (row["n"], row["mask"], row["direction"])
            cases.setdefault(case, {})[row["contender"]] = row
    if cases:
        names = "".join(f"{name:>8}" for name in _RIVALS.values())
        yield f"{'N, mask, direction':33}{'ms':>7}{'graph':>7}{names}  (rivals: times as long)"
    for (n, mask, direction), found in cases.items():
        if (ours := found.get(_OURS)) is None:  # then nothing stands beside the rivals
            continue
        way = "f+b" if "backward" in direction else "fwd"
        cells = [_number(ours.get("ms_50")), _number(ours.get("graph_ms"))]
        cells += [_number(found.get(rival, {}).get("speedup"), 2) for rival in _RIVALS]
        times, ratios = cells[:2], cells[2:]
        yield f"{n:<5}{mask[:24]:24} {way}" + "".join(
            [*(f"{cell:>7}" for cell in times), *(f"{cell:>8}" for cell in ratios)]
        )


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _unsteady(rows: Sequence[Row]) -> list[Row]:
    """What was wrong once and was then found right: kernels that race do so."""
    wrong = {identity(row) for row in rows if row.get("passed") is False}
    last = latest(rows)
    return [last[key] for key in wrong if last[key].get("passed") is True]


def main() -> int:
    """Print the summary of some files; the exit status is 2 if they hold no row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.gpu_summary", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("files", nargs="+", type=Path, help="gpu_check.jsonl, from any runs")
    rows = [row for path in parser.parse_args().files for row in RowFile(path).read()]
    print(summary(rows))
    return 0 if rows else 2


if __name__ == "__main__":
    sys.exit(main())
