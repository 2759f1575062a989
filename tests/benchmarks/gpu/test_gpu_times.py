"""The timings of `make gpu`, on the CPU and by no GPU's clock: which, when, and which not."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.attention.rivals import (
    CUDNN,
    EFFICIENT,
    FLASH,
    FLEX,
    FLEX_FORMULA,
    FLEX_TUNED,
    OURS,
    SDPA_MASK,
)
from benchmarks.gpu import gpu_stopwatch, gpu_times
from benchmarks.gpu.gpu_cases import BAND, PLAIN, TIME, KernelCase
from benchmarks.gpu.gpu_record import Record
from benchmarks.gpu.gpu_rows import ANYWAY, latest
from benchmarks.gpu.gpu_times import Task, Timing
from benchmarks.harness import workers
from tests.benchmarks.gpu.phases_to_run import ORIGIN

STAR, STRIDED = (Timing(OURS, mask, 32, 512) for mask in ("star", "strided"))
RIVAL = Timing(SDPA_MASK, "star", 32, 512)


def test_the_most_telling_timings_come_first():
    timings = gpu_times.all_timings()
    assert len(timings) == len(set(timings))
    assert {t.contender for t in timings} == {OURS, FLEX, FLEX_FORMULA, FLEX_TUNED, SDPA_MASK}
    assert all(t.batch * t.n == 32768 for t in timings)
    assert {t.n for t in timings if t.mask == "dense, no diagonal"} == {512, 1024, 2048, 4096}
    assert {t.heads for t in timings if t.mask.startswith("learned: ")} == {12}
    first = [(t.n, t.contender) for t in timings[:36]]
    expected = [(n, who) for n in (4096, 2048, 512) for who in (OURS, FLEX) for _ in range(6)]
    assert first == expected


def record_of(tmp_path):
    return Record(tmp_path / "rows.jsonl", {**ORIGIN, "run": "r"}, device="cpu")


def timed(tmp_path, monkeypatch, rows, timings, seconds=100.0, run=None):
    """Whether each timing was made, else why not: of the rows that the phase adds."""
    record = record_of(tmp_path)
    for row in rows:
        record.add(row)
    before = len(record.rows)

    def rows_of(task, device):
        return [gpu_times._row(task) | {"contender": c, "ms_50": 1.0} for c in task.contenders]

    monkeypatch.setattr(gpu_times, "smoke_timings", lambda: list(timings))
    monkeypatch.setattr(gpu_times, "rows_of", run or rows_of)
    gpu_times.timings(seconds, record)
    return [(row["contender"], row.get("why", True)) for row in record.rows[before:]]


def passing(timing, **found):
    return timing.checked_by.row | {"passed": True, "heights": [64], **found}


def test_dense_attention_is_timed_beside_this_project_in_both_directions(tmp_path, monkeypatch):
    found = timed(tmp_path, monkeypatch, [passing(STAR)], [STAR])
    assert found == [(OURS, True), (CUDNN, True), (FLASH, True)] * 2


def test_a_plan_that_was_not_checked_is_not_timed_but_rivals_are(tmp_path, monkeypatch):
    why = "not timed: its plan was not checked"
    rows = [passing(STAR, passed=None, why="out of memory")]
    found = timed(tmp_path, monkeypatch, rows, [STAR, STRIDED, RIVAL])
    assert [f for f in found if f[0] == OURS] == [(OURS, why)] * 4
    assert found[-2:] == [(SDPA_MASK, True)] * 2
    assert found.count((CUDNN, True)) == 4


def test_a_red_case_stops_what_depends_on_it_and_nothing_else(tmp_path, monkeypatch):
    rows = [passing(STAR, passed=False, why="dq: 3 x its bound"), passing(STRIDED, heights=[16])]
    found = timed(tmp_path, monkeypatch, rows, [STAR, STRIDED])
    red = "not timed: red in star, N = 512, plan by time, plain"
    assert [f for f in found if f[0] == OURS] == [(OURS, red)] * 2 + [(OURS, True)] * 2


@pytest.mark.parametrize("own", [True, False])
def test_what_is_right_is_timed_anyway_where_that_is_asked_for(tmp_path, monkeypatch, own):
    band = KernelCase("64", BAND, 300, 64, "bfloat16", "large scores").row
    rows = [passing(STAR, passed=own, why=""), band | {"passed": False, "why": "1.1 x its bound"}]
    monkeypatch.setenv(ANYWAY, "1")
    found = timed(tmp_path, monkeypatch, rows, [STAR])
    mine = [row for row in record_of(tmp_path).rows if row.get("contender") == OURS]
    assert [row.get("ms_50") for row in mine] == [1.0 if own else None] * 2
    assert all(("red in band" in row.get("despite", "")) is own for row in mine)
    assert len(found) == 6
    if own:
        again = timed(tmp_path, monkeypatch, [], [STAR])
        monkeypatch.delenv(ANYWAY)
        at_last = timed(tmp_path, monkeypatch, [band | {"passed": True}], [STAR])
        assert not again and len(at_last) == 6
        assert not any("despite" in row for row in latest(record_of(tmp_path).rows).values())


def test_the_last_verdict_counts(tmp_path, monkeypatch):
    rows = [passing(STAR, passed=False), passing(STAR)]
    assert (OURS, True) in timed(tmp_path, monkeypatch, rows, [STAR])


@pytest.mark.parametrize(
    ("wrong", "heights", "stops"),
    [
        (KernelCase("64", BAND, 300, 64, "bfloat16", PLAIN), [64], True),
        (KernelCase("64", BAND, 300, 64, "bfloat16", PLAIN, parts=3), [64], True),
        (KernelCase("64", BAND, 300, 64, "bfloat16", "gqa"), [64], True),
        (KernelCase("64", BAND, 300, 64, "bfloat16", "large scores"), [64], True),
        (KernelCase(TIME, "fixed", 512, 64, "bfloat16", PLAIN), None, True),  # of unknown heights
        (KernelCase(TIME, "dense, no diagonal", 512, 64, "bfloat16", PLAIN), [], False),  # torch's
        (KernelCase("16", BAND, 300, 64, "bfloat16", PLAIN), [16], False),
        (KernelCase("16", BAND, 300, 64, "bfloat16", PLAIN), None, False),  # its process died
        (KernelCase("64", BAND, 300, 64, "bfloat16", PLAIN), None, True),
        (KernelCase("64", BAND, 300, 32, "bfloat16", PLAIN), [64], False),
        (KernelCase("64", BAND, 300, 64, "float16", PLAIN), [64], False),
        (KernelCase("64", BAND, 300, 64, "bfloat16", "dropout"), [64], False),
    ],
)
def test_a_red_case_stops_timings_that_run_the_same_kernels(wrong, heights, stops):
    row = (
        wrong.row
        | {"passed": False, "why": "x"}
        | ({} if heights is None else {"heights": heights})
    )
    assert bool(gpu_times.why_not(STAR, [passing(STAR), row])) == stops


def test_what_is_made_is_not_made_again(tmp_path, monkeypatch):
    made = [
        RIVAL.row | {"direction": "forward", "ms_50": 1.0},
        RIVAL.row | {"direction": "forward + backward", "why": "not timed: out of time"},
    ]
    found = timed(tmp_path, monkeypatch, [passing(STAR), *made], [RIVAL])
    assert found == [(OURS, True), (SDPA_MASK, True)]


def test_a_lost_gpu_is_red_for_this_project_and_a_late_timing_says_so(tmp_path, monkeypatch):
    def lost(task, device):
        who = "in turn" if task.timing == STAR else SDPA_MASK
        raise workers.LostDevice(f"{who}: CUDA error: an illegal memory access was encountered")

    timed(tmp_path / "a", monkeypatch, [passing(STAR)], [STAR, RIVAL], run=lost)
    rows = Record(tmp_path / "a" / "rows.jsonl", {**ORIGIN, "run": "r"}).rows[1:]
    assert [row.get("passed") for row in rows] == [False, False, None, None]
    late = timed(tmp_path / "b", monkeypatch, [passing(STAR)], [STAR], seconds=-1.0)
    assert late == [(OURS, "not timed: out of time")] * 2


def test_rivals_that_cannot_run_say_why_and_the_others_are_measured():
    case = Timing(OURS, "star", 1, 40, 2).case("forward")
    rows = gpu_stopwatch.measured(case, (OURS, EFFICIENT, SDPA_MASK), "cpu")
    assert "RuntimeError" in rows[EFFICIENT]["why"] and "ms_50" not in rows[EFFICIENT]
    for name in (OURS, SDPA_MASK):
        assert rows[name]["ms_20"] <= rows[name]["ms_50"] <= rows[name]["ms_80"]
        assert rows[name]["speedup"] > 0.0 and rows[name]["peak_mb"] >= 0.0
    assert 0.0 <= rows[SDPA_MASK]["off_ours"] < 0.1
    absent = dataclasses.replace(case, mask="learned: nobody's")
    assert "NoSuchMask" in gpu_stopwatch.measured(absent, (OURS,), "cpu")[OURS]["why"]


def test_what_a_graph_cannot_hold_costs_its_graph_alone(monkeypatch):
    """It fails as if the GPU were lost, which then answers."""

    def fail(*arguments):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu_stopwatch.gpu_timing, "by_graph", fail)
    entry = gpu_stopwatch._Entry(None, None, {"ms_50": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(gpu_stopwatch, "_answers", lambda: True)
        entry.ready = gpu_stopwatch.Ready(lambda q, k, v: q, 1.0)
        assert "capturing" in gpu_stopwatch._in_graph(CUDNN, entry, 4)["graph_why"]
    monkeypatch.setattr(gpu_stopwatch, "_answers", lambda: False)
    with pytest.raises(workers.LostDevice, match=f"^{CUDNN}: "):
        gpu_stopwatch._in_graph(CUDNN, entry, 4)


def test_a_gpu_that_is_lost_to_its_process_is_said(monkeypatch):
    def lost(*arguments):
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr(gpu_stopwatch, "compiled_plan", lost)
    with pytest.raises(workers.LostDevice, match="misaligned"):
        gpu_stopwatch.measured(Timing(OURS, "star", 1, 40, 2).case("forward"), (OURS,), "cpu")


def test_a_task_of_a_rival_gives_the_rivals_rows_alone(monkeypatch):
    monkeypatch.setattr(
        gpu_times, "measured", lambda case, names, device: {n: {"ms_50": 1.0} for n in names}
    )
    (row,) = gpu_times.rows_of(Task(RIVAL, "forward", with_ours=True), "cpu")
    assert row["contender"] == SDPA_MASK and row["direction"] == "forward"
    assert len(gpu_times.rows_of(Task(STAR, "forward", with_ours=True), "cpu")) == 3
    assert torch.is_grad_enabled()
