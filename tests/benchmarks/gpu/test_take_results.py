"""From files that come back to committed rows: rehearsed with made-up rows, in scratch folders.

No number here was measured; every row says so, and what a repository would keep refuses them.
"""

import csv
import hashlib
import json
import shutil
import zlib

import pytest

pytest.importorskip("triton")
from benchmarks.attention.cases import DIRECTIONS, PAPER
from benchmarks.attention.rivals import CUDNN, FLASH, FLEX, FLEX_FORMULA, FLEX_TUNED, OURS
from benchmarks.end_to_end.end_to_end_report import row_file
from benchmarks.gpu import gpu_readme, gpu_results, gpu_tables, returned_rows, take_results
from benchmarks.gpu.gpu_cases import PLAIN, TIME, KernelCase
from benchmarks.gpu.gpu_times import Timing
from benchmarks.gpu.returned_rows import Refused
from benchmarks.gpu.sweep import LENGTHS, candidates
from benchmarks.harness.origin import RESULTS, ROOT
from benchmarks.harness.rows import RowFile

ORIGIN = {
    "processor": "NVIDIA H100 80GB HBM3", "threads": "16", "torch": "2.11.0+cu130",
    "sparsebert": "0.1.0", "commit": "0000000", "tree": "clean", "date": "2000-01-01",
    "triton": "3.6.0", "run": "2000-01-01T00:00:00", "made_up": True,
}  # fmt: skip
BUNDLE = {CUDNN: 2.0, FLASH: 2.5, FLEX: 1.5, FLEX_FORMULA: 1.25, FLEX_TUNED: 0.5}
KERNEL = {
    "check": "profile", "phase": "profile", "passed": True, "mask": "longformer", "n": 2048,
    "kernel": "forward_kernel", "microseconds": 80.0, "occupancy_pct": 24.6, "tensor_pct": 33.3,
    "l2_hit_pct": 91.2, "l2_bytes": 1.5e9, "stalls": {"long_scoreboard": 4.2, "gmma": 1.1},
    "why": "x",
}  # fmt: skip


def made_up_ms(*about):
    """A time that depends on what it is of, and on nothing else."""
    return 0.05 + (zlib.crc32(repr(about).encode()) % 1000) / 1e4


