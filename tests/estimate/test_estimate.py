"""`sparsebert estimate`: Amdahl's arithmetic, config files, the command."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsebert import patterns
from sparsebert.backends.routing import planned_for
from sparsebert.cli import main
from sparsebert.compiler.cost.constants import machine
from sparsebert.compiler.cost.model import cost_model
from sparsebert.estimate import (
    Estimate,
    ModelShape,
    Rates,
    calibrate,
    estimate,
    stored_rates,
    table,
)
from sparsebert.estimate.rates import _least_seconds
from sparsebert.masks import AttentionMask
from sparsebert.plan import compile_plan

BERT = ModelShape(hidden_size=768, layers=12, heads=12, intermediate_size=3072)
SIZES = "--hidden-size 64 --layers 2 --heads 4"


def made(plain: float = 30.0, sparse: float = 10.0, rest: float = 70.0) -> Estimate:
    return Estimate(
        shape=BERT, length=512, batch=1, dtype="float32", target="cpu", threads=2, density=0.1,
        executed_fraction=0.2, dense_ms=(plain, 3 * plain), masked_ms=(plain, 3 * plain),
        sparse_ms=(sparse, 3 * sparse), rest_ms=(rest, 3 * rest), source="", cost_source="",
    )  # fmt: skip


def test_amdahls_law() -> None:
    found = made()
    assert found.attention_share() == pytest.approx(0.3)
    assert found.attention_speedup() == pytest.approx(3.0)
    assert found.speedup() == pytest.approx(100 / 80)
    assert found.best_speedup() == pytest.approx(100 / 70)
    assert found.speedup(training=True) == pytest.approx(100 / 80)
    assert made(sparse=40.0).speedup() < 1.0  # a loss is shown as one


def test_operations_of_a_layer() -> None:
    """Counted by hand: q, k, v, o of 768 x 768, and two matrices of 768 x 3072."""
    assert BERT.linear_flops == 2 * (4 * 768 * 768 + 2 * 768 * 3072)
    gated = ModelShape(768, 22, 12, 1152, gated=True)
    assert gated.linear_flops == 2 * (4 * 768 * 768 + 3 * 768 * 1152)
    grouped = ModelShape(1024, 2, 8, 2048, head_dim=64, kv_heads=2)
    assert grouped.linear_flops == 2 * 1024 * (2 * 512 + 2 * 128 + 2 * 2048)


def test_the_parts_add_up_from_the_plan_and_the_rates() -> None:
    mask = patterns.longformer(512, 8, 2)
    rates = Rates(linear_flops=1e12, attention=2.0, source="made up")
    found = estimate(BERT, mask, batch=2, target="cpu", threads=1, rates=rates)
    report = compile_plan(mask, target="cpu", threads=1, copies=24).explain()
    assert found.sparse_ms[0] == pytest.approx(2 * report.predicted_us * 24 * 12 / 1e3)
    assert found.masked_ms[0] == pytest.approx(2 * report.dense_us * 24 * 12 / 1e3)
    assert found.rest_ms[0] == pytest.approx(2 * 512 * 12 * BERT.linear_flops / 1e12 * 1e3)
    assert found.executed_fraction == report.executed_fraction
    assert found.dense_ms[0] <= found.masked_ms[0]
    assert found.best_speedup() >= found.speedup()


def test_layers_with_masks_of_their_own_are_averaged() -> None:
    shape = ModelShape(64, 2, 4, 128)
    one, other = patterns.sliding_window(512, 4), patterns.dense(512)
    both = AttentionMask.stack_layers([one, other])
    each = [estimate(shape, mask, target="cpu", threads=1) for mask in (one, other)]
    found = estimate(shape, both, target="cpu", threads=1)
    assert found.sparse_ms[0] == pytest.approx(sum(e.sparse_ms[0] for e in each) / 2)
    assert found.executed_fraction == pytest.approx(sum(e.executed_fraction for e in each) / 2)


@pytest.mark.parametrize("target", ["sm80", "sm90", "sm100", "gfx942", "sm120"])
def test_gpus_are_labelled_as_not_measured(target: str) -> None:
    found = estimate(BERT, patterns.longformer(256), target=target, batch=8)
    assert found.dtype == "bfloat16"
    text = str(found)
    assert "not measured" in text and "not fitted" in text and "batch 8, bfloat16" in text
    assert found.speedup() >= 1.0


def test_attention_grows_with_the_length() -> None:
    found = [
        estimate(BERT, patterns.sliding_window(n, 8), target="cpu", threads=1)
        for n in (128, 512, 2048)
    ]
    shares = [each.attention_share() for each in found]
    assert shares == sorted(shares) and 0.0 < shares[0] < shares[-1] < 1.0
    shown = table(found).splitlines()
    assert len(shown) == 5 and shown[-1].split()[0] == "2048"
    assert len({len(line) for line in shown[1:]}) == 1


def test_stored_rates_count_threads_on_a_cpu_alone() -> None:
    assert stored_rates("cpu", 4).linear_flops == 4 * machine("cpu").linear_flops
    assert stored_rates("sm90", 4) == stored_rates("sm90", 1)


def test_calibration_measures_something_sane() -> None:
    rates = calibrate(ModelShape(64, 2, 4, 128))
    assert 1e7 < rates.linear_flops < 1e14
    assert rates.attention > 0.0
    assert "measured here" in rates.source


def test_training_is_the_forward_and_the_backward_pass() -> None:
    mask = patterns.longformer(512, 8, 2)
    rates = Rates(linear_flops=1e12, attention=2.0, source="made up")
    found = estimate(BERT, mask, batch=2, target="cpu", threads=1, rates=rates)
    report = compile_plan(mask, target="cpu", threads=1, copies=24).explain()
    model = cost_model("cpu", backend=planned_for("cpu"), copies=24)
    plain = [cost.dense(512, 512, masked=False) for cost in (model.forward, model.backward)]
    whole = 2 * 24 * 12 / 1e3  # ms of all heads, batches and layers
    step = report.predicted_us + report.predicted_backward_us
    assert found.sparse_ms[1] == pytest.approx(whole * step)
    step = report.dense_us + report.dense_backward_us
    assert found.masked_ms[1] == pytest.approx(whole * step)
    assert found.dense_ms == pytest.approx((whole * plain[0], whole * sum(plain)))
    assert found.rest_ms[1] == pytest.approx(3 * found.rest_ms[0])  # of a matrix: two more
    assert (found.length, found.batch, found.dtype, found.threads) == (512, 2, "float32", 1)
    assert found.density == mask.density and found.source == "made up"
    assert found.cost_source == model.source


def test_calibration_by_scripted_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of 2 s, attention of 3 s: rates are operations and predictions over them."""
    times = iter([2.0, 3.0])

    def seconds(call: Callable[[], object]) -> float:
        call()
        return next(times)

    monkeypatch.setattr("sparsebert.estimate.rates._least_seconds", seconds)
    shape = ModelShape(64, 2, 4, 128)
    rates = calibrate(shape)
    tokens = 512
    assert rates.linear_flops == pytest.approx(tokens * shape.linear_flops / 2.0)
    threads = torch.get_num_threads()
    backend = planned_for("cpu")
    model = cost_model("cpu", backend=backend, head_dim=16, threads=threads, copies=4)
    predicted_us = 4 * model.forward.dense(256, 256, masked=False)
    assert rates.attention == pytest.approx(3e6 / predicted_us)
    assert f"{threads} thread(s)" in rates.source


