"""The fit of the CPU kernels' constants: it counts what the model prices, and can be repeated."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.cost import fit_native, native_check, native_covers
from benchmarks.cost.fit_native import (
    CALIBRATION,
    CONSTANTS,
    MARGINS,
    fit_rows,
    read_rows,
)
from benchmarks.cost.fitting import (
    DENSE_TERMS,
    NATIVE_COUNTS,
    NATIVE_TERMS,
    MeasuredCall,
    Terms,
    as_json,
    dense_counts,
    fit_pass,
)
from benchmarks.cost.native_covers import BACKEND, HEADS, TARGET, Covered, compiled
from sparsebert import patterns
from sparsebert.compiler.cost.constants import pass_terms, read_terms, stored
from sparsebert.compiler.cost.model import cost_model
from sparsebert.kernels.cpu.library import load
from sparsebert.masks import AttentionMask
from sparsebert.tiles.outlines import outlines_of_head, singles_of_head
from tests.attention.cases import needs_library
from tests.benchmarks.cost.test_fit_cost_model import numbers


def some() -> list[Covered]:
    """Covers of each kind, and one of heads that differ."""
    kept = ("tiles of 4 x 64", "tiles of 16 x 32", "window 2", "random 0.1", "rows in two tiles")
    by_hand = [found for found in native_covers._by_hand() if found.name.startswith(kept)]
    heads = [patterns.random(130, 0.1), patterns.causal(130), patterns.star(130)]
    large = compiled("large", patterns.longformer(2816))  # of which some comes from memory
    return [*by_hand, large, compiled("heads", AttentionMask.stack_heads(heads * 4))]


def call_of(covered: Covered, head_dim: int, threads: int, times: list[float]) -> MeasuredCall:
    sets = covered.plan.num_heads
    counts = covered.counts(head_dim)
    return MeasuredCall(
        "tiles", covered.name, covered.plan.q_len, head_dim, threads, HEADS, sets, counts, (),
        np.array(times),
    )  # fmt: skip


def priced(covered: Covered, head_dim: int, threads: int) -> MeasuredCall:
    """A call that takes just what the cost model says."""
    plan, times = covered.plan, [0.0, 0.0]
    model = cost_model(
        TARGET, backend=BACKEND, isa="avx512", head_dim=head_dim, threads=threads, copies=HEADS,
        tile_sets=plan.num_heads,
    )  # fmt: skip
    for head in plan.head_map if plan.num_heads > 1 else [0] * HEADS:
        cover = outlines_of_head(covered.tiles, int(head))
        singles = singles_of_head(covered.tiles, int(head))
        for column, backward in enumerate((False, True)):
            times[column] += model.cover_us(
                cover, plan.q_len, plan.kv_len, singles=singles, backward=backward
            )
    return call_of(covered, head_dim, threads, times)


def constants(which: str, terms: Terms) -> list[float]:
    known = pass_terms(TARGET, which, BACKEND, "avx512")
    found = []
    for name, part, divided in terms:
        term = known.get(name)
        term = term[16] if isinstance(term, dict) else term
        found.append(0.0 if term is None else getattr(term, part)[divided])
    return found


@pytest.fixture(scope="module")
def covers() -> list[Covered]:
    return some()


@pytest.mark.parametrize("head_dim", [32, 96])
@pytest.mark.parametrize("threads", [1, 8])
def test_what_is_counted_is_what_the_model_prices(
    covers: list[Covered], head_dim: int, threads: int
) -> None:
    for name in ("far_row", "far_column"):
        assert any(found.counts(head_dim)[name] for found in covers)
    for covered in covers:
        if covered.plan.num_heads > 1 and len(covered.plan.dense_heads) < HEADS:
            continue  # a set for each head, where the heads differ
        case = priced(covered, head_dim, threads)
        for column, which in enumerate(("forward", "backward")):
            found = np.dot(case.features(NATIVE_TERMS), constants(which, NATIVE_TERMS))
            assert found == pytest.approx(case.best[column], rel=1e-9), covered.name


def test_dense_calls_are_counted_as_the_model_prices_them() -> None:
    model = cost_model(TARGET, backend=BACKEND, isa="avx512", head_dim=48, threads=2, copies=HEADS)
    for which, cost in (("forward", model.forward), ("backward", model.backward)):
        for masked in (True, False):
            counts = dense_counts(200, 1, masked=masked)
            call = MeasuredCall("dense", "", 200, 48, 2, HEADS, 1, counts, (), np.zeros(2))
            found = np.dot(call.features(DENSE_TERMS), constants(which, DENSE_TERMS))
            assert found == pytest.approx(HEADS * cost.dense(200, 200, masked=masked))


@needs_library
def test_covers_made_by_hand_run_what_they_count(covers: list[Covered]) -> None:
    for covered in covers:
        q, k, v = torch.randn(3, 1, HEADS, covered.plan.q_len, 16).unbind(0)
        every = covered.tiles.dense()[covered.plan.head_map]
        assert np.array_equal(every, covered.plan.mask.dense()[0].numpy()), covered.name
        o = fit_native.sparsebert.sparse_attention(q, k, v, covered.plan, backend=BACKEND)
        mask = torch.from_numpy(every)[None]
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        assert torch.allclose(o, expected, atol=1e-5), covered.name


def test_the_constants_are_the_fit_of_the_committed_rows() -> None:
    rows = read_rows()
    entries = stored()["tiles"][BACKEND][TARGET]["isa"]
    for isa in dict.fromkeys(row["isa"] for row in rows):
        passes, shipped = fit_rows(rows, isa)
        assert entries[isa]["margin"] == MARGINS.get(isa, 1.0)
        for which, found in passes.items():
            fitted = numbers({**found.terms["tiles"], **found.terms["dense"]})
            kept = numbers(entries[isa][which])
            assert {name: kept[name] for name in fitted} == pytest.approx(fitted, rel=0.0101)
        reference = fit_native.reference(rows, isa)
        assert entries[isa]["reference"] == pytest.approx(reference, rel=0.0101)
        assert bool(shipped) == ("as shipped" in entries[isa]["source"])


def test_a_fit_of_a_pass_is_what_the_model_reads() -> None:
    rows = read_rows()
    calls = [
        MeasuredCall.from_row(row, NATIVE_COUNTS)
        for row in rows
        if row["isa"] == rows[0]["isa"] and row["route"] != CALIBRATION
    ]
    terms = fit_pass(calls, 0, NATIVE_TERMS, (16,)).terms
    text = json.loads(as_json({**terms["tiles"], **terms["dense"]}))
    read = read_terms(text)
    known = pass_terms(TARGET, "forward", BACKEND, rows[0]["isa"])
    assert read.keys() | {"shape", "level", "floor_row"} == known.keys()
    assert as_json(json.loads(CONSTANTS.read_text())) + "\n" == CONSTANTS.read_text()


@needs_library
def test_an_instruction_set_is_measured_in_its_own_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The worker itself, with one small cover and dense attention of one length."""
    some = compiled("star", patterns.star(48))
    monkeypatch.setattr(fit_native, "covers", lambda: iter([some]))
    monkeypatch.setattr(fit_native, "LENGTHS", (32,))
    monkeypatch.setattr(fit_native, "DIMS", (16,))
    monkeypatch.setattr(fit_native, "mixed_calls", lambda dim: iter([]))
    monkeypatch.setattr(fit_native, "least", lambda call: (call(), 2.0)[1])
    threads = torch.get_num_threads()
    try:
        fit_native.worker(load().isa, "avx2", 1, (1,), tmp_path / "rows.csv")
    finally:
        torch.set_num_threads(threads)
    rows = read_rows(tmp_path / "rows.csv")
    routes = [row["route"] for row in rows]
    assert routes == [CALIBRATION] * 4 + ["tiles"] + ["dense"] * 2
    assert {row["forward_us"] for row in rows} == {"2.0"}


