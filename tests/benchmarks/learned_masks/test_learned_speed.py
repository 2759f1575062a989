"""MiniLM's times with learned masks, on a tiny model, and README's table. No time is a result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from transformers import BertConfig, BertModel

import sparsebert as sb
from benchmarks.end_to_end import model_families as models
from benchmarks.harness.origin import RESULTS
from benchmarks.learned_masks import learned_speed, protocol
from benchmarks.learned_masks import learned_speed_table as table

ORIGIN = {
    "processor": "a CPU", "torch": "2.0", "sparsebert": "0", "commit": "abc", "tree": "clean",
    "date": "2026-01-02", "mkl": "stock",
}  # fmt: skip


def tiny() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=models.VOCABULARY, hidden_size=32, num_attention_heads=2, num_hidden_layers=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).eval()


def learned(density: float) -> sb.AttentionMask:
    """Another mask for every layer and head."""
    generator = torch.Generator().manual_seed(1)
    return sb.AttentionMask.from_dense(torch.rand(2, 2, 32, 32, generator=generator) < density)


def time_row(seq_len: int, asked: str, threads: str, **other: object) -> dict[str, object]:
    ratio = {"": 1.0, "0.8": 2.0}.get(asked, 4.0)
    row: dict[str, object] = {
        "N": seq_len, "asked": asked, "batch": 2048 // seq_len, "threads": threads, **ORIGIN,
    }  # fmt: skip
    for part in table.PARTS:
        times = {f"{part}_ms_{q}": 100.0 / ratio for q in ("20", "50", "80")}
        ratios = {f"{part}_ratio_{q}": ratio for q in ("20", "50", "80")}
        row |= {**times, **ratios, f"{part}_rounds": 5, f"{part}_mb": 3.0}
    return row | other


def quality_row(
    task: str, contender: str, asked: str, seed: int, loss: float
) -> dict[str, object]:
    return {
        "task": task, "contender": contender, "asked": asked, "seed": seed, "loss": loss,
        "recall_10": 1.0 - loss,
    }  # fmt: skip


def fill(folder: Path) -> None:
    """Times of two masks of one length, qualities of one of them and of a mask without times."""
    table.row_file(folder).write(
        [
            time_row(128, "", "1"),
            time_row(128, "0.8", "1"),
            time_row(128, "0.9", "1", attention_ratio_80=6.0),
            time_row(128, "", "2"),
            time_row(128, "0.8", "2", encoder_ratio_50=1.25, encoder_ratio_20=1.2),
        ]
    )
    protocol.row_file(folder / "learned_masks.csv").write(
        [
            quality_row("embeddings-128", "dense", "", 0, 0.0),
            quality_row("embeddings-128", "DAM", "0.8", 0, 0.1),
            quality_row("embeddings-128", "DAM", "0.8", 1, 0.3),
            quality_row("embeddings-128", "longformer", "0.8", 0, 0.9),
            quality_row("embeddings-256", "DAM", "0.95", 0, 0.5),
            quality_row("r8", "DAM", "0.9", 0, 0.7),
        ]
    )


def test_times_of_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = {0.8: learned(0.2), 0.95: learned(0.05)}
    assert learned_speed.run_case(tiny, masks, tmp_path, batch=2, seconds=0.01)
    file = table.row_file(tmp_path)
    rows = file.read()
    assert [row["asked"] for row in rows] == ["", "0.8", "0.95"]
    for row, mask in zip(rows, (None, *masks.values()), strict=True):
        assert (row["N"], row["batch"], row["mkl"] != "") == ("32", "2", True)
        assert row["fingerprint"] == (mask.fingerprint if mask else "") and row["commit"]
        for part in table.PARTS:
            low, middle, high = (float(row[f"{part}_ms_{q}"]) for q in ("20", "50", "80"))
            assert 0.0 < low <= middle <= high
            assert float(row[f"{part}_ratio_50"]) > 0.0 and float(row[f"{part}_mb"]) > 0.0
            assert int(row[f"{part}_rounds"]) >= 5
    assert rows[0]["attention_ratio_50"] == "1.0000" and rows[1]["sparsity"][:3] == "0.7"

    made: list[int] = []

    def measured(*_: object, **__: object) -> list[dict[str, object]]:
        made.append(1)
        return [time_row(32, "", "9"), time_row(32, "0.8", "9")]

    # There already; then another mask, and another run that was done elsewhere and is kept.
    monkeypatch.setattr(learned_speed, "measure", measured)
    assert not learned_speed.run_case(tiny, masks, tmp_path, batch=2, seconds=0.01)
    assert not made
    file.write([*rows, time_row(64, "", rows[0]["threads"]), time_row(32, "", "77")])
    changed = {**masks, 0.8: learned(0.3)}
    assert learned_speed.run_case(tiny, changed, tmp_path, batch=2, seconds=0.01)
    assert [(row["N"], row["threads"]) for row in file.read()] == [
        ("64", rows[0]["threads"]), ("32", "77"), ("32", "9"), ("32", "9"),
    ]  # fmt: skip


def test_nothing_is_timed_with_a_wrong_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check compares each layer with its own mask."""
    mask = learned(0.2)
    turned = sb.AttentionMask.from_dense(mask.dense().flip(0))
    sparsify = sb.sparsify
    monkeypatch.setattr(learned_speed.sb, "sparsify", lambda model, _: sparsify(model, turned))
    with pytest.raises(SystemExit, match="not timed"):
        learned_speed.measure(tiny, {0.8: mask}, batch=1, seconds=0.01)
    with pytest.raises(ValueError, match="at least one mask"):
        learned_speed.measure(tiny, {}, batch=1, seconds=0.01)