def test_the_least_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven, after a first call without the clock."""
    calls, clock = [], iter([0, 9, 10, 14, 20, 23, 30, 38, 40, 45, 50, 56, 60, 69])
    monkeypatch.setattr(
        "sparsebert.estimate.rates.own_clock", lambda: (lambda: float(next(clock)), "")
    )
    assert _least_seconds(lambda: calls.append(1)) == 3.0
    assert len(calls) == 8


def test_one_thread_is_calibrated_by_its_own_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that others take from the thread must not make the machine slower than it is."""
    before, wall = torch.get_num_threads(), itertools.count()
    try:
        torch.set_num_threads(1)
        monkeypatch.setattr("time.perf_counter", lambda: 100.0 * next(wall))
        assert _least_seconds(lambda: None) < 1.0
        assert "1 thread(s), CPU time: " in calibrate(ModelShape(64, 2, 4, 128)).source
    finally:
        torch.set_num_threads(before)


def test_the_report_and_the_table_say_the_figures() -> None:
    found = made()
    text = str(found).splitlines()
    assert text[0] == "model: 12 layers, 12 heads of D = 64, hidden 768, feed-forward 3072"
    assert text[1].split("call")[1].strip() == "N = 512, batch 1, float32, cpu, 2 thread(s)"
    assert text[2].split("mask")[1].strip() == "density 0.1000, executed 0.2000 of the scores"
    rows = {line[:20].strip(): line[20:].split() for line in text[4:12]}
    assert rows["attention, dense"][:2] == ["30", "90"]
    assert rows["by the plan"][:2] == ["10", "30"]
    assert rows["rest of the layers"][:2] == ["70", "210"]
    assert rows["attention's share"][:2] == ["30.0%", "30.0%"]
    assert rows["attention"][:2] == ["3.00", "3.00"]
    assert rows["whole model"][:2] == ["1.25", "1.25"]
    assert rows["best possible"][:2] == ["1.43", "1.43"]
    row = table([found]).splitlines()[-1].split()
    assert row == ["512", "0.2000", "30.0%", "3.00x", "1.25x", "1.43x", "1.25x", "1.43x"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12,
             "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu"},
            ModelShape(768, 12, 12, 3072, name="bert"),
        ),
        (
            {"model_type": "distilbert", "dim": 768, "n_layers": 6, "n_heads": 12,
             "hidden_dim": 3072},
            ModelShape(768, 6, 12, 3072, name="distilbert"),
        ),
        (
            {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None},
            ModelShape(768, 12, 12, 3072, name="gpt2"),
        ),
        (
            {"model_type": "modernbert", "hidden_size": 768, "num_hidden_layers": 22,
             "num_attention_heads": 12, "intermediate_size": 1152},
            ModelShape(768, 22, 12, 1152, gated=True, name="modernbert"),
        ),
        (
            {"model_type": "t5", "d_model": 512, "num_layers": 6, "num_heads": 8, "d_ff": 1024,
             "d_kv": 64, "feed_forward_proj": "gated-gelu"},
            ModelShape(512, 6, 8, 1024, head_dim=64, gated=True, name="t5"),
        ),
    ],
)  # fmt: skip
def test_configs(tmp_path: Path, config: dict[str, object], expected: ModelShape) -> None:
    assert ModelShape.from_config(config) == expected
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert ModelShape.from_config(tmp_path) == expected
    assert ModelShape.from_config(tmp_path / "config.json") == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": "star"}, "mask must be an AttentionMask, got str"),
        ({"mask": patterns.star(64).crop(32, 64)}, "mask is 32 x 64"),
        ({"mask": AttentionMask.stack_heads([patterns.star(64)] * 5)}, "5 heads, but the model"),
        ({"target": "h100"}, "target must be 'cpu', 'sm90'"),
        ({"dtype": "float16"}, "dtype must be float32 for target 'cpu'"),
        ({"dtype": "float32", "target": "sm90"}, "dtype must be bfloat16 or float16"),
        ({"batch": 0}, "batch=0 but must be at least 1"),
        ({"threads": 0}, "threads=0 but must be at least 1"),
    ],
)
def test_refuses(arguments: dict[str, object], message: str) -> None:
    options = {"mask": patterns.star(64), "target": "cpu", **arguments}
    with pytest.raises((TypeError, ValueError), match=message):
        estimate(BERT, options.pop("mask"), **options)  # type: ignore[arg-type]


