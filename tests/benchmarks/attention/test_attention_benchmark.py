"""The attention benchmark: its cases, rivals, correctness, bounds, and a run."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.attention import (
    cases,
    flex_rivals,
    inputs,
    measure_case,
    result_files,
    rivals,
    roofs,
    run,
)
from benchmarks.attention.cases import BOTH, DEVICES, FORWARD, Case, select
from benchmarks.attention.contender import Ready, Setup
from benchmarks.attention.correctness import ResultCheck
from benchmarks.harness import gpu_timing, named_masks
from sparsebert import patterns
from sparsebert.api import sparse_attention
from sparsebert.masks import AttentionMask
from tests import ROOT

TINY = Case("tiny", "test", 2, 2, 24, 8, "longformer", BOTH, "float32")
ROOFS = roofs.Roofs(10.0, {"float32": 0.1, "bfloat16": 0.2, "float16": 0.2})


# ---------------------------------------------------------------- cases


def of(device: str) -> tuple[Case, ...]:
    return select(device, "full")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tier", cases.TIERS)
def test_no_case_is_timed_twice(device: str, tier: str) -> None:
    table = select(device, tier)
    keys = [case.key[1:] for case in table]  # the group does not make another case
    assert len(set(keys)) == len(keys) > 0


def test_the_gpu_table_has_what_was_asked_for() -> None:
    table = of("cuda")
    assert {(c.heads, c.dim) for c in table} >= {(12, 64), (16, 64), (12, 32), (16, 128)}
    assert {c.length for c in table} >= {128, 512, 577, 1024, 1025, 2048, 4096, 8192}
    assert {c.mask for c in table} >= {*patterns.PATTERNS, named_masks.NO_DIAGONAL}
    assert {c.dtype for c in table} == {"bfloat16", "float16", "float32"}
    assert {c.direction for c in table} == {FORWARD, BOTH}
    assert any(c.dropout for c in table)
    assert any(c.padding for c in table)
    assert {c.batch * c.length for c in table} >= {16384, 32768, 65536}


def test_the_cpu_table_has_every_pattern_and_kind() -> None:
    table = of("cpu")
    assert {c.mask for c in table} >= {*patterns.PATTERNS, named_masks.LEARNED_LOOKING}
    assert {c.group for c in table} == {c.group for c in of("cuda")}


@pytest.mark.parametrize("name", named_masks.NAMES)
@pytest.mark.parametrize("length", [128, 577])
def test_every_mask_is_built_at_its_length(name: str, length: int) -> None:
    mask = named_masks.build(name, length, heads=3)
    assert (mask.num_layers, mask.q_len, mask.kv_len) == (1, length, length)
    assert mask.num_heads in (1, 3)


@pytest.mark.parametrize("bad", [("tpu", "full", ()), ("cpu", "all", ()), ("cpu", "full", ("x",))])
def test_select_names_what_is_unknown(bad: tuple[str, str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match=r"select: .*(cpu|quick|paper-short)"):
        select(*bad)


def test_without_learned_masks_a_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_masks, "LEARNED", Path("nowhere"))
    case = next(c for c in of("cpu") if c.mask == named_masks.NONE_LEARNED)
    (row,) = measure_case.rows_of(case, "cpu", ROOFS, 0.0)
    assert "learned_masks" in str(row["note"])
    assert "ms_50" not in row


def test_learned_masks_become_cases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(named_masks, "LEARNED", tmp_path)
    named_masks.learned_looking(64).save(tmp_path / "bert.safetensors")
    case = next(c for c in of("cpu") if c.mask == "learned: bert")
    assert (case.length, case.heads) == (64, 12)
    assert cases.build_mask(case) == named_masks.learned_looking(64)


# ---------------------------------------------------------------- rivals


@pytest.mark.parametrize("device", DEVICES)
def test_every_rival_says_yes_or_why_not(device: str) -> None:
    refused = {}
    for rival in rivals.rivals_on(device):
        for case in of(device):
            why = rival.refusal(case, device)
            assert why == why.strip()
            refused.setdefault(rival.name, set()).add(why)
    assert refused[rivals.OURS] == {""}
    assert refused[rivals.SDPA_MASK] == {""}
    assert "has no dropout" in refused[rivals.FLEX]
    assert all("" in reasons for reasons in refused.values())


def test_flex_refuses_training_on_the_cpu_only() -> None:
    assert "backward" in flex_rivals.refusal(TINY, "cpu")
    assert flex_rivals.refusal(TINY, "cuda") == ""


@pytest.mark.parametrize("name", flex_rivals.FORMULAS)
def test_a_formula_is_the_pattern(name: str) -> None:
    mask = named_masks.build(name, 150, heads=1)
    assert AttentionMask.from_mask_mod(flex_rivals.formula(mask), 1, 150, 150) == mask


@pytest.mark.parametrize(
    ("name", "padding"),
    [
        *itertools.product((rivals.SDPA_MASK, rivals.EAGER, rivals.FLEX), (0.0, 0.25)),
        (rivals.FLEX_FORMULA, 0.0),
    ],
)
def test_masked_rivals_compute_what_we_compute(
    name: str, padding: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlexAttention runs eager here; compiling takes long and is torch's matter."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(flex_rivals, "compiled", lambda: flex_attention)
    case = dataclasses.replace(TINY, direction=FORWARD, padding=padding)
    setup, check = ready(case)
    rival = next(rival for rival in rivals.RIVALS if rival.name == name)
    contender = rival.prepare(setup)
    assert check.refusal(contender.attention, stores_scores=contender.stores_scores) == ""


def ready(case: Case) -> tuple[Setup, ResultCheck]:
    torch.manual_seed(0)
    mask = cases.build_mask(case)
    plan, _ = inputs.compiled_plan(mask, "cpu")
    *qkv, grad_o = inputs.tensors_of(case, "cpu")
    key_mask = inputs.key_mask_of(case, "cpu")
    setup = Setup(case, mask, plan, tuple(qkv), key_mask)
    return setup, ResultCheck(case, mask, tuple(qkv), grad_o, key_mask)


# ---------------------------------------------------------------- correctness


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("padding", [0.0, 0.25])
def test_the_check_lets_us_pass(dtype: str, dropout: float, padding: float) -> None:
    case = dataclasses.replace(TINY, dtype=dtype, dropout=dropout, padding=padding)
    setup, check = ready(case)

    def ours(*qkv: torch.Tensor) -> torch.Tensor:
        return sparse_attention(*qkv, setup.plan, key_mask=setup.key_mask, dropout_p=dropout)

    assert check.refusal(ours) == ""


@pytest.mark.parametrize(
    "wrong",
    [
        lambda q, k, v, plan: sparse_attention(q, k, v, plan) * 1.01,
        lambda q, k, v, plan: sparse_attention(q, k, v, plan) * float("nan"),
        lambda q, k, v, plan: sparse_attention(q, k.detach(), v, plan) + 0.0 * k,
        lambda q, k, v, plan: torch.nn.functional.scaled_dot_product_attention(q, k, v),
    ],
    ids=["scaled", "nan", "no gradient of k", "no mask"],
)
def test_the_check_stops_wrong_results(wrong: object) -> None:
    setup, check = ready(TINY)
    assert callable(wrong)
    assert check.refusal(lambda q, k, v: wrong(q, k, v, setup.plan)).startswith("WRONG")


def test_padding_is_the_share_asked_for_on_average() -> None:
    case = dataclasses.replace(TINY, batch=5, length=400, padding=0.25)
    key_mask = inputs.key_mask_of(case, "cpu")
    assert key_mask is not None
    assert key_mask.float().mean().item() == pytest.approx(0.75)
    assert key_mask.any(dim=1).all()


# ---------------------------------------------------------------- bounds


def test_the_bounds_follow_their_formulas() -> None:
    case = Case("g", "s", 2, 3, 100, 16, "star", FORWARD, "float32")
    limits = roofs.Roofs(1.0, {"float32": 0.001})  # 1 GB/s, 1 GFLOP/s
    found = roofs.bound(case, 0.5, limits)
    # 4 tensors of 2 * 3 * 100 * 16 * 4 bytes; 4 * 16 flop for each of 0.5 * 100^2 * 6 scores.
    assert found.floor_ms == pytest.approx(4 * 38400 / 1e9 * 1e3)
    assert found.area_ms == pytest.approx(64 * 30000 / 1e9 * 1e3)
    assert found.ms == found.area_ms
    trained = roofs.bound(dataclasses.replace(case, direction=BOTH), 0.5, limits)
    assert trained.floor_ms == pytest.approx(3.0 * found.floor_ms)
    assert trained.area_ms == pytest.approx(3.5 * found.area_ms)
    half = roofs.moved_bytes(dataclasses.replace(case, dtype="bfloat16"))
    assert half * 2 == roofs.moved_bytes(case)
    assert roofs.bound(case, 0.001, limits).ms == found.floor_ms


def test_roofs_are_measured() -> None:
    found = roofs.measure("cpu", {"float32", "bfloat16"}, repeats=1)
    assert found.copy_gb_s > 0.1
    assert found.matrix_tflop_s["bfloat16"] >= found.matrix_tflop_s["float32"] > 1e-4


# ---------------------------------------------------------------- a run, end to end


def test_a_tiny_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three contenders, two cases; the second run measures only what the first has not."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(flex_rivals, "compiled", lambda: flex_attention)
    monkeypatch.setattr(inputs, "MOST_SETS", 2)
    monkeypatch.setattr(roofs, "measure", lambda *_: ROOFS)
    forward = dataclasses.replace(TINY, direction=FORWARD)
    origin = run.origin("cpu", 0.01)
    store = result_files.Store(tmp_path, origin)
    assert run.run((forward,), "cpu", store, 0.01) == 0
    assert run.run((forward, TINY), "cpu", result_files.Store(tmp_path, origin), 0.01) == 0
    rows = result_files.read(tmp_path)
    assert len(rows) == 2 * len(rivals.rivals_on("cpu"))
    assert [row["date"] for row in rows] == [origin["date"]] * len(rows)
    timed = [row for row in rows if row["ms_50"]]
    refused = [row for row in rows if not row["ms_50"]]
    assert [(r["contender"], r["direction"]) for r in refused] == [
        (rivals.FLEX_FORMULA, FORWARD),
        (rivals.FLEX, BOTH),
        (rivals.FLEX_FORMULA, BOTH),
    ]
    for row in timed:
        assert float(row["ms_20"]) <= float(row["ms_50"]) <= float(row["ms_80"])
        assert float(row["of_bound"]) > 0
    before = (tmp_path / "tiny.csv").read_text()
    other = {**origin, "commit": "another"}
    assert result_files.Store(tmp_path, other).done((TINY,)) == set()
    assert result_files.Store(tmp_path, origin).done((TINY,)) == {TINY.key}
    assert (tmp_path / "tiny.csv").read_text() == before


def test_a_contender_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setup: Setup) -> Ready:
        raise RuntimeError("no such kernel\nand much more")

    entries = [r for r in rivals.RIVALS if r.name in (rivals.OURS, rivals.EAGER)]
    bad = dataclasses.replace(entries[1], prepare=broken)
    monkeypatch.setattr(measure_case, "rivals_on", lambda device: (entries[0], bad))
    ours, failed = measure_case.rows_of(TINY, "cpu", ROOFS, 0.0)
    assert failed["note"] == "RuntimeError: no such kernel"
    assert "ms_50" not in failed
    assert float(str(ours["speedup"])) == 1.0


def test_a_wrong_result_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(
        rivals.RIVALS[0], prepare=lambda setup: Ready(lambda q, k, v: q + k + v, 1.0)
    )
    monkeypatch.setattr(measure_case, "rivals_on", lambda device: (wrong,))
    (row,) = measure_case.rows_of(TINY, "cpu", ROOFS, 0.0)
    assert str(row["note"]).startswith("WRONG: o is off by ")
    assert "ms_50" not in row


def test_the_commands_start_from_a_bare_checkout() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "run", "--list", "--device", "cuda"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "paper-short" in done.stdout


# ---------------------------------------------------------------- the GPU's part, without one


class FakeEvent:
    """A clock that a call moves by hand."""

    now = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = FakeEvent.now

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


class FakeGraph:
    """Runs what was "captured": the calls themselves."""

    def __init__(self) -> None:
        self.ms = 0.0

    def replay(self) -> None:
        FakeEvent.now += self.ms

    def reset(self) -> None:
        pass


@contextlib.contextmanager
def fake_capture(graph: FakeGraph) -> Iterator[None]:
    start = FakeEvent.now
    yield
    graph.ms = FakeEvent.now - start


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    fakes = {
        "Event": FakeEvent, "CUDAGraph": FakeGraph, "graph": fake_capture, "Stream": Stream,
        "current_stream": Stream, "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda: None,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def test_gpu_times_are_those_of_single_calls_in_turns(fake_gpu: None) -> None:
    entered = []

    def takes(ms: float) -> tuple[gpu_timing.Call, gpu_timing.Around]:
        def call() -> None:
            FakeEvent.now += ms

        @contextlib.contextmanager
        def around() -> Iterator[None]:
            entered.append(ms)
            yield

        return call, around

    calls = {"a": takes(2.0), "b": takes(3.0)}
    times = gpu_timing.by_events(calls, seconds=0.0, least=3)
    assert times == {"a": [2.0] * 30, "b": [3.0] * 30}
    assert entered == [2.0, 3.0] * 4  # once to warm up, and in turns
    assert gpu_timing.by_graph(*calls["b"], 5) == pytest.approx(3.0)


def test_launch_bound_rows_are_marked_and_graphs_compared() -> None:
    def entry(name: str, ms: float, graph_ms: float) -> measure_case._Entry:
        rival = next(rival for rival in rivals.RIVALS if rival.name == name)
        ready = Ready(lambda q, k, v: q, 0.5)
        times = [ms] * 4
        return measure_case._Entry(rival, {}, ready, times=times, graph_ms=graph_ms, peak_mb=7.0)

    ours, theirs = entry(rivals.OURS, 0.05, 0.01), entry(rivals.FLASH, 0.06, 0.05)
    rows = [each.row(TINY, ROOFS, ours) for each in (ours, theirs)]
    assert [r["launch_bound"] for r in rows] == ["yes", "no"]
    assert [r["speedup"] for r in rows] == ["1.000", "1.200"]
    assert [r["graph_speedup"] for r in rows] == ["1.000", "5.000"]
    assert [r["peak_mb"] for r in rows] == ["7.0", "7.0"]


def test_an_interrupted_run_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rows_of(case: Case, *rest: object) -> list[measure_case.Values]:
        if case.trains:
            raise KeyboardInterrupt
        return [{"contender": rivals.OURS, "ms_50": "1"}]

    monkeypatch.setattr(measure_case, "rows_of", rows_of)
    monkeypatch.setattr(roofs, "measure", lambda *_: ROOFS)
    store = result_files.Store(tmp_path, run.origin("cpu", 0.1))
    forward = dataclasses.replace(TINY, direction=FORWARD)
    assert run.run((forward, TINY), "cpu", store, 0.1) == 130
    assert store.done((forward, TINY)) == {forward.key}
    assert "1 cases are kept" in capsys.readouterr().out
    assert run.run((TINY,), "cpu", result_files.Store(tmp_path / "none", store.origin), 0.1) == 130


def test_a_case_that_fails_is_a_row_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> list[measure_case.Values]:
        raise RuntimeError("out of memory\nmore")

    monkeypatch.setattr(measure_case, "rows_of", fails)
    monkeypatch.setattr(roofs, "measure", lambda *_: ROOFS)
    origin = run.origin("cpu", 0.1)
    assert run.run((TINY,), "cpu", result_files.Store(tmp_path, origin), 0.1) == 1
    (row,) = result_files.read(tmp_path)
    assert row["note"] == "FAILED: RuntimeError: out of memory"
    works = [{"contender": rivals.OURS, "ms_50": "1"}]
    monkeypatch.setattr(measure_case, "rows_of", lambda *_: works)
    assert run.run((TINY,), "cpu", result_files.Store(tmp_path, origin), 0.1) == 0
    (row,) = result_files.read(tmp_path)
    assert row["note"] == ""


def test_a_lost_gpu_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lost(*_: object) -> list[measure_case.Values]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(measure_case, "rows_of", lost)
    monkeypatch.setattr(roofs, "measure", lambda *_: ROOFS)
    with pytest.raises(RuntimeError, match="illegal"):
        run.run((TINY,), "cpu", result_files.Store(tmp_path, run.origin("cpu", 0.1)), 0.1)