def test_masks_that_are_there(tmp_path: Path) -> None:
    assert learned_speed.committed(32, tmp_path) == {}
    learned(0.2).save(tmp_path / "embeddings-32-DAM-0.8-seed0.safetensors")
    learned(0.05).save(tmp_path / "embeddings-32-DAM-0.95-seed0.safetensors")
    learned(0.05).save(tmp_path / "embeddings-64-DAM-0.9-seed0.safetensors")
    found = learned_speed.committed(32, tmp_path)
    assert found == {0.8: learned(0.2), 0.95: learned(0.05)}


def test_the_lengths_are_those_of_the_experiments() -> None:
    assert {f"embeddings-{n}" for n in table.LENGTHS} == {
        name for name in protocol.SETUPS if name.startswith("embeddings")
    }
    assert set(table.SPARSITIES) <= set(protocol.SPARSITIES)
    assert table.LEARNED in protocol.KEPT


def test_the_table_and_its_place_in_the_readme(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    empty = f"before\n\n{table.BEFORE}\nafter\n"
    page.write_text(empty)
    table.update(page, tmp_path)
    assert page.read_text() == empty  # no rows, no section

    fill(tmp_path)
    table.update(page, tmp_path)
    text = page.read_text()
    lines = text.splitlines()
    assert text.startswith(f"before\n\n{table.BEGIN}\n\n### ")
    assert text.endswith(f"\n\n{table.END}\n\n{table.BEFORE}\nafter\n")
    (header,) = [line for line in lines if line.startswith("| N ")]
    assert header == (
        "| N | mask | drift | recall@10 | attention, 1 thread | attention, 2 threads | "
        "encoder, 1 thread | encoder, 2 threads | memory, MB | GPU |"
    )
    none = "not measured yet"
    assert [line for line in lines if line[:3] in ("| 1", "| 2", "| 5")] == [
        "| 128 | dense | 0.0000 | 1.00 | 100.0 ms | 100.0 ms | 100.0 ms | 100.0 ms | 3.0 / 3.0 | "
        f"{none} |",
        "| 128 | 80% zeros | 0.2000 | 0.80 | 50.0 ms, 2.00x | 50.0 ms, 2.00x | 50.0 ms, 2.00x | "
        f"50.0 ms, 1.25x? | 3.0 / 3.0 | {none} |",
        f"| 128 | 90% zeros | {none} | {none} | 25.0 ms, 4.00x? | {none} | 25.0 ms, 4.00x | "
        f"{none} | 3.0 / 3.0 | {none} |",
        "| 256 | 95% zeros | 0.5000 | 0.50 | " + " | ".join([none] * 6) + " |",
    ]
    (missing,) = [line for line in lines if line.startswith("Not measured yet: ")]
    assert missing.startswith("Not measured yet: 95% zeros at N = 128; dense at N = 256; 80%")
    said = " ".join(text.split())
    assert "seeds: 1 to 2)" in said and "2,048 tokens" in said and "commit abc" in said

    table.update(page, tmp_path)
    assert page.read_text() == text
    (tmp_path / "learned_speed.csv").unlink()
    table.update(page, tmp_path)
    assert page.read_text() == empty


def test_rows_with_mkl_at_its_best_come_first(tmp_path: Path) -> None:
    rows = [time_row(128, "", "1"), time_row(128, "", "1", mkl="avx512", encoder_ms_50=70.0)]
    for chosen in (rows, rows[::-1]):
        text = "\n".join(table.block([{k: str(v) for k, v in row.items()} for row in chosen], []))
        assert "| 70.0 ms |" in text and "MKL made to use AVX-512" in text


@pytest.mark.parametrize(
    "text",
    ["no heading\n", f"{table.BEGIN}\n", f"{table.END}\n", f"{table.BEGIN}\n{table.END}\n" * 2],
)
def test_a_readme_without_a_place_for_it_is_refused(text: str, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"README\.md: must hold"):
        table.update(page, tmp_path)
    assert page.read_text() == text


def test_the_committed_section_is_made_of_the_committed_rows(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    shutil.copy(table.README, page)
    table.update(page, RESULTS)
    assert page.read_bytes() == table.README.read_bytes()
    file = table.row_file(RESULTS)
    rows = file.read() if file.path.exists() else []
    assert (table.BEGIN in page.read_text(encoding="utf-8")) == bool(rows)
    for row in rows:
        if row["asked"]:  # timed with the mask that is committed
            path = table.mask_path(RESULTS / "learned_masks", int(row["N"]), float(row["asked"]))
            assert row["fingerprint"] == sb.AttentionMask.load(path).fingerprint