def test_refuses_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"hidden_size=100 is not a multiple of heads=12"):
        ModelShape(100, 1, 12, 400)
    with pytest.raises(ValueError, match="layers=0 but must be at least 1"):
        ModelShape(96, 0, 12, 400)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mask.safetensors"
    patterns.longformer(256, 4, 1).save(path)
    assert main(f"estimate {SIZES} --mask {path} --no-calibrate --target cpu".split()) == 0
    shown = capsys.readouterr().out
    assert "N = 256" in shown and "whole model" in shown and "best possible" in shown
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == ["128", "256"]
    command = f"estimate {SIZES} --mask {path} --seq-len 200 --target sm90 --batch 4"
    assert main(command.split()) == 0
    assert "N = 200, batch 4, bfloat16, sm90" in capsys.readouterr().out


def test_the_command_with_a_grid_and_a_measured_rate(capsys: pytest.CaptureFixture[str]) -> None:
    grid = "--pattern neighborhood_2d --param height=8 width=8 kernel_size=3"
    assert main(f"estimate {SIZES} {grid} --calibrate --target cpu".split()) == 0
    shown = capsys.readouterr().out
    assert "N = 64" in shown and "measured here" in shown and "inference ---" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (f"{SIZES} --pattern star --target h100", "target must be"),
        (f"{SIZES} --pattern star --target sm90 --calibrate", "only this machine's CPU"),
        (f"{SIZES} --pattern stra", "stra"),
        (f"{SIZES} --pattern star --param width=3", "width"),
        (f"{SIZES} --mask {{mask}} --seq-len 300 --target cpu", "the mask covers 64 tokens"),
        (f"{SIZES} --mask {{mask}} --param window=3", "--param is for --pattern"),
        (f"{SIZES} --mask {{tmp}}/none", "no mask file"),
        (f"{SIZES} --config {{tmp}} --pattern star", "--hidden-size contradicts --config"),
        ("--config {tmp}/no --pattern star", "nothing is downloaded"),
        ("--config {tmp} --pattern star", "no layers and no heads"),
        ("--hidden-size 64 --pattern star", "--layers, --heads missing"),
        (f"{SIZES} --pattern star --dtype float16 --target cpu", "dtype must be float32"),
    ],
)
def test_usage_errors(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}', encoding="utf-8")
    mask = tmp_path / "mask"
    patterns.star(64).save(mask)
    assert main(["estimate", *options.format(tmp=tmp_path, mask=mask).split()]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last and "error:" in last
