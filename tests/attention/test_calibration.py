"""Calibration: factors from timed calls, kept in memory and in a file; no test goes by a time."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsebert
from sparsebert import calibration, patterns
from sparsebert.calibration import NotCalibrated, Timed, factors_for, least_times, solve
from sparsebert.compiler.cost.constants import tile_backends
from sparsebert.compiler.cost.factors import AS_FITTED, Factors
from sparsebert.compiler.cost.model import cost_model
from sparsebert.mask_plans import MaskPlans, plan_for
from sparsebert.plan import AttentionPlan, compile_plan
from tests.attention.cases import needs_library

NATIVE = "native"
FOUND = Factors(1.5, 0.9, 1.25, 2.0, "calibrated on this machine, as a test has it")


@pytest.fixture(autouse=True)
def _on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Calibration is on, knows nothing yet, and writes to a folder of the test."""
    monkeypatch.setenv(calibration.VARIABLE, "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    calibration.forget()
    yield
    calibration.forget()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of threads that were measured; what is found is `FOUND`."""
    asked: list[int] = []

    def measure(backend: str, threads: int) -> Factors:
        asked.append(threads)
        return FOUND

    monkeypatch.setattr(calibration, "_measured", measure)
    return asked


def files() -> list[Path]:
    return sorted(calibration.folder().glob("*")) if calibration.folder().exists() else []


# ------------------------------------------------------------------------------ factors


def calls() -> dict[str, Timed]:
    parts = {
        "tiles": {"tiles": 900.0, "singles": 0.0, "call": 20.0},
        "singles": {"tiles": 90.0, "singles": 400.0, "call": 20.0},
        "call": {"tiles": 5.0, "singles": 1.0, "call": 20.0},
        "dense": {"dense": 1200.0, "call": 30.0},
    }
    return {name: Timed(lambda: None, found) for name, found in parts.items()}


def times(factors: dict[str, float]) -> dict[str, float]:
    return {
        name: sum(factors[part] * us for part, us in call.parts.items())
        for name, call in calls().items()
    }


def test_factors_are_found_again() -> None:
    true = {"dense": 1.6, "tiles": 0.8, "singles": 1.1, "call": 2.5}
    found = solve(calls(), times(true))
    assert found._asdict() | {"source": ""} == pytest.approx({**true, "source": ""})
    for told in ("dense attention x1.6", "tiles x0.8", "single entries x1.1", "calls x2.5"):
        assert told in found.source
    assert found.source.startswith("calibrated on this machine, 20")


@pytest.mark.parametrize(
    "wrong", [{"call": -0.5}, {"dense": 30.0}, {"tiles": 0.01}, {"tiles": 6.0, "singles": 1.0}]
)
def test_factors_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(NotCalibrated, match="make no sense"):
        solve(calls(), times({"dense": 1.0, "tiles": 1.0, "singles": 1.0, "call": 1.0} | wrong))


def test_each_term_has_its_factor() -> None:
    factors = Factors(dense=2.0, tiles=3.0, singles=5.0, call=7.0)
    before, after = (
        cost_model("cpu", backend=NATIVE, isa="avx512", factors=each)
        for each in (AS_FITTED, factors)
    )
    expected = {
        "call": 7, "dense_call": 7, "dense_entry": 2, "mask_entry": 2, "single": 5,
        "single_column": 5, "tile": 3, "row": 3, "column": 3, "merge": 3, "far_row": 3,
    }  # fmt: skip
    for which in ("forward", "backward"):
        was, now = getattr(before, which), getattr(after, which)
        for name, factor in expected.items():
            assert getattr(now, name) == pytest.approx(factor * getattr(was, name)), name
        assert now.entry == pytest.approx({16: 3 * was.entry[16]})
    assert before.source == after.source


# ------------------------------------------------------------------------------ timing


class Machine:
    """A clock that calls move; every call takes `usual` seconds, and what `more` says besides."""

    def __init__(self, usual: float, more: list[float]) -> None:
        self.time, self.usual, self.more, self.runs = 0.0, usual, more, 0

    def call(self) -> None:
        extra = self.more[self.runs % len(self.more)] if self.more else 0.0
        self.time += self.usual + extra
        self.runs += 1

    def clock(self) -> float:
        return self.time


def test_the_least_time_counts_and_rounds_end_when_they_agree() -> None:
    machine = Machine(0.02, [0.0, 0.01, 0.0, 0.0, 0.0, 0.0])  # every third
    found = least_times({"a": machine.call}, machine.clock, machine.clock)
    assert found == {"a": pytest.approx(20e3)}
    assert machine.runs == 2 * calibration.LEAST_ROUNDS


def test_short_calls_are_repeated_for_a_while() -> None:
    machine = Machine(1e-4, [])
    least_times({"a": machine.call}, machine.clock, machine.clock)
    assert calibration.LEAST_SECONDS <= machine.time < calibration.LEAST_SECONDS + 3e-3


def test_a_busy_machine_is_not_calibrated() -> None:
    machine = Machine(0.01, [0.0, 0.0, 0.0, 0.01])  # every other round takes twice as long
    with pytest.raises(NotCalibrated, match="too busy"):
        least_times({"a": machine.call}, machine.clock, machine.clock)
    assert calibration.SECONDS <= machine.time < calibration.SECONDS + 0.1


def test_a_slow_machine_is_measured_in_two_rounds() -> None:
    machine = Machine(1.0, [])
    assert least_times({"a": machine.call}, machine.clock, machine.clock) == {"a": 1e6}
    assert machine.runs == 4


@needs_library
def test_the_calls_run_whatever_is_set_and_draw_nothing() -> None:
    """Real calls, once each; how long they take does not matter."""

    def once(runs: Any, clock: Any) -> dict[str, float]:
        for run in runs.values():
            run()
        timed = calibration.timed_calls(NATIVE, 1)
        return {name: 2.0 * sum(call.parts.values()) for name, call in timed.items()}

    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16),
        ):
            patch.setattr(calibration, "least_times", once)
            patch.setattr(calibration.constants, "reference", lambda *_: {})
            found = calibration._measured(NATIVE, 1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[:-1] == pytest.approx((2.0, 2.0, 2.0, 2.0))
    assert torch.equal(torch.get_rng_state(), before)


@needs_library
def test_what_the_fits_machine_took_is_taken_into_account(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = calibration.timed_calls(NATIVE, 1)
    took = {name: 1.2 * sum(call.parts.values()) for name, call in timed.items()}
    monkeypatch.setattr(calibration, "least_times", lambda *_: took)
    monkeypatch.setattr(calibration.constants, "reference", lambda *_: dict.fromkeys(took, 1.2))
    assert calibration._measured(NATIVE, 1)[:-1] == pytest.approx((1.0, 1.0, 1.0, 1.0))


# ------------------------------------------------------------------------------ memory and file


@needs_library
def test_a_machine_is_measured_once(measured: list[int]) -> None:
    threads = torch.get_num_threads()
    for _ in range(3):
        assert factors_for("cpu", NATIVE, None) == FOUND
    assert measured == [threads] and len(files()) == 1
    calibration.forget()  # as another process
    assert factors_for("cpu", NATIVE, threads)[:-1] == FOUND[:-1]
    assert measured == [threads]


@needs_library
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"factors": {}}', "\xff"])
def test_a_damaged_file_is_written_again(measured: list[int], text: str) -> None:
    factors_for("cpu", NATIVE, None)
    (file,) = files()
    sound = file.read_text()
    file.write_bytes(text.encode("latin-1"))
    calibration.forget()
    assert factors_for("cpu", NATIVE, None) == FOUND
    assert len(measured) == 2 and file.read_text() == sound


@needs_library
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("factors", "dense"), 0.0), (("factors", "tiles"), float("nan")),
        (("factors", "call"), "1.0"), (("date",), "yesterday"), (("date",), 3),
        (("about", "processor"), "another"), (("about", "threads"), 99),
    ],
)  # fmt: skip
def test_a_wrong_value_is_not_taken(
    measured: list[int], path: tuple[str, ...], value: object
) -> None:
    factors_for("cpu", NATIVE, None)
    (file,) = files()
    stored = json.loads(file.read_text())
    part = stored
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    file.write_text(json.dumps(stored))
    calibration.forget()
    factors_for("cpu", NATIVE, None)
    assert len(measured) == 2


@needs_library
def test_no_folder_is_no_obstacle(measured: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    calibration.folder().parent.mkdir(parents=True)
    calibration.folder().write_text("a file where the folder should be")
    assert factors_for("cpu", NATIVE, None) == FOUND
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/path")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    calibration.forget()
    assert factors_for("cpu", NATIVE, None) == FOUND


@needs_library
def test_files_are_by_all_that_the_speed_depends_on(
    measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    factors_for("cpu", NATIVE, None)
    for change in (
        lambda: monkeypatch.setattr(calibration, "processor", lambda: "another"),
        lambda: monkeypatch.setattr(torch, "__version__", "9.9"),
        lambda: monkeypatch.setenv("LD_PRELOAD_", ""),
        lambda: monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default"),
        lambda: monkeypatch.setattr(calibration.constants, "reference", lambda *_: {"dense": 2}),
        lambda: monkeypatch.setattr(
            type(calibration.registry.get(NATIVE)),
            "speed_depends_on",
            lambda _: ("avx512", "other sources"),
        ),
    ):
        change()
        calibration.forget()
        factors_for("cpu", NATIVE, None)
    assert len(measured) == len(files()) == 6  # the variable that nobody knows changed nothing


@needs_library
def test_what_fails_leaves_the_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fail(backend: str, threads: int) -> Factors:
        asked.append(threads)
        raise RuntimeError("no kernels today")

    monkeypatch.setattr(calibration, "_measured", fail)
    for _ in range(2):
        found = factors_for("cpu", NATIVE, None)
        assert found == Factors(source="not calibrated: no kernels today")
    assert len(asked) == 1 and not files()


# ------------------------------------------------------------------------------ when not


def test_nothing_is_measured_where_it_is_turned_off_or_for_others(
    measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert factors_for("sm90", "triton", None) == AS_FITTED
    for backend in tile_backends("cpu"):
        if not calibration.registry.get(backend).speed_depends_on():
            assert factors_for("cpu", backend, None) == AS_FITTED
    monkeypatch.setenv(calibration.VARIABLE, "0")
    assert factors_for("cpu", NATIVE, None) == AS_FITTED
    assert not measured and not files()


@needs_library
def test_another_number_of_threads_waits(measured: list[int]) -> None:
    threads = torch.get_num_threads() + 3
    found = factors_for("cpu", NATIVE, threads)
    assert found[:-1] == AS_FITTED[:-1] and f"{threads} threads" in found.source
    assert not measured
    about = calibration._about(NATIVE, threads)
    calibration._write(about, FOUND)  # as a process with so many threads does
    assert factors_for("cpu", NATIVE, threads)[:-1] == FOUND[:-1]


@needs_library
def test_tracing_is_no_time_to_measure(measured: list[int]) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def plan(x: torch.Tensor) -> torch.Tensor:
        found.append(factors_for("cpu", NATIVE, None))
        return x * 2

    found: list[Factors] = []
    with FakeTensorMode():
        plan(torch.ones(2))
    torch.jit.trace(plan, (torch.ones(2),), check_trace=False)
    torch.func.vmap(plan)(torch.ones(2))
    torch.func.grad(lambda x: plan(x).sum())(torch.ones(2))
    assert len(found) == 4
    assert {each.source for each in found} == {
        "not calibrated: this plan was made while torch traced a graph"
    }
    assert not measured
    assert factors_for("cpu", NATIVE, None) == FOUND  # later


@needs_library
def test_a_plan_that_a_graph_makes_goes_by_the_constants(measured: list[int]) -> None:
    plans = MaskPlans(patterns.star(48))
    q, k, v = torch.randn(3, 1, 2, 48, 16).unbind(0)

    @torch.compile(backend="eager", fullgraph=True)
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        plan = plan_for(plans, 48, 48, q.device, 16, 2)
        return sparsebert.sparse_attention(q, k, v, plan)

    attend(q, k, v)
    (plan,) = plans.in_use.values()
    assert "not calibrated: this plan was made while torch traced a graph" in str(plan.explain())
    assert not measured


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_does_not_measure(measured: list[int]) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = b"failed"
        try:
            found = factors_for("cpu", NATIVE, None)
            if factors_for("cpu", NATIVE, None) is found:  # not looked for at every call
                told = found.source.encode()
        finally:
            os.write(write, told)
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == (
            "not calibrated: this process was forked, where torch's threads may hang"
        )
    assert not files()


# ------------------------------------------------------------------------------ plans


@needs_library
def test_a_plan_goes_by_the_factors_and_says_so(measured: list[int], tmp_path: Path) -> None:
    mask = patterns.strided(96, 9)
    plan = compile_plan(mask, target="cpu")
    calibration._known.clear()
    calibration._known[NATIVE, torch.get_num_threads()] = AS_FITTED
    fitted = compile_plan(mask, target="cpu")
    assert plan is not fitted and plan.fingerprint != fitted.fingerprint
    assert "calibrated on this machine, as a test has it; " in str(plan.explain())
    assert "calibrated" not in str(fitted.explain())
    assert plan.report.dense_us == pytest.approx(_dense(FOUND, 96))
    assert fitted.report.dense_us == pytest.approx(_dense(AS_FITTED, 96))
    assert plan.crop(50).report.dense_us == pytest.approx(_dense(FOUND, 50))
    plan.save(tmp_path / "plan")
    loaded = AttentionPlan.load(tmp_path / "plan", mask)
    assert loaded.report == plan.report and loaded.fingerprint == plan.fingerprint
    assert loaded.shared_tiles.aim == plan.shared_tiles.aim


def _dense(factors: Factors, length: int) -> float:
    threads = torch.get_num_threads()
    model = cost_model("cpu", backend=NATIVE, threads=threads, factors=factors)
    return model.forward.dense(length, length)


def test_the_files_are_for_everyone_who_may_read_the_folder(tmp_path: Path) -> None:
    calibration._write(calibration._about(NATIVE, 1), FOUND)
    (file,) = files()
    assert stat.S_ISREG(file.stat().st_mode)
    assert json.loads(file.read_text())["factors"]["dense"] == 1.5
