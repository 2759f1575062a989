"""The fit of the cost model: it counts what the model prices, and finds constants again."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from benchmarks.cost import cost_check, fit_cost_model
from benchmarks.cost.fit_cost_model import CONSTANTS, tile_counts
from benchmarks.cost.fitting import (
    COUNTS,
    DENSE_TERMS,
    PARALLEL,
    SERIAL,
    TILE_TERMS,
    MeasuredCall,
    Terms,
    as_json,
    dense_counts,
    fit,
    fit_constants,
    fit_pass,
    known_split,
)
from benchmarks.cost.timed_calls import BACKEND, TARGET
from benchmarks.harness.origin import RESULTS
from benchmarks.harness.rows import RowFile
from sparsebert import patterns
from sparsebert.compiler.cost.constants import pass_terms, read_terms, stored
from sparsebert.compiler.cost.model import cost_model
from sparsebert.machine import Load
from sparsebert.plan import AttentionPlan, compile_plan
from sparsebert.tiles.outlines import outlines_of_head

COPIES = 12


def call_of(
    plan: AttentionPlan, route: str, head_dim: int, threads: int, best: list[float]
) -> MeasuredCall:
    counts = tile_counts(plan) if route == "tiles" else dense_counts(plan.q_len, 1, masked=True)
    return MeasuredCall(
        route, "a mask", plan.q_len, head_dim, threads, COPIES, 1, counts, (), np.array(best)
    )


def priced(plan: AttentionPlan, route: str, head_dim: int, threads: int) -> MeasuredCall:
    """A case that takes just what the cost model says."""
    model = cost_model("cpu", head_dim=head_dim, threads=threads, copies=COPIES)
    lengths = plan.q_len, plan.kv_len
    if route == "tiles":
        cover = outlines_of_head(plan.tiles, 0)
        times = [model.cover_us(cover, *lengths, backward=back) for back in (False, True)]
    else:
        times = [model.forward.dense(*lengths), model.backward.dense(*lengths)]
    return call_of(plan, route, head_dim, threads, [COPIES * us for us in times])


def plans() -> list[AttentionPlan]:
    masks = [patterns.strided(256, 16), patterns.bigbird(200), patterns.causal(128)]
    return [compile_plan(mask, objective="area", target="cpu") for mask in masks]


def constants(which: str, terms: Terms) -> list[float]:
    known = pass_terms("cpu", which)
    found = []
    for name, part, divided in terms:
        term = known[name]
        term = term[64] if isinstance(term, dict) else term
        found.append(getattr(term, part)[divided])
    return found


@pytest.mark.parametrize("head_dim", [32, 96])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_what_is_counted_is_what_the_model_prices(head_dim: int, threads: int) -> None:
    for plan in plans():
        for route, terms in (("tiles", TILE_TERMS), ("dense", DENSE_TERMS)):
            case = priced(plan, route, head_dim, threads)
            for column, which in enumerate(("forward", "backward")):
                found = np.dot(case.features(terms), constants(which, terms))
                assert found == pytest.approx(case.best[column], rel=1e-9)


def test_the_fit_finds_constants_again_and_minds_no_outliers() -> None:
    rng = np.random.default_rng(0)
    true = np.array([5.0, 0.0, 0.2, 1.0])
    matrix = rng.random((80, 4)) * [1.0, 1.0, 100.0, 10.0]
    times = matrix @ true
    times[::10] *= 5.0  # disturbed
    # Errors below 2 % weigh as squares, so that much of the outliers may be left.
    assert fit(matrix, times) == pytest.approx(true, rel=0.02, abs=0.02)


def test_a_fit_of_a_pass_is_what_the_model_reads() -> None:
    rows = [
        priced(plan, route, head_dim, threads)
        for plan in plans() + [compile_plan(patterns.star(n), target="cpu") for n in (64, 512)]
        for route in ("tiles", "dense")
        for head_dim in (32, 128)
        for threads in (1, 2)
        if route == "dense" or len(plan.tiles.head)
    ]
    rows.append(call_of(plans()[0], "mixed", 64, 1, [1e4, 2e4]))
    rows[-1].counts |= tile_counts(plans()[0])
    found = fit_pass(rows, 0)
    assert np.abs(found.errors["tiles"]).max() < 0.05
    assert np.abs(found.errors["dense"]).max() < 0.01
    parts = json.loads(as_json(found.terms))
    terms = {name: term for part in parts.values() for name, term in read_terms(part).items()}
    assert terms.keys() == pass_terms("cpu", "forward").keys()


def test_the_constants_are_the_fit_of_the_committed_rows() -> None:
    """To a unit of the third digit: the file has times to 0.1 us, the fit had them in full."""
    rows = RowFile(RESULTS / "fit_cost_model.csv", [*COUNTS, "forward_us", "backward_us"]).read()
    passes, margin = fit_constants([MeasuredCall.from_row(row) for row in rows])
    constants = stored()
    tiles = constants["tiles"][BACKEND][TARGET]
    assert margin == tiles["margin"]
    parts = {"machines": constants["machines"][TARGET], "dense": constants["dense"][TARGET]}
    for name, part in {**parts, "tiles": tiles}.items():
        for which, found in passes.items():
            assert numbers(found.terms[name]) == pytest.approx(numbers(part[which]), rel=0.0101)


def numbers(stored: dict[str, Any], path: str = "") -> dict[str, float]:
    """All numbers of a part of constants.json, by where they stand."""
    found = {}
    for name, value in stored.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{path}{name}.")
        else:
            found |= {f"{path}{name}.{index}": number for index, number in enumerate(value)}
    return found


def test_a_call_is_the_same_after_it_was_written() -> None:
    call = call_of(plans()[0], "tiles", 64, 2, [12.5, 100.0])
    read = MeasuredCall.from_row({name: str(value) for name, value in call.as_row().items()})
    assert read.best.tolist() == [12.5, 100.0]
    same = {"best": None, "counts": None}
    assert dataclasses.replace(read, **same) == dataclasses.replace(call, **same)
    assert {name: count for name, count in read.counts.items() if count} == call.counts


def test_one_number_of_threads_leaves_each_term_once() -> None:
    for kept in (SERIAL, PARALLEL):
        terms = known_split(TILE_TERMS, kept)
        assert len({term[:2] for term in terms}) == len(terms)
        assert ("column", "dim", kept) in terms
        assert ("shape", "once", SERIAL) in terms and ("entry", "copy", PARALLEL) in terms


def test_the_files_text_is_its_own_format() -> None:
    text = CONSTANTS.read_text(encoding="utf-8")
    assert as_json(json.loads(text)) + "\n" == text


def test_choices_are_judged_against_the_faster_route(capsys: pytest.CaptureFixture[str]) -> None:
    def case(choice: str, plan: float, tiles: float, dense: float) -> dict[str, object]:
        times = {"plan": plan, "tiles": tiles, "dense": dense}
        row: dict[str, object] = {"choice": choice, "predicted_us": plan}
        row |= {"predicted_dense_us": 1.1 * dense}
        for name, us in times.items():
            row |= {f"{name}_us": us, f"{name}_step_us": us}
        return row

    cost_check.summarise(
        [case("tiles", 10, 10, 20), case("dense", 20, 10, 20), case("tiles", 30, 30, 20)]
    )
    shown = capsys.readouterr().out
    assert (
        "forward: the right choice in 1 of 3 cases; slower than dense in 1, at worst 1.50x"
        in shown
    )
    assert "a wrong choice took 1.75x (median), at worst 2.00x" in shown
    assert "unseen masks, dense: error, median 10%" in shown


def test_a_busy_machine_is_not_fitted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit_cost_model, "current_load", lambda: Load(2, 2.0, 9.0, 8.0))
    monkeypatch.setattr(fit_cost_model, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr("sys.argv", ["fit_cost_model"])
    with pytest.raises(SystemExit):
        fit_cost_model.main()
    said = capsys.readouterr()
    assert "8 other tasks running now" in said.out
    assert "the machine is busy" in said.err and "--threads 1" in said.err
