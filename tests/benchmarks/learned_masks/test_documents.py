"""Documents as tokens, their validation split, and batches that can be repeated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.learned_masks import documents
from benchmarks.learned_masks.documents import Batches, Encoded, encode, once, split
from benchmarks.learned_masks.labelled_text import Documents
from sparsebert.learn.data import train_tokenizer

WORDS = ["mask", "learned", "query", "key", "value", "head", "layer", "token"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token for each of the words."""
    return train_tokenizer("\n".join(WORDS * 20), vocab_size=200)


def text(length: int) -> str:
    """So many words, of one token each."""
    return " ".join(WORDS[i % len(WORDS)] for i in range(length))


def made_up(lengths: list[int], n: int) -> Encoded:
    """Document i is [1, i + 100, ...], padded with 0."""
    real = torch.tensor(lengths)
    ids = torch.where(torch.arange(n) < real[:, None], torch.arange(len(real))[:, None] + 100, 0)
    ids[:, 0] = 1
    return Encoded(ids, real, real)


# ------------------------------------------------------------------------------ encode


def test_encode_pads_and_truncates_as_the_tokenizer_does(tokenizer: Any) -> None:
    texts = [text(length) for length in (1, 5, 6, 7, 30)]
    encoded = encode(texts, tokenizer, 8)
    theirs = tokenizer(
        texts, padding="max_length", truncation=True, max_length=8, return_tensors="pt"
    )
    assert encoded.ids.equal(theirs["input_ids"])
    assert encoded.lengths.equal(theirs["attention_mask"].sum(1))
    assert encoded.whole.tolist() == [3, 7, 8, 9, 32]
    assert (len(encoded), encoded.truncated) == (5, 2)
    assert encoded.describe() == (
        "2 of 5 documents (40.0%) are longer than 8 tokens and were truncated; 42.4% of all "
        "tokens are left out."
    )
    some = encoded.take(torch.tensor([4, 0]))
    assert some.ids.equal(encoded.ids[[4, 0]])
    assert (some.lengths.tolist(), some.whole.tolist()) == ([8, 3], [32, 3])


def test_without_truncation_long_documents_are_an_error(tokenizer: Any) -> None:
    message = r"1 of 2 documents are longer than the 8 tokens of the mask \(document 1 has 9\)"
    with pytest.raises(ValueError, match=message):
        encode([text(6), text(7)], tokenizer, 8, truncate=False)
    assert encode([text(6)], tokenizer, 8, truncate=False).truncated == 0


def test_encode_refuses_what_it_cannot_use(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="texts is empty"):
        encode([], tokenizer, 8)
    with pytest.raises(ValueError, match="seq_len=7 but must be at least 8"):
        encode(["mask"], tokenizer, 7)
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="the tokenizer has no cls_token_id"):
        encode(["mask"], bare, 8)


# ------------------------------------------------------------------------------ split


def labelled(*counts: int) -> Documents:
    """So many different documents of each class, in turn as long as there are any."""
    labels = [label for i in range(max(counts)) for label, k in enumerate(counts) if i < k]
    return Documents(tuple(map(str, range(len(labels)))), torch.tensor(labels))


def test_a_split_has_each_class_on_both_sides_by_its_share() -> None:
    data = labelled(100, 20, 3, 2)
    parts = split(data, 0.1, seed=3)
    assert sorted([*parts.train.tolist(), *parts.validation.tolist()]) == list(range(125))
    assert data.labels[parts.validation].bincount().tolist() == [10, 2, 1, 1]
    most = split(data, 0.99)
    assert data.labels[most.train].bincount().tolist() == [1, 1, 1, 1]


def test_a_split_depends_on_the_seed_alone() -> None:
    data = labelled(100, 20)
    first, again, other = (split(data, 0.1, seed).validation for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


def test_equal_texts_stay_on_one_side() -> None:
    texts = tuple(str(i % 20) for i in range(100))  # each five times, twice with another label
    labels = torch.tensor([i % 2 if i < 60 else 1 - i % 2 for i in range(100)])
    parts = split(Documents(texts, labels), 0.25, seed=1)
    train, validation = (
        {texts[i] for i in side.tolist()} for side in (parts.train, parts.validation)
    )
    assert len(train & validation) == 0
    assert (len(train), len(validation), len(parts.validation)) == (16, 4, 20)


def test_a_split_that_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="class 'rare' has 1 different documents"):
        split(labelled(9, 1), 0.1, classes=("common", "rare"))
    with pytest.raises(ValueError, match="class '2' has 0 different documents"):
        split(labelled(9, 9), 0.1, classes=("0", "1", "2"))
    with pytest.raises(ValueError, match="class '0' has 1 different documents"):
        split(Documents(("same", "same", "b", "c"), torch.tensor([0, 0, 1, 1])), 0.5)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\)"):
            split(labelled(9, 9), share)


