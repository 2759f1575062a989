"""The experiments on learned masks: the committed report, and a tiny run of a whole task."""

from __future__ import annotations

import csv
import dataclasses
import errno
import importlib
import shutil
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

import sparsebert as sb
from benchmarks.harness.origin import RESULTS
from benchmarks.harness.rows import RowFile
from benchmarks.learned_masks import __main__ as command
from benchmarks.learned_masks import fixed_masks, loops, tasks
from benchmarks.learned_masks.__main__ import gather
from benchmarks.learned_masks.experiment import Experiment, Job, jobs, run_seed
from benchmarks.learned_masks.learned_masks_report import write_report
from benchmarks.learned_masks.paired import Interval, difference
from benchmarks.learned_masks.protocol import (
    DAMS,
    IMPORTANCE,
    KEPT,
    SCORED,
    SETUPS,
    WITHOUT,
    Recipe,
    Setup,
    contenders,
    row_file,
)
from sparsebert.dam.importance import GROUPS
from sparsebert.learn.python_text import docstrings, docstrings_by_module, topics

TINY = Setup(
    "mlm", seq_len=32, batch=4, steps=3, search_steps=2, score_batches=2, dense_steps=3,
    dense_lr=1e-3, documents=8,
)  # fmt: skip


def test_the_committed_report_is_made_of_the_committed_rows(tmp_path: Path) -> None:
    shutil.copy(RESULTS / "learned_masks.csv", tmp_path)
    shutil.copytree(RESULTS / "learned_masks", tmp_path / "learned_masks")
    gather(tmp_path / "none", tmp_path)  # no run there: the rows stay
    assert (tmp_path / "learned_masks.csv").read_bytes() == (
        RESULTS / "learned_masks.csv"
    ).read_bytes()
    page = write_report(tmp_path)
    assert page.read_bytes() == (RESULTS / "learned_masks.md").read_bytes()
    pictures = sorted(path.name for path in RESULTS.glob("learned_masks_*.png"))
    assert pictures == sorted(path.name for path in tmp_path.glob("*.png"))


def test_jobs_begin_with_the_most_telling_and_name_each_once() -> None:
    for task in SETUPS:
        found = jobs(task)
        assert len(found) == len(set(found))
        assert found[0] == Job("dense", None)
        asked = [job.asked for job in found if job.asked is not None]
        assert asked == sorted(asked, key=[0.9, 0.8, 0.95, 0.7].index)
        assert {job.contender for job in found} == set(contenders(task))
        assert (Job(IMPORTANCE, None) in found) == (task == "mlm")


@pytest.mark.parametrize("name", WITHOUT)
def test_what_is_dropped_of_each_row(name: str) -> None:
    for n in (7, 8):
        dense = fixed_masks.without(name, n, 3, seed=1).dense()[0]
        dropped = (~dense).sum(-1)
        # The last row of an odd number has no neighbour after it in its pair.
        expected = torch.ones(3, n, dtype=torch.int64)
        expected[:, -1] = 0 if n % 2 and name == "without neighbour" else 1
        if name == "without others":
            expected[:] = n - 1
        assert torch.equal(dropped, expected)
        diagonal = torch.diagonal(dense, dim1=-2, dim2=-1)
        assert bool(diagonal.all()) == (name != "without diagonal")
        assert bool(diagonal.any()) == (name != "without diagonal")
    with pytest.raises(ValueError, match="no such contender"):
        fixed_masks.without("dense", 8, 3, seed=1)


def test_masks_of_the_highest_scores() -> None:
    scores = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one = fixed_masks.highest(scores, 0.75, "all")
    heads = fixed_masks.highest(scores, 0.75, "layers")
    none = fixed_masks.highest(scores, 0.75, "none")
    assert (one.shape[:2], heads.shape[:2], none.shape[:2]) == ((1, 1), (1, 3), (2, 3))
    mean = scores.mean((0, 1))
    kept = one.dense()[0, 0]
    # Rows that none of the highest is in keep their best, in the place of the lowest of these.
    assert kept.sum() <= 64 and mean[kept].mean() > mean[~kept].mean()
    by_head = none.dense().float().mean((-1, -2))
    assert none.sparsity >= 0.75 and by_head.std() > 0.0  # a share of all heads together
    assert torch.equal(by_head.new_tensor(0.25).expand(3), heads.dense().float().mean((-1, -2))[0])


