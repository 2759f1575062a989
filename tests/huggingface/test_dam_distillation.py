"""DAMTrainer with masks of the likeliest positions, held to the dense model (distillation)."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, BertModel
from transformers.modeling_outputs import BaseModelOutput

import sparsebert as sb
from sparsebert.dam.schedules import ramp
from sparsebert.dam.search import MaskSearch
from sparsebert.integrations.huggingface.dam import attached
from sparsebert.integrations.huggingface.dam_files import load_dam
from sparsebert.integrations.huggingface.dense_teacher import fingerprint
from tests.huggingface.trainings import (
    BATCH,
    LR,
    MASK_LR,
    STEPS,
    H,
    N,
    assert_close,
    assert_equal,
    build,
    build_dam,
    data,
    state_of,
    trainer_of,
)

WEIGHT, GOAL, FIRST = 3.0, 0.8, 0.2


def top_dam(dtype: torch.dtype = torch.float64) -> Any:
    """Begun warm, as such a search is."""
    generator = torch.Generator().manual_seed(2)
    scores = torch.rand(1, H, N, N, generator=generator)
    return build_dam(dtype, sampling="top").start_from(scores, GOAL)


def ragged(labels: bool = True) -> list[dict[str, torch.Tensor]]:
    rows = data()
    for number, row in enumerate(rows):
        row["attention_mask"] = (torch.arange(N) < N - number % 4).long()
        if not labels:
            del row["labels"]
    return rows


def distilled(folder: Path, **changes: Any) -> sb.DAMTrainer:
    settings: dict[str, Any] = {
        "dam": top_dam(),
        "sparsity": GOAL,
        "first_sparsity": FIRST,
        "distillation": WEIGHT,
        "train_dataset": ragged(),
        "train_sampling_strategy": "sequential",
    }
    return trainer_of(folder, **{**settings, **changes})


def distance(hidden: torch.Tensor, wanted: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Example by example, its real tokens alone."""
    shares = []
    for h, w, r in zip(hidden, wanted, real.bool(), strict=True):
        shares.append((h[r] - w[r]).norm() ** 2 / w[r].norm() ** 2)
    return torch.stack(shares).mean()


def hand_written(
    model: Any, labels: bool, weight: float | None
) -> tuple[list[float], list[float]]:
    """What DAMTrainer should do; the task's losses and the distances of each step."""
    teacher = copy.deepcopy(model).eval()
    dam = top_dam()
    sb.attach_dam(model, dam)
    options = {} if weight is None else {"weight": weight, "penalty": "executed_area"}
    search = MaskSearch(dam, STEPS, sparsity=GOAL, first_sparsity=FIRST, **options)
    no_decay = [n for n, _ in model.named_parameters() if "bias" in n or "LayerNorm" in n]
    groups = search.parameter_groups(
        model, lr=LR, mask_lr=MASK_LR, weight_decay=0.1, no_decay=no_decay
    )
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / STEPS)
    rows = ragged(labels)
    losses, distances = [], []
    for step in range(STEPS):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        inputs = {k: torch.stack([row[k] for row in batch]) for k in batch[0]}
        search.begin_step(step)
        output = model.train()(**inputs, output_hidden_states=True)
        inputs.pop("labels", None)
        with torch.no_grad():
            wanted = teacher(**inputs, output_hidden_states=True).hidden_states[-1]
        far = distance(output.hidden_states[-1], wanted, inputs["attention_mask"])
        task = output.loss if labels else torch.zeros(())
        optimizer.zero_grad()
        (task + WEIGHT * far + search.penalty()).backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p is not dam.alpha], 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(task.detach()))
        distances.append(float(far.detach()))
    return losses, distances


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("weight", [None, 2.0])
def test_equals_a_hand_written_loop(
    tmp_path: Path, weight: float | None, accumulation: int
) -> None:
    """The task's loss, the weighted distance and the penalty; a mean over accumulated batches."""
    model = build()
    losses, distances = hand_written(model, True, weight)
    trainer = distilled(
        tmp_path,
        per_device_train_batch_size=BATCH // accumulation,
        gradient_accumulation_steps=accumulation,
        **({} if weight is None else {"penalty_weight": weight, "penalty": "executed_area"}),
    )
    trainer.train()
    assert_close(state_of(trainer.model), state_of(model))
    rows = trainer.history
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-6)
    if accumulation == 1:
        assert [row["distance"] for row in rows] == pytest.approx(distances, rel=1e-6)
    assert min(distances) > 1e-3  # there was something to learn
    if weight is not None:
        assert rows[0]["mask_penalty"] == 0.0 < rows[-1]["mask_penalty"]
    else:
        assert {row["mask_penalty"] for row in rows} == {0.0}