def test_the_environment_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], **how: Any) -> None:
        asked.append((command, how["env"]))

    monkeypatch.setattr(fit_native.subprocess, "run", run)
    monkeypatch.setattr(fit_native, "read_rows", lambda path: [])
    monkeypatch.setattr(
        fit_native.mkl, "environment", lambda mode: contextlib.nullcontext({"made for": mode})
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for isa, dense in (("avx512", "avx512"), ("avx512", "as shipped"), ("avx2", "avx2")):
        fit_native.run_worker(isa, dense, 2, (1, 2))
    chosen = [environment["SPARSEBERT_CPU_ISA"] for _, environment in asked]
    assert chosen == ["avx512", "avx512", "avx2"]
    modes = [environment["made for"] for _, environment in asked]
    assert modes == ["avx512", "stock", "stock"]
    assert asked[2][1]["ATEN_CPU_CAPABILITY"] == "avx2"
    for command, environment in asked:
        assert "OMP_NUM_THREADS" not in environment
        assert environment["SPARSEBERT_CALIBRATE"] == "0"
        assert command[-5:] == ["--rounds", "2", "--threads", "1", "2"]


def test_a_plan_is_judged_by_the_fastest_rival(capsys: pytest.CaptureFixture[str]) -> None:
    def row(plan: float, masked: float, dense: float, choice: str = "tiles") -> dict[str, Any]:
        return {
            "MKL": "as shipped", "mask": "star", "N": 64, "D": 64, "threads used": 1,
            "padded": "no", "choice": choice, "predicted_us": 1.1 * plan, "plan_us": plan,
            "masked_us": masked, "dense_us": dense,
        }  # fmt: skip

    native_check.summarise([row(10, 20, 15), row(10, 12, 8), row(20, 20, 20, "dense")])
    told = capsys.readouterr().out
    assert "tiles: 2 cases, off by 10% (median)" in told
    assert "with the mask over the plan: 1.34x (geometric mean), at worst 1.00x" in told
    assert "at its best over the plan: 1.06x (geometric mean), at worst 0.80x; below" in told
    assert "0.80x as shipped star 64 64 1 tiles" in told
