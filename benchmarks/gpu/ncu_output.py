"""What Nsight Compute (ncu) prints with `--csv --page raw`, as rows.

Of each kernel one line: names of metrics in the first, their units in the second, the values after
that. Which metrics there are depends on the GPU and on the version of ncu; what is not there is
left out of the row.
"""

from __future__ import annotations

import csv
import io
import re
from typing import Any

Row = dict[str, Any]

_STALLS = (
    re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio"),
    re.compile(r"smsp__average_warp_latency_issue_stalled_(\w+)\.ratio"),
    re.compile(r"smsp__warp_issue_stalled_(\w+)_per_warp_active\.pct"),
)
"""Why warps wait, by reason, as versions of ncu call it; the first that there is."""
_TENSOR = re.compile(r"sm__(inst_executed_)?pipe_tensor\w*\..*pct_of_peak_sustained_active")
_COLUMNS = {
    "occupancy_pct": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "occupancy_limit_pct": "sm__maximum_warps_per_active_cycle_pct",
    "issue_active_pct": "sm__issue_active.avg.pct_of_peak_sustained_elapsed",
    "l2_hit_pct": "lts__t_sector_hit_rate.pct",
    "l2_bytes": "lts__t_bytes.sum",
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_written_bytes": "dram__bytes_write.sum",
    "instructions": "smsp__inst_executed.sum",
    "registers": "launch__registers_per_thread",
    "shared_bytes": "launch__shared_mem_per_block_dynamic",
}
_TO_MICROSECONDS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "s": 1e6}
_TO_MICROSECONDS |= {"msecond": 1e3, "second": 1e6}
_REASONS = (
    ("ERR_NVGPUCTRPERM", "this user may not read the GPU's counters (ERR_NVGPUCTRPERM)"),
    ("LibraryNotLoaded", "the profiler cannot be initialised here (LibraryNotLoaded)"),
    ("Failed to find metric", "this ncu does not know a metric"),
    ("No kernels were profiled", "no kernel was profiled"),
)


def parse(text: str) -> list[Row]:
    """A row for each profiled kernel; none if the text holds no table."""
    lines = text.splitlines()
    begin = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), None)
    if begin is None:
        return []
    table = csv.reader(io.StringIO("\n".join(lines[begin:])))
    names, units = next(table), next(table, [])
    unit_of = dict(zip(names, units, strict=False))
    return [
        _row(dict(zip(names, values, strict=True)), unit_of)
        for values in table
        if len(values) == len(names)  # else it is something that ncu says after the table
    ]


def why_nothing(text: str, status: int) -> str:
    """Why there is no table: a known reason, or the end of what ncu said."""
    for mark, reason in _REASONS:
        if mark in text:
            return reason
    return f"ncu ended with status {status}: {' '.join(text.split())[-200:]}"


def _row(values: dict[str, str], units: dict[str, str]) -> Row:
    numbers = {
        name: number for name, text in values.items() if (number := _number(text)) is not None
    }
    row: Row = {"kernel": values["Kernel Name"].split("(")[0].split("<")[0].strip()}
    duration = numbers.get("gpu__time_duration.sum")
    if duration is not None:
        factor = _TO_MICROSECONDS.get(units.get("gpu__time_duration.sum", ""), 1e-3)
        row["microseconds"] = round(duration * factor, 2)
    row |= {column: numbers[name] for column, name in _COLUMNS.items() if name in numbers}
    tensor = [number for name, number in numbers.items() if _TENSOR.fullmatch(name)]
    if tensor:
        row["tensor_pct"] = max(tensor)
    stalls = next(filter(None, (_by_reason(numbers, pattern) for pattern in _STALLS)), {})
    row["stalls"] = dict(sorted(stalls.items(), key=lambda item: -item[1]))
    row["metrics"] = {name: number for name, number in numbers.items() if "__" in name}
    return row


def _by_reason(numbers: dict[str, float], pattern: re.Pattern[str]) -> dict[str, float]:
    found = ((pattern.fullmatch(name), number) for name, number in numbers.items())
    return {m[1]: number for m, number in found if m and not m[1].endswith("_not_issued")}


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
