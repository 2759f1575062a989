"""The kernels compile for GPUs that are not at hand, and the code is what we count on."""

import csv
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from sparsebert.kernels.configs import LaunchConfig, launch_config, shared_limit
from tests import ROOT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The report on its representative set, from a process that does not interpret kernels."""
    path = tmp_path_factory.mktemp("report") / "report.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels.codegen_report", "--representative",
         "--json", path],
        cwd=ROOT,
        env=ENVIRONMENT,
        check=False,  # what failed is in the rows
        capture_output=True,
    )  # fmt: skip
    return json.loads(path.read_text())


def test_everything_compiles(rows):
    errors = [row for row in rows if row["error"]]
    assert rows and not errors


def test_no_loop_spills_and_nothing_overwrites_what_a_wgmma_reads(rows):
    assert not [row for row in rows if row["loop_spills"] or row["hazards"]]
    assert all(row["programs"] > 0 for row in rows if row["arch"].startswith("sm"))


def per_1000(row):
    """Instructions per 1,000 scores of the loop over full columns, and of the one with bits."""
    return [int(count) for count in row["per_1000"].split(" / ")]


def test_tile_kernels_use_tensor_cores_and_pipelined_loads(rows):
    for row in rows:
        if row["kernel"] == "merge":
            continue
        assert row["tensor_core"] > 0 or row["precision"] == "ieee", row
        if row["arch"].startswith("sm") and row["num_stages"] > 1:
            assert row["async_copies"] > 0, row
        if row["arch"].startswith("sm") and row["num_stages"] > 2:
            assert min(map(int, row["in_flight"].split(" / "))) > 0, row
        assert len(per_1000(row)) == 2, row


def test_wgmma_is_not_serialised(rows):
    assert not any(row["serial"] for row in rows)


@pytest.mark.parametrize(
    ("kernel", "height", "full", "bits"),
    [("forward", 64, 308, 380), ("forward", 16, 518, 596), ("dq", 64, 265, 346),
     ("dkdv", 64, 317, 387)],
)  # fmt: skip
def test_instructions_per_score_do_not_grow(rows, kernel, height, full, bits):
    """About 3 % above what was counted when the kernels were tuned (sm_90, D = 64, bf16)."""
    counted = [
        per_1000(row)
        for row in rows
        if (row["kernel"], row["arch"]) == (kernel, "sm90")
        and str(height) in row["rows"].split()
        and row["dtype"] == "bfloat16"
        and not row["key_mask"]
    ]
    assert counted and counted[0][0] <= full and counted[0][1] <= bits


def test_the_survey_keeps_rows_of_another_triton(tmp_path):
    """And compiles what it has no row of, made from these kernels by this Triton."""
    code = """if True:
        import pathlib, sys
        from benchmarks.kernels import codegen_report as report
        path = pathlib.Path(sys.argv[1])
        specs = [report.Specialisation("forward", "sm90", height) for height in (64, 32)]
        compiled = []
        def made_up(specs, jobs, end):
            compiled.append(len(specs))
            for spec in specs:
                yield report.identity(spec) | dict.fromkeys(report._COUNTS, "1") | {"error": "x"}
        report.compile_all = made_up
        for version in ("3.9.0", "3.6.0", "3.9.0"):
            report.triton.__version__ = version
            assert len(report.survey(path, specs, 1, 0)) == 2
        report.survey(path, specs[:1], 1, 0)  # the other is not launched any more
        report.kernels_fingerprint = lambda: "other kernels"
        report.survey(path, specs, 1, 0)
        assert compiled == [2, 2, 0, 0, 2], compiled
    """
    path = tmp_path / "survey.csv"
    subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, env=ENVIRONMENT, check=True,
        capture_output=True,
    )  # fmt: skip
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["triton"] for row in rows] == ["3.6.0", "3.6.0", "3.9.0", "3.9.0"]
    assert [row["kernels"] == "other kernels" for row in rows] == [False, False, True, True]


KNOWN_LOOP_SPILLS = {
    ("dkdv", "sm80", "64 128", "64", "bfloat16", "False", "False", "3.6.0"): 1,
    ("dkdv", "sm90", "16 32 64 128", "256", "float32", "False", "False", "3.6.0"): 8,
    ("dkdv", "sm80", "16 32 64 128", "128", "float32", "False", "False", "3.6.0"): 1,
    ("dkdv", "sm80", "16 32 64 128", "128", "float32", "True", "False", "3.6.0"): 1,
    ("dkdv", "sm80", "16 32 64 128", "128", "float32", "True", "True", "3.6.0"): 1,
    ("dkdv", "sm90", "32", "64", "bfloat16", "False", "False", "3.9.0"): 1,
    ("dq", "sm100", "16", "64", "bfloat16", "True", "True", "3.9.0"): 1,
    ("dkdv", "gfx1201", "16", "64", "bfloat16", "True", "True", "3.9.0"): 4,
    ("dq", "sm103", "16", "64", "bfloat16", "True", "True", "3.9.0"): 3,
    ("dq", "sm110", "16", "64", "bfloat16", "True", "True", "3.9.0"): 1,
    ("dkdv", "sm80", "16 32 64 128", "128", "float32", "True", "True", "3.9.0"): 1,
    ("dq", "sm80", "16 32 64 128", "256", "float32", "True", "True", "3.9.0"): 6,
}
"""By kernel, architecture, rows, head size, dtype, key mask, dropout and Triton: instructions."""


def may_spill(row):
    """Where no configuration was found that does not: RDNA 3, and CDNA for wide fp32 heads."""
    return row["arch"] == "gfx1100" or (
        (row["arch"], row["dtype"], row["head_dim"]) == ("gfx942", "float32", "256")
    )


def test_the_committed_survey_is_of_what_ships():
    """By both Tritons: loops spill in known forms alone, wgmma runs on, shared memory suffices."""
    names = ("kernel", "arch", "rows", "head_dim", "dtype", "key_mask", "dropout", "triton")
    path = ROOT / "benchmarks" / "results" / "kernels_survey.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["error"] != "not compiled: out of time"]
    of_hopper = [row for row in rows if row["arch"] == "sm90"]
    assert {row["triton"] for row in of_hopper} == {"3.6.0", "3.9.0"} and len(of_hopper) > 140
    for row in rows:
        assert not row["error"], row
        assert int(row["hazards"]) == 0, row
        known = KNOWN_LOOP_SPILLS.get(tuple(row[name] for name in names), 0)
        assert may_spill(row) or int(row["loop_spills"]) == known, row
        assert row["serial"] == "False", row
        assert int(row["shared_bytes"]) <= shared_limit(row["arch"]), row
        itemsize = 4 if row["dtype"] == "float32" else 2
        sizes = ("block_m", "block_n", "num_warps", "num_stages", "maxnreg")
        compiled = LaunchConfig(*(int(row[name]) if row[name] else None for name in sizes))
        for height in row["rows"].split():
            shipped = launch_config(
                row["kernel"], row["arch"], int(height), int(row["head_dim"]), itemsize,
                row["key_mask"] == "True", row["dropout"] == "True",
            )  # fmt: skip
            assert shipped == compiled, row
