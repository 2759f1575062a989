"""What `gpu_check` shows of its rows: a line for each, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.rows import Row


def as_line(row: Row) -> str:
    """A row for the screen."""
    words = {True: "passed", False: "FAILED", None: "not run"}
    if row["check"] == "timing":
        name = " ".join(str(row.get(key, "")) for key in ("batch", "n", "mask", "contender"))
        result = f"{row['ms_50']:9.3f} ms" if "ms_50" in row else f"   {row['why']}"
        return f"{name:44}{row.get('direction', ''):19}{result}"
    if row["check"] != "correct":
        return f"{row['check']:10}{words[row['passed']]:8} {row.get('why', '')}"
    name = f"{row['plan']:8} {row['mask']:20} N {row['n']:<5} D {row['dim']:<4}{row['dtype']:9}"
    ratio = row.get("error_over_bound")
    found = "" if ratio is None else f"error {ratio:.2f} of its bound"
    return f"{name} {row['features']:27}{words[row['passed']]:8} {row.get('why', found)}"


def summary(rows: Sequence[Row]) -> str:
    """Passed, failed and not run with the reasons; then the times."""
    checked = [row for row in rows if row["check"] == "correct"]
    lines = ["", "cases by plan and dtype: passed / all, the largest error over its bound"]
    for plan in dict.fromkeys(row["plan"] for row in checked):
        for dtype in dict.fromkeys(row["dtype"] for row in checked):
            these = [r for r in checked if (r["plan"], r["dtype"]) == (plan, dtype)]
            if these:
                passed = sum(row["passed"] is True for row in these)
                worst = max(row.get("error_over_bound", 0.0) for row in these)
                lines.append(f"  {plan:9}{dtype:9}{passed:4} / {len(these):<4} {worst:.2f}")
    others = [row for row in rows if row["check"] != "timing"]
    timings = [row for row in rows if row["check"] == "timing"]
    lines += [as_line(row) for row in others if row["check"] != "correct"]
    lines += [as_line(row) for row in timings]
    failed = [row for row in others if row["passed"] is False]
    lines += [f"FAILED: {as_line(row)}" for row in failed if row["check"] == "correct"]
    passed = sum(row["passed"] is True for row in others)
    skipped: dict[str, int] = {}
    for row in others:
        if row["passed"] is None:
            skipped[row["why"]] = skipped.get(row["why"], 0) + 1
    lines.append(f"{passed} passed, {len(failed)} failed, {sum(skipped.values())} not run")
    lines += [f"  not run: {count} x {why}" for why, count in skipped.items()]
    made = sum("ms_50" in row for row in timings)
    lines.append(f"{made} timed, {len(timings) - made} not timed")
    return "\n".join(lines)
