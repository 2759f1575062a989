"""The end-to-end benchmark on tiny models: results, rows, report. No number is a result."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import sparsebert as sb
from benchmarks.end_to_end import __main__ as end_to_end
from benchmarks.end_to_end import end_to_end_report, model_case
from benchmarks.end_to_end import model_families as models
from benchmarks.end_to_end.end_to_end_report import COLUMNS, write_report
from benchmarks.harness.memory import peak_bytes
from benchmarks.harness.origin import RESULTS

TINY = {
    "vocab_size": models.VOCABULARY, "hidden_size": 32, "num_attention_heads": 2,
    "intermediate_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def tiny(layers: int, length: int) -> nn.Module:
    config = BertConfig(**TINY, num_hidden_layers=layers, max_position_embeddings=length)
    return BertModel(config, add_pooling_layer=False).eval()


def refused(layers: int, length: int) -> nn.Module:
    raise ValueError("needs longer sequences")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    family = models.Family("BERT-base", 2, 1, (48, 64), (48, 64), tiny)
    monkeypatch.setattr(models, "FAMILIES", (family,))
    monkeypatch.setattr(models, "RIVALS", {"HF BigBird": refused, "HF Longformer": tiny})

    def timed(calls: dict[str, object], **kwargs: object) -> dict[str, list[float]]:
        scale = 1.0 if "HF Longformer" in calls else 0.25  # the attention calls alone
        return {name: [scale, 2.0 * scale, 3.0 * scale] for name in calls}

    monkeypatch.setattr(model_case, "side_by_side", timed)


def test_rows_and_report(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--tokens", "96", "--out", str(tmp_path)]
    assert end_to_end.main(arguments) == 0
    with (tmp_path / "end_to_end_cpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 6  # lengths, modes, routes
    assert {row["commit"] for row in rows} != {""}
    by_route = {row["route"]: row for row in rows if row["N"] == "48"}
    assert by_route["sdpa"]["speedup"] == "1.000" and by_route["sdpa"]["batch"] == "2"
    assert by_route["sdpa"]["tokens_per_s"] == str(round(2 * 48 / 2e-3))
    assert by_route["HF BigBird"]["note"] == "needs longer sequences"
    assert not by_route["HF BigBird"]["ms_50"]
    assert by_route["HF Longformer"]["ms_50"] and not by_route["HF Longformer"]["attention_ms"]
    assert by_route["sdpa"]["attention_share"] == "0.2500"
    sparse = by_route["sparsebert, star"]
    assert 0.0 < float(sparse["predicted_share"]) < 1.0
    assert float(sparse["predicted_speedup"]) > 0.0 and float(sparse["peak_mb"]) > 0.0

    before = (tmp_path / "end_to_end.md").read_text()
    for expected in ("BERT-base with 1 layers", "needs longer sequences", "### Training",
                     "Of 12 sparse cases 0", "Not measured yet"):  # fmt: skip
        assert expected in before
    assert (tmp_path / "end_to_end_cpu.png").read_bytes().startswith(b"\x89PNG")
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(end_to_end_report, "save_figure", lambda figure, _: drawn.append(figure))
        end_to_end_report.draw(rows, tmp_path / "drawn.png")
    for axis in drawn[0].axes:
        assert axis.containers and all(each.has_yerr for each in axis.containers)
    (_, low), (_, high) = drawn[0].axes[0].containers[0].lines[2][0].get_segments()[0]
    assert (low, high) == pytest.approx((1.4 / 2.6, 2.6 / 1.4))  # quantiles of 1, 2 and 3 ms
    write_report(tmp_path)  # from the CSV alone
    assert (tmp_path / "end_to_end.md").read_text() == before


def test_the_committed_report_is_made_of_the_committed_rows(tmp_path: Path) -> None:
    shutil.copy(RESULTS / "end_to_end_cpu.csv", tmp_path)
    assert write_report(tmp_path).read_bytes() == (RESULTS / "end_to_end.md").read_bytes()


def test_only_some_lengths_and_the_other_rows_are_kept(small: None, tmp_path: Path) -> None:
    common = ["--device", "cpu", "--tokens", "64", "--out", str(tmp_path), "--lengths"]
    for length, expected in (("64", {"64"}), ("48", {"48", "64"}), ("64", {"48", "64"})):
        assert end_to_end.main([*common, length]) == 0
        with (tmp_path / "end_to_end_cpu.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["N"] for row in rows} == expected
        assert len(rows) == 12 * len(expected)
    with pytest.raises(SystemExit):
        end_to_end.main([*common, "65"])


def test_threads_stand_beside_each_other_and_routes_can_be_left_out(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--device", "cpu", "--tokens", "64", "--out", str(tmp_path), "--lengths", "64"]
    for threads in ("1", "2", "1"):
        chosen = ["--threads", threads, "--routes", "learned-looking", "HF Longformer"]
        assert end_to_end.main([*common, *chosen]) == 0
    with (tmp_path / "end_to_end_cpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["threads"] for row in rows] == ["2"] * 12 + ["1"] * 12
    left_out = {row["route"] for row in rows if row["note"] == end_to_end_report.LEFT_OUT}
    assert left_out == {"sparsebert, longformer", "sparsebert, star", "HF BigBird"}
    text = (tmp_path / "end_to_end.md").read_text()
    assert "### Training, 1 thread, MKL" in text and "### Training, 2 threads, MKL" in text
    assert "Left out of this run (--routes): sparsebert, longformer (BERT-base)" in text
    with pytest.raises(SystemExit):
        end_to_end.main([*common, "--routes", "nobody"])
    asked = []
    monkeypatch.setattr(end_to_end.mkl, "run_again", lambda *call: asked.append(call) or 3)
    assert end_to_end.main([*common, "--mkl", "avx512"]) == 3
    assert asked == [("benchmarks.end_to_end", [*common, "--mkl", "avx512"], "avx512")]


def test_the_learned_looking_mask_differs_by_head() -> None:
    mask = models.masks(64, 3)["learned-looking"]
    assert mask.num_heads == 3 and mask.head(0) != mask.head(1)


def test_the_check_sees_another_mask() -> None:
    dense, sparse = tiny(1, 32), tiny(1, 32)
    dense.set_attn_implementation("sdpa")
    sparse.load_state_dict(dense.state_dict())
    mask = sb.patterns.sliding_window(32, 4)
    sb.sparsify(sparse, mask)
    batch = models.inputs(dense, 1, 32, torch.device("cpu"))
    models.check(dense, sparse, mask, batch)
    assert dense.config._attn_implementation == "sdpa"
    with pytest.raises(SystemExit, match="hidden states are off"):
        models.check(dense, sparse, sb.patterns.sliding_window(32, 5), batch)


@pytest.mark.parametrize("family", models.FAMILIES, ids=lambda family: family.name)
def test_every_family_runs_sparse(family: models.Family) -> None:
    """At real width, one layer: the models take our inputs, and their attention is found."""
    length = 197 if family.name.startswith("ViT") else 128
    model = family.build(1, length).eval()
    model.set_attn_implementation("sdpa")
    batch = models.inputs(model, 1, length, torch.device("cpu"))
    with torch.no_grad():
        assert model(**batch).last_hidden_state.shape[:2] == (1, length)
    with models.recording("sdpa") as calls, torch.no_grad():
        model(**batch)
    assert len(calls) == 1 and calls[0][0][1].shape[2] == length
    for training in (False, True):
        models.attention_calls(model, batch, training=training)()


def test_rivals_say_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match="needs N > 704"):
        models.big_bird(1, 512)
    with pytest.raises(ValueError, match="multiple of its window, 18"):
        models.longformer(1, 577)


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def two_at_once_then_one() -> None:
        one, other = torch.ones(1 << 20), torch.ones(1 << 20)
        del one, other
        torch.ones(1 << 20)

    assert peak_bytes(two_at_once_then_one, "cpu") / 2**20 == pytest.approx(8.0, rel=0.01)


def test_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "end_to_end_cpu.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=f"no column {COLUMNS[0]}"):
        write_report(tmp_path)
