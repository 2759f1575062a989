"""The planted task: what its sequences and its model are, and which masks solve it.

What a mask is worth is judged by the share of positions at which the model, unchanged, is right.
"""

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import sparsebert as sb
from sparsebert.dam.search import MaskSearch
from sparsebert.integrations.huggingface.scores import position_scores
from sparsebert.learn.handmade import FAMILIES, pattern_at_sparsity
from sparsebert.learn.planted import HEADS, VALUES, PlantedTask
from sparsebert.learn.planted_model import planted_model

N = 128
SPARSITY = 0.9
SEED = 0


@pytest.fixture(scope="module")
def task() -> PlantedTask:
    return PlantedTask(N, seed=SEED)


def right(task: PlantedTask, mask: sb.AttentionMask | None) -> float:
    """Share of the positions of validation at which the model is right under a mask."""
    model = planted_model(task)
    if mask is not None:
        sb.sparsify(model, mask, backend="torch")
    batch = task.validation.batch(range(len(task.validation)))
    with torch.inference_mode():
        found = model(input_ids=batch["input_ids"]).logits.argmax(-1)
    return found.eq(batch["labels"]).float().mean().item()


def scores_of(task: PlantedTask, kind: str) -> torch.Tensor:
    return position_scores(
        planted_model(task), [task.training_set(32).batch(range(32))], kind=kind
    )


# ------------------------------------------------------------------------------ the sequences


def test_labels_are_topic_and_partners(task: PlantedTask) -> None:
    votes = set(task.votes.tolist())
    assert len(votes) == N // 8 and not votes & set(task.partners.flatten().tolist())
    agree = 0
    for i in range(20):
        item = task.validation[i]
        tokens, labels = item["input_ids"].tolist(), item["labels"].tolist()
        topics = {label // VALUES**HEADS for label in labels}
        assert len(topics) == 1
        agree += sum(tokens[place] in topics for place in votes)
        for place, label in enumerate(labels):
            assert (tokens[place] < VALUES) == (place in votes)
            for h in range(HEADS):
                content = tokens[task.partners[h, place]] - VALUES
                assert label // VALUES ** (HEADS - 1 - h) % VALUES == content
    # A vote is right in 0.7 + 0.3 / 4 of the cases; four standard deviations of 160 votes.
    assert agree / (20 * len(votes)) == pytest.approx(0.775, abs=0.13)


def test_items_can_be_repeated_and_validation_is_none_of_them(task: PlantedTask) -> None:
    train = task.training_set(40, start=3)
    assert train[5]["input_ids"].equal(task.training_set(9)[8]["input_ids"])
    assert PlantedTask(N, seed=SEED).validation[7]["labels"].equal(task.validation[7]["labels"])
    assert not PlantedTask(N, seed=1).partners.equal(task.partners)
    seen = {tuple(train[i]["input_ids"].tolist()) for i in range(40)}
    assert len(seen) == 40
    assert not seen & {tuple(task.validation[i]["input_ids"].tolist()) for i in range(64)}
    with pytest.raises(IndexError, match="item 40 of 40"):
        train[40]
    with pytest.raises(ValueError, match="PlantedTask: seq_len=31 but must be at least 32"):
        PlantedTask(31)


# ------------------------------------------------------------------------------ the model


@pytest.mark.parametrize("n", [32, 65, 128])
def test_the_model_is_right_and_attends_to_votes(n: int) -> None:
    task = PlantedTask(n, seed=n)
    # Of 4 votes two are wrong now and then, so that no topic has most; of 16 hardly ever so many.
    assert right(task, None) > (0.99 if n == 128 else 0.85)
    attention = scores_of(task, "attention")[0]
    votes = attention[:, :, task.votes]
    partners = attention.gather(2, task.partners[..., None])
    assert votes.sum(-1).min() > 0.9
    assert (votes.amin(-1) > 1.2 * partners[..., 0]).all()


# ------------------------------------------------------------------------------ the masks


def test_the_planted_positions_and_some_votes_are_enough(task: PlantedTask) -> None:
    bits = task.needed().dense()
    assert bits.sum(-1).eq(1).all() and task.kept(task.needed()) == 1.0
    assert right(task, task.needed()) < 2.0 / VALUES  # the topic has to be guessed
    bits[..., task.votes[:11]] = True
    enough = sb.AttentionMask.from_dense(bits.numpy())
    assert enough.sparsity > SPARSITY
    assert right(task, enough) > 0.95


@pytest.mark.parametrize("name", FAMILIES)
def test_hand_made_masks_fail(task: PlantedTask, name: str) -> None:
    mask = pattern_at_sparsity(name, N, SPARSITY, num_heads=HEADS)
    assert task.kept(mask) < 0.25
    assert right(task, mask) < 0.15  # guessing is right in 1 case of 64


def search(task: PlantedTask, kind: str, steps: int) -> tuple[sb.AttentionMask, sb.AttentionMask]:
    """The mask of a warm start, and the one that training alpha alone makes of it."""
    dam = sb.DifferentiableAttentionMask(
        1, HEADS, N, symmetric=False, sampling="top", scope="global", seed=SEED
    ).start_from(scores_of(task, kind), SPARSITY)
    start = dam.binarize(sparsity=SPARSITY)
    model: Any = planted_model(task).requires_grad_(False)
    sb.attach_dam(model.train(), dam)
    found = MaskSearch(dam, steps, sparsity=SPARSITY)
    optimizer = torch.optim.Adam([dam.alpha])
    data = task.training_set(8 * steps)
    for step in range(steps):
        found.begin_step(step)
        optimizer.param_groups[0]["lr"] = 0.05 * (1.0 - step / steps)  # or they come and go
        loss = model(**data.batch(range(8 * step, 8 * step + 8))).loss + found.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return start, dam.binarize(sparsity=SPARSITY)


@pytest.mark.parametrize("kind", ["attention", "attention_gradient", "drop"])
def test_a_search_finds_what_scores_of_the_dense_model_do_not_show(
    task: PlantedTask, kind: str
) -> None:
    top, found = search(task, kind, steps=120)
    # The top share of the scores keeps votes; partners little more than chance would, one in ten.
    assert task.kept(top) < 0.2 and right(task, top) < 0.15
    assert found.sparsity >= SPARSITY
    assert task.kept(found) > 0.95 and right(task, found) > 0.9
