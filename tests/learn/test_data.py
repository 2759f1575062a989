"""Text for `sparsebert learn`: sources, tokenizer, blocks, and the corruption of blocks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from sparsebert.learn import sources
from sparsebert.learn.data import (
    IGNORED,
    SPECIAL,
    MaskedText,
    encode,
    prepare,
    train_tokenizer,
    validation_blocks,
)
from sparsebert.learn.python_text import topics

TEXT = "\n".join(topics()[:12])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXT, vocab_size=400)


@pytest.fixture(scope="module")
def data(tokenizer: Any) -> MaskedText:
    return prepare(TEXT, tokenizer, 32, seed=3)


def test_tokenizer_reads_back_and_knows_its_special_tokens(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    assert len(tokenizer) == 400
    ids = tokenizer("An object's type")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "an object ' s type"
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["[CLS]", "[SEP]"]
    assert set(tokenizer.all_special_tokens) == set(SPECIAL)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("An object's type")["input_ids"] == ids


def test_tokenizer_is_the_same_in_another_process(tokenizer: Any) -> None:
    program = (
        "from sparsebert.learn.data import train_tokenizer\n"
        "from sparsebert.learn.python_text import topics\n"
        "print(sorted(train_tokenizer('\\n'.join(topics()[:12]), 400).get_vocab().items()))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == str(sorted(tokenizer.get_vocab().items())), run.stderr


def test_blocks_are_the_text_in_order_and_none_is_in_both_parts(
    tokenizer: Any, data: MaskedText
) -> None:
    tokens = encode(TEXT, tokenizer)
    held_out = validation_blocks(len(tokens) // 30, 0.1)
    blocks = torch.empty(len(held_out), 32, dtype=torch.int64)
    blocks[held_out], blocks[~held_out] = data.validation.blocks, data.train.blocks
    assert blocks[:, 1:-1].flatten().equal(tokens[: 30 * len(held_out)])
    assert set(blocks[:, 0].tolist()) == {tokenizer.cls_token_id}
    assert set(blocks[:, -1].tolist()) == {tokenizer.sep_token_id}


@pytest.mark.parametrize("count", [2, 3, 10, 99, 2000])
def test_both_parts_get_blocks(count: int) -> None:
    held_out = validation_blocks(count, 0.1)
    assert 0 < held_out.sum() < count
    if count >= 99:
        assert abs(held_out.float().mean().item() - 0.1) < 0.02
        stretches = (held_out[1:] & ~held_out[:-1]).sum()
        assert 8 <= stretches <= 11


def test_corruption_is_as_in_bert(tokenizer: Any, data: MaskedText) -> None:
    count = 3000
    batch = data.training_set(count).batch(range(count))
    inputs, labels = batch["input_ids"], batch["labels"]
    predicted = labels != IGNORED
    # 15 % of 30 tokens, rounded.
    assert set(predicted.sum(1).tolist()) == {round(0.15 * 30)}
    assert not predicted[:, [0, -1]].any()
    masked, kept = inputs == tokenizer.mask_token_id, inputs == labels
    total = int(predicted.sum())
    for share, expected in (
        (masked[predicted].float().mean(), 0.8),
        (kept[predicted].float().mean(), 0.1 + 0.1 / len(tokenizer)),
    ):
        deviation = (expected * (1 - expected) / total) ** 0.5
        assert abs(share - expected) < 5 * deviation
    # Every position is predicted about as often as the others.
    per_position = predicted[:, 1:-1].float().mean(0)
    assert (per_position - 4 / 30).abs().max() < 5 * (4 / 30 * 26 / 30 / count) ** 0.5
    random = predicted & ~masked & ~kept
    assert not set(inputs[random].tolist()) & set(tokenizer.all_special_ids)
    # What is not predicted stays as it is, and the labels are the tokens.
    order = torch.where(predicted, labels, inputs)
    assert {tuple(row) for row in order.tolist()} <= {
        tuple(row) for row in data.train.blocks.tolist()
    }


def test_items_are_functions_of_seed_and_index(tokenizer: Any, data: MaskedText) -> None:
    laps = 2 * len(data.train)
    items = data.training_set(laps)
    forwards = [items[i]["input_ids"] for i in range(laps)]
    backwards = [items[i]["input_ids"] for i in reversed(range(laps))]
    assert all(a.equal(b) for a, b in zip(forwards, reversed(backwards), strict=True))
    # Each lap has every block once, in another order and with another corruption.
    first, second = (
        [tuple(torch.where(r["labels"] == IGNORED, r["input_ids"], r["labels"]).tolist())
         for r in (items[i] for i in lap)]
        for lap in (range(laps // 2), range(laps // 2, laps))
    )  # fmt: skip
    assert sorted(first) == sorted(second) == sorted(map(tuple, data.train.blocks.tolist()))
    assert first != second
    assert {tuple(row.tolist()) for row in forwards[: laps // 2]}.isdisjoint(
        tuple(row.tolist()) for row in forwards[laps // 2 :]
    )
    other = prepare(TEXT, tokenizer, 32, seed=4)
    assert not items[0]["input_ids"].equal(other.training_set(1)[0]["input_ids"])
    fixed, same = (d.validation.batch(range(5)) for d in (data, other))
    assert fixed["input_ids"].equal(same["input_ids"]) and fixed["labels"].equal(same["labels"])
    assert len(list(data.validation)) == len(data.validation)


def test_sources_of_text(tmp_path: Path) -> None:
    text = sources.python_text()
    assert len(text) > 800_000 and text == sources.python_text()
    (tmp_path / "a.txt").write_text("naïve\nwords", encoding="utf-8")
    assert sources.text_of_file(tmp_path / "a.txt") == "naïve\nwords"
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 text .* at byte 2"):
        sources.text_of_file(tmp_path / "latin.txt")

    table = tmp_path / "a.csv"
    table.write_text('label,text\n1,"two, words"\n0,\n1,three\n', encoding="utf-8")
    assert sources.text_of_csv(table) == "two, words\nthree"
    assert sources.text_of_csv(table, "label") == "1\n0\n1"
    with pytest.raises(ValueError, match=r"no text column 'body'; name one of .*: label, text"):
        sources.text_of_csv(table, "body")
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="there are none"):
        sources.text_of_csv(tmp_path / "empty.csv")


def test_dataset_folders(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"body": ["one", "two"], "label": [0, 1]})
    rows.save_to_disk(tmp_path / "rows")
    assert sources.text_of_dataset(tmp_path / "rows") == "one\ntwo"
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "splits")
    assert sources.text_of_dataset(tmp_path / "splits", "body") == "one\ntwo"
    with pytest.raises(ValueError, match="no text column 'label'; name one of its columns: body"):
        sources.text_of_dataset(tmp_path / "rows", "label")
    datasets.DatasetDict(test=rows).save_to_disk(tmp_path / "test")
    with pytest.raises(ValueError, match="has no split 'train', but test"):
        sources.text_of_dataset(tmp_path / "test")
    for wrong in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="is no dataset folder; write one with"):
            sources.text_of_dataset(wrong)


def test_unusable_input_is_refused_with_a_remedy(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="text is empty"):
        train_tokenizer(" \n")
    with pytest.raises(ValueError, match="vocab_size=5 but must be at least 20"):
        train_tokenizer(TEXT, 5)
    with pytest.raises(ValueError, match=r"prepare: a.txt has \d+ tokens, but .* a block of 30"):
        prepare("a few words", tokenizer, 32, where="a.txt")
    with pytest.raises(ValueError, match="the text has 0 tokens"):
        prepare("", tokenizer, 32)
    with pytest.raises(ValueError, match="seq_len=32 but the model has 16 positions"):
        prepare(TEXT, tokenizer, 32, max_positions=16)
    with pytest.raises(ValueError, match="seq_len=2 but must be at least 8"):
        prepare(TEXT, tokenizer, 2)
    with pytest.raises(ValueError, match=r"validation must be in \(0, 1\), got 1.0"):
        prepare(TEXT, tokenizer, 32, validation=1.0)
    without = train_tokenizer(TEXT, 100)
    without.mask_token = None
    with pytest.raises(ValueError, match=r"no mask_token_id; .* train_tokenizer"):
        prepare(TEXT, without, 32)
    with pytest.raises(IndexError):
        prepare(TEXT, tokenizer, 32).validation[10_000]