def test_intervals() -> None:
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.half == pytest.approx(4.3026527 / 3**0.5)  # Student, 2
    assert found.sign == 0 and Interval.of([1.0, 1.1, 1.2]).sign == 1
    assert Interval.of([-1.0, -1.2]).sign == 0 and Interval.of([-1.0]).sign == 0
    assert Interval.of([0.5]).show() == "0.5000" and Interval.of([]).show() == ""
    paired = difference({0: 1.0, 1: 5.0, 2: 9.0}, {1: 4.0, 0: 0.5})
    assert (paired.mean, paired.count) == (0.75, 2)


def _enospc(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_and_missing_text_are_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["learned_masks", "--work", str(tmp_path), "--threads", "1"])
    for error, words in (
        (_enospc, f"No space left on device; what is finished is in {tmp_path}"),
        (lambda *_: importlib.import_module("no_such_text"), "No module named 'no_such_text'"),
    ):
        monkeypatch.setattr(command, "_run", error)
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == 1 and words in capsys.readouterr().err


def test_a_disk_that_is_full_at_the_end_of_a_job_loses_that_job_alone(
    few: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run_seed(TINY, 0, tmp_path, most=1) > 0
    before = (tmp_path / "mlm-seed0.csv").read_bytes()
    with monkeypatch.context() as full, pytest.raises(OSError, match="No space"):
        full.setattr(RowFile, "append", _enospc)
        run_seed(TINY, 0, tmp_path, most=1)
    assert (tmp_path / "mlm-seed0.csv").read_bytes() == before
    left = run_seed(TINY, 0, tmp_path, most=1)
    rows = (tmp_path / "mlm-seed0.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3 and left == len(jobs("mlm")) - 2


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short text, and a small model."""
    monkeypatch.setattr(tasks, "python_text", lambda: "\n".join(topics()[:6]))
    for name, value in {"heads": 2, "hidden_size": 32, "vocabulary": 256}.items():
        monkeypatch.setattr(tasks.MaskedLanguage, name, value)


@pytest.mark.slow
def test_a_tiny_run(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contender at one sparsity; then a second start, the report, and another setup."""
    work, masks = tmp_path / "work", tmp_path / "masks"
    assert (
        run_seed(TINY, 1, work, masks=masks, sparsities=(0.75,), until=time.monotonic() - 1) > 20
    )
    assert run_seed(TINY, 1, work, masks=masks, sparsities=(0.75,)) == 0
    path = work / "mlm-seed1.csv"
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert set(contenders("mlm")) == {row["contender"] for row in rows}
    for row in rows:
        assert row["seed"] == "1" and row["date"] and row["seq_len"] == "32"
        if row["contender"] != IMPORTANCE:
            assert 4.0 < float(row["loss"]) < 7.0
        if row["asked"]:
            within_cost = row["contender"] in DAMS and DAMS[row["contender"]].executed
            assert within_cost or float(row["sparsity"]) >= 0.75
            assert 0.0 < float(row["executed"]) <= float(row["executed_sm90"]) <= 1.0
    for name in KEPT:
        row = next(row for row in rows if row["contender"] == name)
        mask = sb.AttentionMask.load(masks / f"mlm-{name.replace(', ', '-').replace(' ', '_')}"
                                     "-0.75-seed1.safetensors")  # fmt: skip
        assert float(row["sparsity"]) == pytest.approx(mask.sparsity, abs=1e-5)
        assert row["budget_loss"] != row["loss"]

    before = path.read_bytes()  # a second start runs nothing again
    monkeypatch.setattr(loops, "train", lambda *_, **__: pytest.fail("trained again"))
    assert run_seed(TINY, 1, work, masks=masks, sparsities=(0.75,)) == 0
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match=r"of another setup.*steps"):
        run_seed(dataclasses.replace(TINY, steps=4), 1, work)

    gather(work, tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "### 75% sparsity" in page and "| longformer | 1 |" in page


@pytest.mark.parametrize("name", [name for name in DAMS if f"start of {name}" in SCORED])
def test_a_search_starts_where_the_scores_say(name: str, few: None, tmp_path: Path) -> None:
    """Without any rate, the learned mask is the one that stands beside it as its start."""
    experiment = Experiment(TINY, 0, tmp_path)
    experiment.rows(Job("dense", None))
    start = experiment.fixed_mask(f"start of {name}", 0.75)

    def found(recipe: Recipe) -> sb.AttentionMask:
        model = experiment.task.start()
        weights = None if recipe.frozen else experiment._new(model)
        dam, _ = experiment._search(model, recipe, weights, asked=0.75)
        return dam.binarize(sparsity=0.75)

    assert found(dataclasses.replace(DAMS[name], mask_lr=0.0)) == start
    assert found(dataclasses.replace(DAMS[name], mask_lr=0.1)) != start


def test_search_and_training_in_one_budget_are_one_training(
    few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are trained as with the mask from the first step on, if the search keeps to it."""
    setup = dataclasses.replace(TINY, steps=4, lr=1e-2)
    experiment = Experiment(setup, 0, tmp_path)
    experiment.precision = "fp32"
    experiment.rows(Job("dense", None))
    start = experiment.task.start
    monkeypatch.setattr(experiment.task, "start", lambda: start().double())
    recipe = dataclasses.replace(DAMS["DAM, distances"], mask_lr=0.0)
    row = experiment._learned("still", recipe, 0.5)  # no row is empty
    assert row["budget_loss"] == pytest.approx(row["loss"], rel=1e-6)  # the loss itself is fp32
    frozen = experiment._learned("still", dataclasses.replace(recipe, frozen=True), 0.5)
    assert frozen["loss"] == row["loss"] and abs(frozen["budget_loss"] - row["loss"]) > 1e-3


def test_rates_are_those_of_all_steps_whatever_loop_takes_them() -> None:
    model = torch.nn.Linear(2, 2)
    weights = loops.Weights(model, 1.0, 20)
    rates = []
    for _ in range(20):
        weights.step()
        rates.append(weights._optimizer.param_groups[0]["lr"])
    assert rates[:2] == [0.5, 1.0] and max(rates) == 1.0
    assert rates[2:] == pytest.approx([(20 - step) / 18 for step in range(2, 20)])


def test_passages_of_several_sources() -> None:
    class Words:
        cls_token_id, sep_token_id = 1, 2

        def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

    found = tasks.passages(["3 4 5 6 7", "8", "9 10"], Words(), 4)
    assert found.tolist() == [[1, 3, 4, 2], [1, 5, 6, 2], [1, 9, 10, 2]]
    with pytest.raises(ValueError, match="none of 1 texts has the 2 tokens of a passage"):
        tasks.passages(["3"], Words(), 4)
    rows = [torch.arange(10)[:, None], 100 + torch.arange(4)[:, None]]
    assert tasks.evenly(rows, 4).flatten().tolist() == [0, 2, 5, 7, 100, 101, 102, 103]


def test_docstrings_by_module_are_all_docstrings() -> None:
    by_module = docstrings_by_module()
    assert len(by_module) > 30
    assert "\n\n".join(text for text in by_module if text) == "\n\n".join(
        text for text in docstrings() if text
    )


def test_what_is_within_a_cost_is_compared_by_its_tiles_alone(tmp_path: Path) -> None:
    """In the table of the penalty, with how many times less its tiles compute; nowhere else."""
    names = {"dense": (3.0, ""), "DAM_u": (3.3, 0.6), "DAM_u, within cost": (3.1, 0.2),
             "star": (3.2, 0.3)}  # fmt: skip
    common = {**{f"kept_{group}": 0.1 for group in GROUPS}, "task": "mlm", "precision": "fp32",
              "date": "2026-01-01", "processor": "none",
              "torch": "0", "commit": "0", **dataclasses.asdict(SETUPS["mlm"])}  # fmt: skip
    row_file(tmp_path / "learned_masks.csv").write(
        {**common, "seed": seed, "contender": name, "loss": loss + 0.1 * seed,
         "asked": 0.9 if area else "", "sparsity": 0.9, "executed_sm90": area}
        for seed in (0, 1) for name, (loss, area) in names.items()
    )  # fmt: skip
    page = write_report(tmp_path).read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if "DAM_u, within cost" in line]
    cells = "90% | 2 | 0.900 | 0.200 ± 0.000 | 3.00 ± 0.00 | +0.1000 ± 0.0000"
    assert lines == [f"| DAM_u, within cost | {cells} |"]
    assert "DAM_u is clearly better than 0 of 1, clearly worse than 1" in page