def test_masks_grow_sparse_on_the_way(tmp_path: Path) -> None:
    trainer = distilled(tmp_path, dam=build_dam(sampling="top", symmetric=False), warmup=0.2)
    trainer.train()
    for step, row in enumerate(trainer.history):
        wanted = ramp(GOAL, (step / STEPS - 0.2) / 0.5, FIRST)
        kept = H * math.floor((1.0 - wanted) * N * N + 1e-6)
        assert row["mask_sparsity"] == pytest.approx(1.0 - kept / (H * N * N), abs=1e-12)
        assert row["mask_hard_sparsity"] == row["mask_sparsity"]
    assert trainer.history[0]["mask_sparsity"] == pytest.approx(FIRST)
    assert trainer.history[-1]["mask_sparsity"] == pytest.approx(GOAL)
    mask = trainer.dam.binarize(sparsity=GOAL, allow_empty_rows=True).dense()
    assert torch.equal(mask, trainer.dam().detach().bool())


# ------------------------------------------------------------------------- without a task's loss


def test_data_without_labels(tmp_path: Path) -> None:
    model = build()
    _, distances = hand_written(model, False, None)
    trainer = distilled(tmp_path, train_dataset=ragged(labels=False))
    trainer.train()
    assert_close(state_of(trainer.model), state_of(model))
    assert {row["loss"] for row in trainer.history} == {0.0}
    assert [row["distance"] for row in trainer.history] == pytest.approx(distances, rel=1e-6)


def test_a_model_without_a_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bare = BertModel(build().config).double()
    expected = copy.deepcopy(bare)
    hand_written(expected, False, None)
    trainer = distilled(tmp_path, model=bare, train_dataset=ragged(labels=False))
    trainer.train()
    assert_close(state_of(bare), state_of(expected))
    assert trainer.finish().sparsity >= GOAL


class OwnLoss(BertForSequenceClassification):
    """A loss that is called for by other means than "labels"."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        wanted: Any = None,
        **kwargs: Any,
    ) -> Any:
        out = super().forward(input_ids, attention_mask, **kwargs)
        out.loss = (out.logits - (0.0 if wanted is None else wanted[:, None])).square().mean()
        return out


def own_loss() -> OwnLoss:
    model = OwnLoss(build().config).double()
    model.load_state_dict(build().state_dict())
    return model


def test_a_loss_that_needs_no_labels_counts(tmp_path: Path) -> None:
    rows = ragged(labels=False)
    trainer = distilled(tmp_path, model=own_loss(), train_dataset=rows)
    trainer.train()
    with torch.no_grad():
        dam = top_dam()
        dam.set_density(1.0 - FIRST)
        model = sb.attach_dam(own_loss(), dam)
        first = {k: torch.stack([row[k] for row in rows[:BATCH]]) for k in rows[0]}
        expected = float(model(**first).loss)
    assert trainer.history[0]["loss"] == pytest.approx(expected, rel=1e-6)
    assert expected > 0


def test_labels_of_another_name_stay_with_the_model(tmp_path: Path) -> None:
    rows = [{**row, "wanted": row.pop("labels")} for row in ragged()]
    trainer = distilled(tmp_path, model=own_loss(), train_dataset=rows, label_names=["wanted"])
    seen: list[set[str]] = []
    trainer._teacher.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True
    )
    trainer.train()
    assert seen == [{"input_ids", "attention_mask", "output_hidden_states"}] * STEPS
    assert trainer.history[0]["loss"] > 0


@pytest.mark.parametrize("labels", [True, False])
def test_a_loss_function_of_ones_own(tmp_path: Path, labels: bool) -> None:
    """transformers takes it for one that is divided by the accumulation already."""

    def loss_function(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        wanted = 0.0 if labels is None else labels[:, None]
        return (outputs.logits - wanted).square().sum() / BATCH

    def run(accumulation: int) -> sb.DAMTrainer:
        trainer = distilled(
            tmp_path,
            train_dataset=ragged(labels),
            compute_loss_func=loss_function,
            per_device_train_batch_size=BATCH // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        return trainer

    once, four = run(1), run(4)
    assert_close(state_of(once.model), state_of(four.model))
    losses = [[row["loss"] for row in each.history] for each in (once, four)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and min(losses[0]) > 0


def test_evaluation_knows_nothing_of_it(tmp_path: Path) -> None:
    trainer = distilled(tmp_path, eval_dataset=ragged())
    trainer.train()
    calls: list[int] = []
    trainer._teacher.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda *args: calls.append(1)
    )
    batch = {k: torch.stack([row[k] for row in ragged()]) for k in ragged()[0]}
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).loss.item()
    logs = trainer.evaluate()
    assert logs["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert calls == [] and "distance" not in logs


# ---------------------------------------------------------------------------------- the teacher


def test_the_teacher_is_dense_and_frozen_and_nobody_elses(tmp_path: Path) -> None:
    original = build(dropout=0.3)
    model = copy.deepcopy(original)
    sb.attach_dam(model, top_dam())  # before the trainer is built
    trainer = distilled(tmp_path, model=model.train(), dam=None)
    teacher = trainer._teacher
    assert teacher is not None
    trainer.train()
    trainer.save_model()
    assert_equal(state_of(teacher), state_of(original))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    ids = torch.stack([row["input_ids"] for row in data()])
    assert torch.equal(teacher(ids).logits, original.eval()(ids).logits)
    plain = distilled(tmp_path / "plain", distillation=0.0)
    assert trainer.model.state_dict().keys() == plain.model.state_dict().keys()
    again = BertForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert_equal(state_of(load_dam(again, tmp_path)), state_of(trainer.model))
    assert attached(again).dam.settings() == trainer.dam.settings()
    assert attached(again).dam.density == pytest.approx(1.0 - GOAL)
    assert torch.equal(again.eval()(ids).logits, trainer.model.eval()(ids).logits)


def test_mixed_precision(tmp_path: Path) -> None:
    """Teacher and model run in the same; a trained model's wrapped forward is not copied."""
    model = build(dtype=torch.float32)
    settings: dict[str, Any] = {"bf16": True, "first_sparsity": 0.0, "max_steps": 2}
    trainer = distilled(tmp_path, model=model, dam=top_dam(torch.float32), **settings)
    dtypes = set()
    for one in (trainer._teacher, model):
        one.bert.encoder.layer[1].output.dense.register_forward_hook(  # type: ignore[union-attr]
            lambda module, args, out: dtypes.add(out.dtype)
        )
    trainer.train()
    assert dtypes == {torch.bfloat16}
    # All positions are kept in the first step: what is left is rounding.
    assert 0.0 <= trainer.history[0]["distance"] < (16 * torch.finfo(torch.bfloat16).eps) ** 2

    second = distilled(tmp_path, model=model, dam=None, **settings)
    teacher, ids = second._teacher, data()[0]["input_ids"][None]
    assert teacher is not None
    with torch.no_grad():
        before = teacher(ids).logits
        model.classifier.bias.add_(1.0)
        assert torch.equal(teacher(ids).logits, before)