def test_labels_must_fit_the_classes() -> None:
    for labels in ([0, 0, 1, 2], [0, 0, 1, -1]):
        with pytest.raises(ValueError, match="labels are places among 2 classes"):
            split(Documents(tuple("abcd"), torch.tensor(labels)), 0.5, classes=("x", "y"))
    with pytest.raises(ValueError, match=r"labels must be int64 \[4\]"):
        split(Documents(tuple("abcd"), torch.tensor([0, 1, 1])), 0.5)
    with pytest.raises(ValueError, match="there are no documents"):
        split(Documents((), torch.zeros(0, dtype=torch.int64)), 0.5)


# ------------------------------------------------------------------------------ batches

LENGTHS = [3, 9, 17, 30, 31, 16, 5, 2, 40, 12, 25]


@pytest.mark.parametrize("pool", [1, 2, 5])
def test_a_lap_has_each_document_at_most_once(pool: int) -> None:
    encoded, labels = made_up(LENGTHS, 40), torch.arange(11) * 7
    batches = Batches(encoded, labels, 3, seed=1, pool=pool)
    assert batches.per_lap == 3
    left_out = set()
    for lap in range(8):
        seen = []
        for step in range(3 * lap, 3 * lap + 3):
            batch = batches.batch(step)
            rows = batch["index"]
            n = batch["input_ids"].shape[1]
            assert batch["input_ids"].equal(encoded.ids[rows, :n])
            assert batch["attention_mask"].sum(1).equal(encoded.lengths[rows])
            assert batch["attention_mask"].equal(batch["input_ids"] != 0)
            assert batch["labels"].equal(labels[rows])
            longest = int(encoded.lengths[rows].max())
            assert longest <= n <= 40 and (n == 40 or n % 16 == 0) and n - longest < 16
            seen += rows.tolist()
        assert len(set(seen)) == 9
        left_out |= set(range(11)) - set(seen)
    assert len(left_out) > 2  # never the same ones


def test_a_batch_is_the_same_whenever_it_is_asked_for() -> None:
    encoded, labels = made_up(LENGTHS, 40), torch.arange(11)
    for pool in (1, 2):
        through = Batches(encoded, labels, 2, seed=5, pool=pool)
        rows = [through.batch(step)["index"].tolist() for step in range(20)]
        for step in (19, 3, 7, 0):
            fresh = Batches(encoded, labels, 2, seed=5, pool=pool)
            assert fresh.batch(step)["index"].tolist() == rows[step]
        other = Batches(encoded, labels, 2, seed=6, pool=pool)
        assert [other.batch(step)["index"].tolist() for step in range(20)] != rows
        assert rows[:5] != rows[5:10]


def test_pools_leave_less_padding() -> None:
    lengths = torch.randint(2, 129, (1024,), generator=torch.Generator().manual_seed(0)).tolist()
    encoded, labels = made_up(lengths, 128), torch.zeros(1024, dtype=torch.int64)
    tokens = {}
    for pool in (1, 8):
        batches = Batches(encoded, labels, 16, pool=pool)
        tokens[pool] = sum(batches.batch(step)["input_ids"].numel() for step in range(64))
    assert tokens[8] < 0.75 * tokens[1]
    firsts = [batches.batch(step)["input_ids"].shape[1] for step in range(8)]
    assert firsts != sorted(firsts)  # not from the short ones to the long ones


def test_without_trimming_batches_have_the_length_of_the_mask() -> None:
    encoded, labels = made_up([3, 4], 40), torch.zeros(2, dtype=torch.int64)
    assert Batches(encoded, labels, 2, multiple=None).batch(0)["input_ids"].shape == (2, 40)
    assert Batches(encoded, labels, 2).batch(0)["input_ids"].shape == (2, 16)


def test_once_has_every_document_once_from_the_longest_on() -> None:
    encoded, labels = made_up(LENGTHS, 40), torch.arange(11)
    batches = list(once(encoded, labels, 4))
    index = torch.cat([batch["index"] for batch in batches])
    assert sorted(index.tolist()) == list(range(11))
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 3]
    assert encoded.lengths[index].tolist() == sorted(LENGTHS, reverse=True)
    assert [batch["input_ids"].shape[1] for batch in batches] == [40, 32, 16]
    assert len(list(once(encoded, labels, 64))) == 1


def test_batches_that_cannot_be_made() -> None:
    encoded, labels = made_up([3, 4], 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="batch_size=3 but must be from 1 to 2"):
        Batches(encoded, labels, 3)
    with pytest.raises(ValueError, match="step=-1 but must be at least 0"):
        Batches(encoded, labels, 2).batch(-1)
    for wrong in (labels[:1], labels.int()):
        with pytest.raises(ValueError, match=r"labels must be int64 \[2\]"):
            Batches(encoded, wrong, 2)
        with pytest.raises(ValueError, match=r"labels must be int64 \[2\]"):
            next(documents.once(encoded, wrong, 2))
    for setting in ("multiple", "pool"):
        with pytest.raises(ValueError, match=f"{setting}=0 but must be at least 1"):
            Batches(encoded, labels, 2, **{setting: 0})
