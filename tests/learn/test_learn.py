"""`sparsebert learn` on a tiny model: end to end, interrupted, resumed, refused; its parts."""

import contextlib
import csv
import errno
import io
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer

import sparsebert as sb
from sparsebert.cli import main
from sparsebert.dam.importance import GROUPS
from sparsebert.learn import training
from sparsebert.learn.data import prepare
from sparsebert.learn.disk import explained
from sparsebert.learn.python_text import topics

Output = pytest.CaptureFixture[str]

TINY = [
    "--layers", "1", "--hidden-size", "32", "--heads", "2", "--vocab-size", "300",
    "--seq-len", "16", "--steps", "12", "--search-steps", "12", "--tune-steps", "4",
    "--batch-size", "4", "--structure", "full", "--sparsity", "0.75",
    "--against", "star", "random", "longformer",
]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(topics()[:3]), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def finished(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not disturbed; what it said is in said.txt."""
    folder = tmp_path_factory.mktemp("learn")
    said = io.StringIO()
    printed = io.StringIO()
    with (
        contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed),
        warnings.catch_warnings(),
    ):  # fmt: skip
        warnings.simplefilter("error", UserWarning)  # nothing that a user need worry about
        assert main(["learn", "--text", text, "-o", str(folder), *TINY]) == 0
    (folder / "said.txt").write_text(said.getvalue(), encoding="utf-8")
    (folder / "printed.txt").write_text(printed.getvalue(), encoding="utf-8")
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def losses(folder: Path) -> dict[str, tuple[str, str]]:
    return {
        row["mask"]: (row["loss_swapped_in"], row["loss"])
        for row in rows(folder / "comparison.csv")
    }


# ------------------------------------------------------------------------------ the whole


def test_learn_writes_mask_model_report_and_pictures(finished: Path) -> None:
    mask = sb.AttentionMask.load(finished / "mask.safetensors")
    assert mask.shape == (1, 2, 16, 16)
    assert mask.sparsity == 0.75
    page = (finished / "report.md").read_text(encoding="utf-8")
    for name in ("importance.png", "mask.png", "losses.png", "training.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in page
    for words in (
        "hardly any use of its context",
        "none is truncated",
        "The whole encoder with it",
        "Mean probability",
        "predicted",
        "measured",
    ):
        assert words in page
    assert set(losses(finished)) == {"dense", "learned", "star", "random"}
    assert "no longformer mask of seq_len=16 is as sparse as 0.75; the sparsest has" in page
    for row in rows(finished / "comparison.csv"):
        assert row["mask"] == "dense" or float(row["sparsity"]) >= 0.75
        assert math.isfinite(float(row["loss"]))
    history = rows(finished / "history.csv")
    assert {"dense", "search", "tune-dense", "tune-learned"} < {row["phase"] for row in history}
    search = [row for row in history if row["phase"] == "search"]
    assert [int(row["step"]) for row in search] == list(range(1, 13))
    assert all(0 < float(row[f"importance_{group}"]) < 1 for row in search for group in GROUPS)


def test_it_ends_on_what_the_numbers_say(finished: Path) -> None:
    last = (finished / "printed.txt").read_text(encoding="utf-8").splitlines()[-1]
    assert last.startswith("Dense attention ends at a loss of ")  # a model without any use yet
    assert "no mask can be judged by it" in last and "On this machine attention is" in last
    assert last in (finished / "report.md").read_text(encoding="utf-8")


def test_a_penalty_draws_masks_at_random(finished: Path, text: str, tmp_path: Path) -> None:
    options = ["--penalty", "executed_area", "--no-per-layer", "--against", "attention"]
    assert main(["learn", "--text", text, "-o", str(tmp_path), *TINY, *options]) == 0
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "the search was too short" in page and "penalty executed_area" in page
    found = sb.AttentionMask.load(tmp_path / "mask.safetensors")
    assert found != sb.AttentionMask.load(finished / "mask.safetensors")
    (most,) = (r for r in rows(tmp_path / "comparison.csv") if r["mask"] == "attention")
    assert most["kind"] == "measured" and float(most["sparsity"]) >= 0.75


def test_quick_learns_the_planted_task(tmp_path: Path, capsys: Output) -> None:
    short = ["--seq-len", "64", "--search-steps", "60", "--tune-steps", "40", "--against", "star"]
    assert main(["learn", "--quick", *short, "-o", str(tmp_path)]) == 0
    words = capsys.readouterr().out.splitlines()[-1]
    assert "Of the positions that were planted it keeps 100% (star " in words
    table = {row["mask"]: row for row in rows(tmp_path / "comparison.csv")}
    assert float(table["learned"]["loss"]) < 0.5 and float(table["star"]["loss"]) > 2.0
    assert float(table["learned"]["kept"]) > 0.9
    assert sb.AttentionMask.load(tmp_path / "mask.safetensors").shape == (1, 2, 64, 64)


def test_the_load_and_each_phase_are_said_without_a_terminal(finished: Path) -> None:
    load, *lines = (finished / "said.txt").read_text(encoding="utf-8").splitlines()
    assert " core" in load and "Using " in load
    for place, phase in enumerate(("dense", "search", "tune-dense", "tune-learned"), 1):
        assert any(line.startswith(f"{place}/6 {phase}: ") and "steps" in line for line in lines)
        assert any(line.startswith(f"{place}/6 {phase}: done, ") for line in lines)
    assert " core" in (finished / "report.md").read_text(encoding="utf-8").splitlines()[2]


def test_the_written_model_is_the_one_that_was_judged(finished: Path, text: str) -> None:
    model = AutoModelForMaskedLM.from_pretrained(finished / "model").eval()
    sb.load_masks(model, finished / "model")
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    data = prepare(Path(text).read_text(encoding="utf-8"), tokenizer, 16)
    loss = training.block_losses(model, data.validation).mean().item()
    # Both in fp32, from the same weights.
    assert loss == pytest.approx(float(losses(finished)["learned"][1]), rel=1e-6)


def test_a_finished_run_is_only_reported_again(
    finished: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    before = losses(finished)
    (finished / "report.md").unlink()
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    assert main(["learn", "--text", text, "-o", str(finished), *TINY]) == 0
    assert losses(finished) == before
    assert (finished / "report.md").exists()
    assert "6/6 tune-random: done before" in capsys.readouterr().err


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], None]]:
    """Press Ctrl-C after a step of a phase, once."""
    original = training._Bar.on_step_end

    def press(phase: str, step: int) -> None:
        def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            original(self, args, state, control, **kwargs)
            if self.title.endswith(f" {phase}") and state.global_step == step:
                monkeypatch.setattr(training._Bar, "on_step_end", original)
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(training._Bar, "on_step_end", on_step_end)

    yield press


def test_interrupted_anywhere_it_goes_on_to_the_same_result(
    finished: Path,
    text: str,
    tmp_path: Path,
    interrupt_at: Callable[[str, int], None],
    capsys: Output,
) -> None:
    command = ["learn", "--text", text, "-o", str(tmp_path), *TINY]
    for phase, step in (("dense", 5), ("search", 7), ("tune-learned", 2), ("tune-random", 4)):
        interrupt_at(phase, step)
        assert main(command) == 130
        assert "interrupted" in capsys.readouterr().err
        assert (tmp_path / "work" / phase / f"checkpoint-{step}").exists()
        assert not (tmp_path / "report.md").exists()
    assert main(command) == 0
    assert losses(tmp_path) == losses(finished)
    mask, undisturbed = (
        sb.AttentionMask.load(folder / "mask.safetensors") for folder in (tmp_path, finished)
    )
    assert mask == undisturbed
    assert not list(tmp_path.glob("work/*/checkpoint-*"))


def fill_the_disk_at_file(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """Have no space left for one file, once."""
    original = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith(ending):
            monkeypatch.setattr(os, "replace", original)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)


def fill_the_disk_at_checkpoint(monkeypatch: pytest.MonkeyPatch, phase: str, step: int) -> None:
    """Have no space left amid one checkpoint, once, in torch's words."""
    original = Trainer._save_optimizer_and_scheduler

    def save(self: Any, folder: str) -> None:
        if Path(folder).parts[-2:] == (phase, f"checkpoint-{step}"):
            monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", original)
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576")
        original(self, folder)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", save)


def test_a_full_disk_loses_nothing(
    finished: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    command = ["learn", "--text", text, "-o", str(tmp_path), *TINY]

    def stops(*words: str) -> None:
        assert main(command) == 2
        said = capsys.readouterr().err
        for each in (f"error: learn: no space left to write to {tmp_path}", *words):
            assert each in said
        assert "give the same command again: it goes on from there" in said
        assert not (tmp_path / "report.md").exists()

    fill_the_disk_at_file(monkeypatch, "settings.json")
    stops("Nothing was finished yet.")
    fill_the_disk_at_file(monkeypatch, "dense/result.json")
    stops("Dense is kept up to its step 12.")
    fill_the_disk_at_checkpoint(monkeypatch, "search", 7)
    stops("Finished and kept: dense; search is kept up to its step 6.")
    fill_the_disk_at_file(monkeypatch, "search/mask.safetensors")
    stops("Finished and kept: dense; search is kept up to its step 12.")
    fill_the_disk_at_checkpoint(monkeypatch, "tune-learned", 1)
    stops("Finished and kept: dense, search, tune-dense.")
    assert main(command) == 0
    assert losses(tmp_path) == losses(finished)
    mask, undisturbed = (
        sb.AttentionMask.load(folder / "mask.safetensors") for folder in (tmp_path, finished)
    )
    assert mask == undisturbed


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), explained(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(RuntimeError, match="shapes"), explained(tmp_path):
        raise RuntimeError("shapes differ")
    # What safetensors says.
    with pytest.raises(OSError, match="no space left to write to"), explained(tmp_path):
        raise ValueError("I/O error: No space left on device (os error 28)")


def test_a_checkpoint_that_was_cut_short_is_not_used(tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert training.last_checkpoint(tmp_path) is None
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text("{}", encoding="utf-8")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"epo', encoding="utf-8")
    assert training.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")


def test_a_model_folder_is_taken_with_its_tokenizer(
    finished: Path, text: str, tmp_path: Path, capsys: Output
) -> None:
    options = ["--steps", "3", "--search-steps", "3", "--tune-steps", "2", "--seq-len", "12"]
    options += ["--sparsity", "0.75", "--against"]
    command = ["learn", "--text", text, "--model", str(finished / "model"), *options]
    assert main([*command, "-o", str(tmp_path)]) == 0
    assert sb.AttentionMask.load(tmp_path / "mask.safetensors").shape == (1, 2, 12, 12)
    assert not (tmp_path / "work" / "tokenizer").exists()
    assert main([*command, "--seq-len", "17", "-o", str(tmp_path / "long")]) == 2
    assert "--seq-len: seq_len=17 but the model has 16 positions" in capsys.readouterr().err


# ------------------------------------------------------------------------------ refusals


def test_another_run_in_the_folder_is_refused(
    finished: Path, text: str, tmp_path: Path, capsys: Output
) -> None:
    def refusal(*options: str) -> str:
        assert main(["learn", "--text", text, "-o", str(finished), *TINY, *options]) == 2
        return capsys.readouterr().err

    assert "other settings (steps 12, now 13); repeat them" in refusal("--steps", "13")
    with Path(text).open("a", encoding="utf-8") as file:
        file.write("more")
    assert "text-sha256" in refusal()
    Path(text).write_text("\n".join(topics()[:3]), encoding="utf-8")
    (tmp_path / "settings.json").write_text("half", encoding="utf-8")
    assert main(["learn", "--text", text, "-o", str(tmp_path), *TINY]) == 2
    assert "is not what learn wrote there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--text", "missing.txt"], "error: --text: there is no file missing.txt"),
        (["--csv", "missing.csv"], "error: --csv: there is no file missing.csv"),
        (["--csv", "."], "error: --csv: . is a directory; give the name of a file"),
        (["--dataset", "missing"], "missing is no dataset folder"),
        (["--column", "body"], "--column is for --csv or --dataset"),
        (["--model", "m", "--heads", "2"], "--heads is for a fresh model"),
        (["--block-size", "8"], "--block-size is for --structure block"),
        (["--sparsity", "0"], "--sparsity 0: a dense mask needs no search"),
        (
            ["--sparsity", "0.9", "--seq-len", "9"],
            "--sparsity 0.9: with --seq-len 9 less than one",
        ),
        (["--sparsity", "1"], "expected a number from 0 to below 1"),
        (["--learning-rate", "0"], "--learning-rate 0.0: must be above 0"),
        (["--hidden-size", "30", "--heads", "4"], "--hidden-size 30 is no multiple of --heads 4"),
        (["--against", "star", "moon"], "--against moon: choose from sliding_window"),
        (["--quick", "--text", "a.txt"], "--text does not go with --quick"),
        (["--quick", "--layers", "2"], "--layers does not go with --quick"),
        (["--quick", "--seq-len", "31"], "--seq-len 31: --quick needs at least 32"),
    ],
)
def test_unusable_options(
    options: list[str], words: str, tmp_path: Path, capsys: Output, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["learn", *options, "-o", "out"]) == 2
    assert words in capsys.readouterr().err
    assert not Path("out").exists()


def test_unusable_text_or_model(tmp_path: Path, capsys: Output, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content, words in (
        ("empty.txt", "", "text is empty"),
        ("short.txt", "only a few words", "short.txt has"),
    ):
        Path(name).write_text(content, encoding="utf-8")
        assert main(["learn", "--text", name, "-o", f"out-{name}"]) == 2
        assert words in capsys.readouterr().err
    assert main(["learn", "--text", "short.txt", "--model", "nothing", "-o", "out-model"]) == 2
    assert "no model folder 'nothing'" in capsys.readouterr().err


def test_a_model_that_uses_context_is_told_from_one_that_does_not(
    finished: Path, text: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    data = prepare(Path(text).read_text(encoding="utf-8"), tokenizer, 16)
    labels = data.validation.batch(range(len(data.validation)))["labels"]
    tokens = data.train.blocks[:, 1:-1].flatten().tolist()
    guess = [math.log((tokens.count(t) + 1) / (len(tokens) + len(tokenizer))) for t in range(300)]
    expected = -sum(guess[t] for t in labels[labels >= 0].tolist()) / int((labels >= 0).sum())
    assert training.frequency_loss(data) == pytest.approx(expected, rel=1e-3)