class Silent(BertForSequenceClassification):
    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        return BaseModelOutput(last_hidden_state=self.bert(input_ids).last_hidden_state)


def test_a_model_that_shows_no_hidden_states(tmp_path: Path) -> None:
    trainer = distilled(tmp_path, model=Silent(build().config).double())
    with pytest.raises(ValueError, match=r"Silent returns no hidden_states.*leave distillation"):
        trainer.train()


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_bad_weights(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="distillation must be finite and not negative"):
        distilled(tmp_path, distillation=value)


# --------------------------------------------------------------------------------- interruptions


def resumable(folder: Path, model: Any = None, **changes: Any) -> sb.DAMTrainer:
    model = build(dropout=0.3, dtype=torch.float32) if model is None else model
    settings = {"save_strategy": "steps", "save_steps": 3, "train_sampling_strategy": "random"}
    return distilled(folder, model=model, **{"dam": top_dam(torch.float32), **settings, **changes})


def test_resumes_exactly(tmp_path: Path) -> None:
    """Towards the same dense model, with the same masks; also from the last checkpoint of all."""
    whole = resumable(tmp_path)
    whole.train()
    again = resumable(tmp_path)
    with torch.no_grad():
        again.dam.alpha.add_(torch.randn_like(again.dam.alpha))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_equal(state_of(whole.model), state_of(again.model))
    assert whole.history == again.history and len(whole.history) == STEPS
    assert whole.search.state_dict() == again.search.state_dict()
    over = resumable(tmp_path, eval_dataset=ragged())
    assert over.dam.density == 1.0
    over.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS}"))
    assert over.dam.density == whole.dam.density
    assert_equal(state_of(whole.model), state_of(over.model))


def test_another_teacher_is_refused(tmp_path: Path) -> None:
    """The checkpoint's own model is half trained; a new head is of no account."""
    resumable(tmp_path).train()
    folder = tmp_path / "checkpoint-3"

    def half() -> Any:
        return BertForSequenceClassification.from_pretrained(folder)

    with pytest.raises(ValueError, match=r"distils another dense model.*that the search began"):
        resumable(tmp_path, model=half()).train(resume_from_checkpoint=str(folder))
    with pytest.raises(ValueError, match="distils another dense model"):
        trainer = resumable(tmp_path, model=load_dam(half(), folder), dam=None)
        trainer.train(resume_from_checkpoint=str(folder))
    headless = build(dropout=0.3, dtype=torch.float32)
    with torch.no_grad():
        headless.classifier.weight.add_(1.0)
    resumable(tmp_path, model=headless).train(resume_from_checkpoint=str(folder))


def test_a_checkpoint_from_before_there_were_teachers(tmp_path: Path) -> None:
    resumable(tmp_path, distillation=0.0).train()
    folder = tmp_path / "checkpoint-3"
    state = json.loads((folder / "trainer_state.json").read_text())
    assert "sparsebert_teacher" not in state["stateful_callbacks"]
    resumable(tmp_path).train(resume_from_checkpoint=str(folder))


def test_fingerprints() -> None:
    model = build()
    first = fingerprint(model)
    assert first == fingerprint(copy.deepcopy(model).train())
    assert first != fingerprint(copy.deepcopy(model).float())
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.self.key.bias[3] += 1e-12
    assert first != fingerprint(model)
