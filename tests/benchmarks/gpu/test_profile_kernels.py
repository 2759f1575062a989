"""What ncu says of the kernels, as rows: a made-up table in its format, and each way to fail."""

import stat
import sys
import time

import pytest

pytest.importorskip("triton")
from benchmarks.gpu import ncu_output, profile_kernels
from tests.benchmarks.gpu.rows import Rows

STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
NAMES = [
    "ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream",
    "Block Size", "Grid Size", "Device", "CC", "dram__bytes_read.sum", "gpu__time_duration.sum",
    "launch__registers_per_thread", "lts__t_bytes.sum", "lts__t_sector_hit_rate.pct",
    "sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active", STALL.format("barrier"),
    STALL.format("long_scoreboard"), STALL.format("gmma"), "smsp__pcsamp_sample_buffer_full",
]  # fmt: skip
UNITS = [""] * 11 + ["byte", "ns", "register/thread", "byte", *["%"] * 4, *["inst"] * 3, ""]
FORWARD = [
    "0", "4711", "python3.12", "127.0.0.1", "forward_kernel", "1", "7", "(128, 1, 1)",
    "(6144, 1, 1)", "0", "9.0", "201,326,592", "83,424", "128", "1,610,612,736", "87.25", "31.5",
    "38.75", "22.1", "0.4", "5.25", "2.5", "n/a",
]  # fmt: skip
DQ = [*FORWARD[:4], "dq_kernel", *FORWARD[5:12], "1,250,000", *FORWARD[13:]]


def line(values):
    return ",".join(f'"{value}"' for value in values)


TABLE = "\n".join(
    [
        "==PROF== Connected to process 4711 (/usr/bin/python3.12)",
        '==PROF== Profiling "forward_kernel" - 0: 0%....50%....100% - 31 passes',
        *map(line, (NAMES, UNITS, FORWARD, DQ)),
        "==PROF== Disconnected from process 4711",
    ]
)


def test_a_table_becomes_rows():
    forward, dq = ncu_output.parse(TABLE)
    assert forward["kernel"] == "forward_kernel" and dq["kernel"] == "dq_kernel"
    assert (forward["microseconds"], dq["microseconds"]) == (83.42, 1250.0)
    assert (forward["l2_hit_pct"], forward["l2_bytes"]) == (87.25, 1610612736.0)
    assert (forward["tensor_pct"], forward["occupancy_pct"]) == (38.75, 22.1)
    assert forward["registers"] == 128.0
    assert list(forward["stalls"]) == ["long_scoreboard", "gmma", "barrier"]  # the longest first
    assert "occupancy_limit_pct" not in forward and "Stream" not in forward["metrics"]
    assert profile_kernels.in_short(forward) == (
        "forward_kernel, 83 us, occupancy 22 %, tensor cores 39 %, L2 hits 87 %, "
        "waits: long_scoreboard 5.2, gmma 2.5, barrier 0.4"
    )


@pytest.mark.parametrize("unit, expected", [("ns", 0.08), ("us", 83.42), ("msecond", 83424.0)])
def test_durations_have_units(unit, expected):
    values = [*FORWARD[:12], "83.424", *FORWARD[13:]]
    units = [*UNITS[:12], unit, *UNITS[13:]]
    (row,) = ncu_output.parse("\n".join(map(line, (NAMES, units, values))))
    assert row["microseconds"] == expected


@pytest.mark.parametrize(
    "other", ["smsp__average_warp_latency_issue_stalled_{}.ratio",
              "smsp__warp_issue_stalled_{}_per_warp_active.pct"],
)  # fmt: skip
def test_stalls_have_several_names(other):
    names = [other.format("wait") if name == STALL.format("gmma") else name for name in NAMES]
    named = [name.replace("issue_stalled_barrier", "x") for name in names]
    named = [name.replace("issue_stalled_long_scoreboard", "y") for name in named]
    (row,) = ncu_output.parse("\n".join(map(line, (named, UNITS, FORWARD))))
    assert row["stalls"] == {"wait": 2.5}
    both = [name.replace("_barrier_", "_barrier_not_issued_") for name in names]
    (row,) = ncu_output.parse("\n".join(map(line, (both, UNITS, FORWARD))))
    assert row["stalls"] == {"long_scoreboard": 5.25}  # of one kind, not of several


@pytest.mark.parametrize("text", ["", "==ERROR== something", line(NAMES)])
def test_without_a_table_there_are_no_rows(text):
    assert ncu_output.parse(text) == []


def script(tmp_path, body):
    """A command in ncu's place: `log` is the file that it was told to write to."""
    path = tmp_path / "ncu"
    path.write_text(
        f"#!{sys.executable}\nimport sys, time\n"
        "log = sys.argv[sys.argv.index('--log-file') + 1]\n" + body
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return [str(path)]


def test_the_phase_adds_a_row_for_each_kernel_of_each_case(tmp_path):
    rows = Rows()
    profile_kernels.profile(60.0, rows, script(tmp_path, f"open(log, 'w').write({TABLE!r})"))
    assert all(row["passed"] is True for row in rows.added)
    assert [(row["mask"], row["n"], row["kernel"]) for row in rows.added] == [
        (mask, n, kernel)
        for mask, n in profile_kernels.CASES
        for kernel in ("forward_kernel", "dq_kernel")
    ]
    again = Rows(rows.added)
    profile_kernels.profile(60.0, again, ["/no/such/program"])
    assert not again.added


def test_an_unknown_metric_costs_that_metric_alone(tmp_path):
    body = f"""
if "--metrics" in sys.argv:
    print("==ERROR== Failed to find metric regex:^lts__t_bytes")
    sys.exit(1)
open(log, "w").write({TABLE!r})
"""
    rows = Rows()
    profile_kernels.profile(60.0, rows, script(tmp_path, body))
    assert rows.added[0]["passed"] is True


@pytest.mark.parametrize(
    "said, expected",
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", "ERR_NVGPUCTRPERM"),
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded", "LibraryNotLoaded"),
        ("==WARNING== No kernels were profiled.", "no kernel"),
        ("something else", "status 1: something else"),
    ],
)
def test_what_keeps_ncu_from_it_is_a_row(tmp_path, said, expected):
    rows = Rows()
    profile_kernels.profile(60.0, rows, script(tmp_path, f"print({said!r}); sys.exit(1)"))
    assert rows.only()["passed"] is None and expected in rows.only()["why"]


def test_without_ncu_there_is_a_row(monkeypatch):
    monkeypatch.setattr(profile_kernels, "_ncu", list)
    rows = Rows()
    profile_kernels.profile(60.0, rows)
    assert rows.only()["why"] == "ncu is not installed"


def test_it_ends_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(profile_kernels, "_LEAST_SECONDS", 0.5)
    rows = Rows()
    begin = time.monotonic()
    profile_kernels.profile(1.0, rows, script(tmp_path, "time.sleep(60)"))
    assert time.monotonic() - begin < 5.0
    assert rows.only()["passed"] is None and "no result after 1 s" in rows.only()["why"]