def timing(contender, mask, n, direction):
    ours = made_up_ms(mask, n, direction)
    ratio = BUNDLE.get(contender, 1.0)
    return {
        **Timing(contender, mask, 32768 // n, n).row, "phase": "timings", "direction": direction,
        "ms_20": ours * ratio * 0.9, "ms_50": ours * ratio, "ms_80": ours * ratio * 1.1,
        "speedup": ratio, "graph_ms": ours * 0.8, "peak_mb": 100.0,
    }  # fmt: skip


def made_up_rows():
    rows = [
        {"check": "machine", "passed": True, "capability": "9.0", "phase": "machine"},
        {"check": "phase", "phase": "gate", "passed": True, "took_s": 1.0, "commit": ""},
    ]
    rows += [
        {**KernelCase(TIME, mask, 512, 64, "bfloat16", PLAIN).row, "phase": "gate",
         "passed": True, "error_over_bound": 0.25}
        for mask in PAPER
    ]  # fmt: skip
    rows += [
        timing(contender, mask, n, direction)
        for contender in (OURS, *BUNDLE)
        for mask in PAPER
        for n in (512, 4096)
        for direction in DIRECTIONS
    ]
    rows.append({**timing(FLEX_FORMULA, "star", 1024, "forward"), "ms_50": None})
    rows[-1] = {k: v for k, v in rows[-1].items() if not k.startswith("ms_")} | {"why": "late"}
    shipped, faster = [
        c for c in candidates("sm90") if (c.entry.kernel, c.entry.height) == ("dq", 64)
    ][:2]
    rows += [
        {**c.row, "phase": "sweep", "mask": mask, "n": n, "ms_50": ms, "passed": True, "why": "x"}
        for c, ms in ((shipped, 1.0), (faster, 0.8))
        for mask in PAPER
        for n in LENGTHS
    ]
    ended = {"check": "phase", "phase": "machine", "passed": True}  # from before the GPU is known
    return [ended, *({**ORIGIN, **row} for row in [*rows, KERNEL])]


def written(folder, rows, name="gpu_check.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def scratch(tmp_path):
    """A folder for results, and a page with the marks."""
    results = tmp_path / "results"
    results.mkdir()
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{gpu_readme.BEGIN}\nold\n{gpu_readme.END}\nafter\n")
    return results, readme


def take(tmp_path, scratch, rows):
    return take_results.take(written(tmp_path / "back", rows), *scratch)


def test_rows_become_files_a_report_and_a_section(tmp_path, scratch):
    results, readme = scratch
    said = take(tmp_path, scratch, made_up_rows())
    names = {path.name for path in results.iterdir()}
    assert names - {"gpu_0_predicted.png"} == {
        "gpu_times.csv", "gpu_checks.csv", "gpu_sweep.csv", "gpu_profile.csv", "gpu.md",
        "gpu_0_speedup.png",
    }  # fmt: skip
    report = (results / "gpu.md").read_text()
    assert "7 checks passed" not in report and "6 checks passed, 0 are wrong" in report
    for expected in (
        "| 4096 | star | 2.00 / 2.00 | 1.50 / 1.50 | 1.25 / 1.25 | 0.50 / 0.50 |",
        "| longformer | 2048 | forward_kernel | 80.0 | 25 % | 33 % | 91 % | 1.50 |",
        "- late: Flex, formula on star, N = 1024",
        "NVIDIA H100 80GB HBM3",
        "**Made up: nothing here was measured.**",
    ):
        assert expected in report
    page = readme.read_text()
    assert page.startswith(f"before\n{gpu_readme.BEGIN}\n") and page.endswith("after\n")
    assert "old" not in page and "commit 0000000, 2000-01-01" in page
    assert any("for MEASURED" in line for line in said)
    (entry,) = [line for line in said if "LaunchConfig" in line]
    assert "('dq', 'sm90', 64, 64, 2, False, False)" in entry and "1.25 times" in entry
    assert eval("{" + entry.split("#")[0] + "}", {"LaunchConfig": dict})


def test_the_report_comes_from_the_files_alone(tmp_path, scratch):
    results, _ = scratch
    take(tmp_path, scratch, made_up_rows())
    before = (results / "gpu.md").read_text()
    (results / "gpu.md").unlink()
    take_results.write_report(results)
    assert (results / "gpu.md").read_text() == before


def test_predictions_stand_beside_what_was_measured(tmp_path, scratch):
    results, _ = scratch
    take(tmp_path, scratch, made_up_rows())
    times = gpu_results.read(gpu_results.TIMES, results)
    same = ("contender", "mask", "batch", "n", "heads", "dim", "dtype", "direction")
    expected = [
        {**{name: row[name] for name in same}, "kernel": kernel, "us_H100": us, "us_H200": "1"}
        for row in times
        if row["contender"] == OURS
        for kernel, us in (("forward", "7"), ("all", "9000"), ("all", "100"))
    ]
    lines = gpu_tables.predicted(times, expected)
    first = gpu_tables.timed(times)[("star", 4096, "forward"), OURS]
    measured = 1e3 * float(first["graph_ms"])
    floor = 4 * 32768 * 12 * 64 * 2 / 3.35e12 * 1e6
    assert lines[2] == (
        f"| 4096 | star | forward | 100 | {measured:.0f} | {measured / 100:.2f} "
        f"| {floor:.0f} | {floor / measured:.0%} |"
    )
    assert "on average" in lines[-1]
    path = tmp_path / "predictions.csv"
    RowFile(path, expected[0]).write(expected)
    take_results.write_report(results, path)
    assert lines[2] in (results / "gpu.md").read_text()
    assert (results / "gpu_0_predicted.png").exists()
    assert gpu_tables.prediction(expected, {**first, "processor": "NVIDIA H200"}) == 1.0
    assert gpu_tables.prediction(expected, {**first, "processor": "another"}) is None


def test_made_up_rows_never_reach_the_repository(tmp_path):
    folder = written(tmp_path / "back", made_up_rows())
    (tmp_path / "README.md").write_text(f"{gpu_readme.BEGIN}\n{gpu_readme.END}\n")
    before = {path: digest(path) for path in (*RESULTS.glob("gpu*"), ROOT / "README.md")}
    for results, readme in (
        (RESULTS, tmp_path / "README.md"),
        (tmp_path, gpu_readme.README),
        (ROOT / "benchmarks" / "no such folder", tmp_path / "README.md"),
    ):
        with pytest.raises(Refused, match="made up"):
            take_results.take(folder, results, readme)
    assert take_results.main([str(folder)]) == 1
    assert before == {path: digest(path) for path in (*RESULTS.glob("gpu*"), ROOT / "README.md")}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_committed_rows_were_measured():
    for table in gpu_results.TABLES:
        for row in gpu_results.read(table, RESULTS):
            assert not row["made_up"] and row["tree"] == "clean" and row["commit"] != "unknown"


@pytest.mark.parametrize("name", returned_rows.PROVENANCE)
@pytest.mark.parametrize("value", [None, "", "unknown"])
def test_rows_without_provenance_are_refused(tmp_path, scratch, name, value):
    rows = made_up_rows()
    rows[10] = {**rows[10], name: value}
    if value is None:
        del rows[10][name]
    with pytest.raises(Refused, match=f"1 rows do not say their {name}"):
        take(tmp_path, scratch, rows)
    assert not list(scratch[0].iterdir())


@pytest.mark.parametrize(
    "place, change, expected",
    [
        (10, {"tree": "dirty"}, "not clean"),
        (10, {"commit": "1111111"}, "several runs: commit"),
        (10, {"processor": "NVIDIA H200"}, "several runs: processor"),
        (3, {"passed": False, "why": "o is wrong"}, "the gate is red, 1 rows.*star"),
        (10, {"despite": "red in band"}, "1 timings were made though others were red"),
        (1, {"capability": ""}, "no row of a machine"),
        (1, {"passed": None}, "no row of a machine"),
    ],
)
def test_what_cannot_be_published_is_refused(tmp_path, scratch, place, change, expected):
    rows = made_up_rows()
    if "the gate" in expected:
        place = next(at for at, row in enumerate(rows) if row.get("mask") == "star")
    rows[place] = {**rows[place], **change}
    with pytest.raises(Refused, match=expected):
        take(tmp_path, scratch, rows)


def test_a_run_without_a_gate_is_refused(tmp_path, scratch):
    rows = [row for row in made_up_rows() if row["check"] != "correct"]
    with pytest.raises(Refused, match="nothing right"):
        take(tmp_path, scratch, rows)


def test_the_last_row_about_a_thing_counts(tmp_path, scratch):
    """A second run goes on from the first: what was wrong there is right now."""
    rows = made_up_rows()
    at = next(at for at, row in enumerate(rows) if row["check"] == "correct")
    earlier = [{**row, "run": "1999-12-31T00:00:00"} for row in rows]
    earlier[at] = {**earlier[at], "passed": False, "why": "wrong"}
    folder = written(tmp_path / "back", rows[at : at + 1], "a.jsonl")
    written(folder, earlier, "b.jsonl")
    take_results.take(folder, *scratch)
    checks = gpu_results.read(gpu_results.CHECKS, scratch[0])
    assert len(checks) == 1 + len(PAPER) and not any(row["passed"] == "False" for row in checks)


def test_what_is_wrong_behind_the_gate_is_published(tmp_path, scratch):
    rows = made_up_rows()
    wide = next(row for row in rows if row["check"] == "correct")
    wide = {**wide, "phase": "wide", "dim": 256, "passed": False, "why": "dk is wrong"}
    take(tmp_path, scratch, [*rows, wide])
    assert "WRONG: correct, wide, by time, star" in (scratch[0] / "gpu.md").read_text()


def test_rows_of_another_gpu_stay(tmp_path, scratch):
    take(tmp_path, scratch, made_up_rows())
    shutil.rmtree(tmp_path / "back")
    other = [{**row, "processor": "NVIDIA H200"} for row in made_up_rows()]
    take(tmp_path, scratch, other)
    take(tmp_path, scratch, other)  # again: its own rows are replaced
    rows = gpu_results.read(gpu_results.TIMES, scratch[0])
    counts = [sum(row["processor"] == name for row in rows) for name in processors(rows)]
    assert len(counts) == 2 and counts[0] == counts[1]
    report = (scratch[0] / "gpu.md").read_text()
    assert "## NVIDIA H100 80GB HBM3" in report and "## NVIDIA H200" in report
    assert (scratch[0] / "gpu_1_speedup.png").exists()


def of_models(folder, **changes):
    """The committed rows of whole models on a CPU, as if they were of this run."""
    with (RESULTS / "end_to_end_cpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    run = {name: ORIGIN[name] for name in ORIGIN if name in rows[0]}
    row_file(folder, "cuda").write([{**row, "device": "cuda", **run, **changes} for row in rows])
    return len(rows)


def test_whole_models_are_taken_too(tmp_path, scratch):
    folder = written(tmp_path / "back", made_up_rows())
    count = of_models(folder)
    said = take_results.take(folder, *scratch)
    assert "end_to_end_cuda.csv" in said[0]
    assert len(row_file(scratch[0], "cuda").read()) == count
    assert "NVIDIA H100" in (scratch[0] / "end_to_end.md").read_text()
    take_results.take(folder, *scratch)  # again: they take each other's place
    assert len(row_file(scratch[0], "cuda").read()) == count


def test_whole_models_of_another_run_are_refused(tmp_path, scratch):
    folder = written(tmp_path / "back", made_up_rows())
    of_models(folder, commit="1111111")
    with pytest.raises(Refused, match="another run: commit is 1111111, not 0000000"):
        take_results.take(folder, *scratch)
    assert not list(scratch[0].iterdir())


def test_nothing_of_an_earlier_run_stays(tmp_path, scratch):
    """What this run did not do must not look as if it had."""
    take(tmp_path, scratch, made_up_rows())
    assert gpu_results.read(gpu_results.SWEEP, scratch[0])
    take(tmp_path, scratch, [row for row in made_up_rows() if row["check"] != "sweep"])
    assert not gpu_results.read(gpu_results.SWEEP, scratch[0])
    assert gpu_results.read(gpu_results.PROFILE, scratch[0])


def processors(rows):
    return {row["processor"] for row in rows}


def test_a_rehearsal_by_the_command(tmp_path, capsys):
    folder = written(tmp_path / "back", made_up_rows())
    assert take_results.main([str(folder), "--into", str(tmp_path / "scratch")]) == 0
    assert "for MEASURED" in capsys.readouterr().out
    assert (tmp_path / "scratch" / "gpu.md").exists()
    page = (tmp_path / "scratch" / "README.md").read_text()
    assert gpu_readme.BEGIN in page and "NVIDIA H100" in page


def test_an_empty_folder_is_an_error(tmp_path, capsys):
    assert take_results.main([str(tmp_path)]) == 1
    assert "no *.jsonl" in capsys.readouterr().err


def test_a_file_in_place_of_its_folder_is_an_error_that_says_so(tmp_path, capsys):
    folder = written(tmp_path / "back", made_up_rows())
    (file,) = folder.glob("*.jsonl")
    assert take_results.main([str(file)]) == 1
    said = capsys.readouterr().err
    assert f"{file} is a file; give the folder" in said and str(folder) in said


def test_csv_files_hold_what_was_measured(tmp_path, scratch):
    take(tmp_path, scratch, made_up_rows())
    with (scratch[0] / "gpu_times.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(row["check"] == "timing" for row in made_up_rows())
    assert rows[0]["contender"] == OURS and float(rows[0]["ms_50"]) > 0.0
    assert {row["made_up"] for row in rows} == {"True"}
    profile = gpu_results.read(gpu_results.PROFILE, scratch[0])
    assert profile[0]["stalls"] == "long_scoreboard 4.20; gmma 1.10"


def test_readme_has_the_section_of_the_committed_rows():
    page = gpu_readme.README.read_text(encoding="utf-8")
    lines = gpu_readme.block(gpu_results.read(gpu_results.TIMES, RESULTS))
    assert "\n".join([gpu_readme.BEGIN, "", *lines, "", gpu_readme.END]) in page


def test_a_page_without_marks_is_an_error(tmp_path, scratch):
    scratch[1].write_text("nothing")
    with pytest.raises(ValueError, match=r"README\.md"):
        take(tmp_path, scratch, made_up_rows())
    assert not list(scratch[0].iterdir())


def test_predictions_are_read_where_they_are(tmp_path):
    assert take_results._predictions(tmp_path / "none.csv") == []
    if take_results.PREDICTIONS.exists():
        rows = take_results._predictions(take_results.PREDICTIONS)
        assert {"us_H100", "us_H200"} <= set(rows[0])
        assert RowFile(take_results.PREDICTIONS).path.suffix == ".csv"
