"""DAMTrainer and DAMCallback: a hand-written loop, schedules, a Trainer of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    Trainer,
)

import sparsebert as sb
from sparsebert.dam.search import MaskSearch
from sparsebert.integrations.huggingface.dam_callback import DAMCallback, predicted_speedup
from tests import ROOT
from tests.huggingface.trainings import (
    BATCH,
    LR,
    MASK_LR,
    STEPS,
    H,
    N,
    arguments,
    assert_close,
    assert_equal,
    build,
    build_dam,
    data,
    state_of,
    trainer_of,
)

# ------------------------------------------------------------------------------- the training


def test_import_needs_accelerate_and_says_so() -> None:
    code = (
        "import sys; sys.modules['accelerate'] = None\nimport sparsebert as sb\n"
        "try: sb.DAMTrainer()\nexcept ImportError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pip install 'sparsebert[train]'" in run.stdout


def hand_written(dam: Any, model: Any, penalty: str, max_grad_norm: float) -> list[float]:
    """What DAMTrainer should do, with AdamW and a linear decay; the task's losses."""
    sb.attach_dam(model, dam)
    search = MaskSearch(dam, STEPS, sparsity=0.8, penalty=penalty)
    no_decay = [n for n, _ in model.named_parameters() if "bias" in n or "LayerNorm" in n]
    groups = search.parameter_groups(
        model, lr=LR, mask_lr=MASK_LR, weight_decay=0.1, no_decay=no_decay
    )
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / STEPS)
    rows, losses = data(), []
    for step in range(STEPS):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        search.begin_step(step)
        model.train()
        task = model(**{k: torch.stack([row[k] for row in batch]) for k in batch[0]}).loss
        optimizer.zero_grad()
        (task + search.penalty()).backward()
        own = [p for p in model.parameters() if p is not dam.alpha]
        nn.utils.clip_grad_norm_(own, max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(task.item())
    return losses


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("penalty", ["expected_l1", "executed_area", "plan"])
def test_equals_a_hand_written_loop(tmp_path: Path, penalty: str, accumulation: int) -> None:
    """Also with accumulated batches: neither loss nor penalty is added up instead of averaged.

    The noise is off: accumulated batches are forward passes with a draw each.
    """
    max_grad_norm = 0.05  # below what occurs, so that clipping matters
    dam, model = build_dam(noise=False), build()
    losses = hand_written(dam, model, penalty, max_grad_norm)
    trainer = trainer_of(
        tmp_path,
        dam=build_dam(noise=False),
        sparsity=0.8,
        penalty=penalty,
        per_device_train_batch_size=BATCH // accumulation,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        max_grad_norm=max_grad_norm,
    )
    trainer.train()
    assert min(row["grad_norm"] for row in trainer.history) > max_grad_norm
    assert_close(state_of(trainer.model), state_of(model))
    assert [row["loss"] for row in trainer.history] == pytest.approx(losses, rel=1e-6)  # rounded
    weights = [row["mask_penalty_weight"] for row in trainer.history]
    assert weights[0] == 0.0 < weights[1]
    assert all(row["mask_penalty"] > 0 for row in trainer.history[1:])


def test_penalty_with_a_loss_function_of_ones_own(tmp_path: Path) -> None:
    """transformers takes such a loss for one that is divided by the accumulation already."""

    def loss_function(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / BATCH

    def run(accumulation: int) -> sb.DAMTrainer:
        trainer = trainer_of(
            tmp_path,
            dam=build_dam(noise=False),
            compute_loss_func=loss_function,
            per_device_train_batch_size=BATCH // accumulation,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
        )
        trainer.train()
        return trainer

    once, four = run(1), run(4)
    assert_close(state_of(once.model), state_of(four.model))
    assert once.history[-1]["loss"] == pytest.approx(four.history[-1]["loss"], rel=1e-6)


def test_evaluation_has_no_penalty_and_no_noise(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, eval_dataset=data(), sparsity=None, penalty_weight=5.0, warmup=0.0
    )
    trainer.train()
    assert trainer.search.weight == 5.0
    model = trainer.model.eval()
    batch = {k: torch.stack([row[k] for row in data()]) for k in data()[0]}
    with torch.no_grad():
        expected = model(**batch).loss.item()
    draws = trainer.dam.draws.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert trainer.dam.draws == draws


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor", "adagrad"])
def test_mask_has_its_own_group_in_any_optimizer(tmp_path: Path, optim: str) -> None:
    trainer = trainer_of(tmp_path, optim=optim, max_steps=2)
    before = trainer.dam.alpha.detach().clone()
    trainer.train()
    groups = trainer.optimizer.param_groups
    alpha = trainer.dam.alpha
    (own,) = (g for g in groups if any(p is alpha for p in g["params"]))
    assert len(own["params"]) == 1
    assert own["initial_lr"] == MASK_LR and own["weight_decay"] == 0.0
    assert own["lr"] == 0.0  # the linear decay has ended
    assert {g["initial_lr"] for g in groups if g is not own} == {LR}
    everything = [id(p) for g in groups for p in g["params"]]
    assert len(everything) == len(set(everything)) == len(list(trainer.model.parameters()))
    assert not torch.equal(before, alpha)
    trainer.create_optimizer()  # as a second train() does
    assert len(trainer.optimizer.param_groups) == len(groups)


def test_an_optimizer_of_ones_own_gets_the_mask(tmp_path: Path) -> None:
    model, dam = build(), build_dam()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = trainer_of(tmp_path, model=model, dam=dam, optimizers=(optimizer, None))
    trainer.train()
    assert optimizer.param_groups[-1]["params"] == [dam.alpha]
    assert optimizer.param_groups[-1]["initial_lr"] == MASK_LR


def test_a_scheduler_that_does_not_know_the_mask(tmp_path: Path) -> None:
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    trainer = trainer_of(tmp_path, model=model, optimizers=(optimizer, schedule))
    with pytest.raises(ValueError, match=r"search\.parameter_groups"):
        trainer.train()


def test_schedules_follow_the_steps_of_the_training(tmp_path: Path) -> None:
    """By epochs here: 3 of 2 steps; the temperature is set at the beginning of each step."""
    trainer = trainer_of(
        tmp_path,
        max_steps=-1,
        num_train_epochs=3,
        train_dataset=data(2 * BATCH),
        temperature=(4.0, 1.0),
        warmup=0.34,
    )
    trainer.train()
    assert trainer.search.total_steps == 6
    assert [row["step"] for row in trainer.history] == [1, 2, 3, 4, 5, 6]
    assert [row["mask_temperature"] for row in trainer.history] == pytest.approx(
        [4.0 * 4.0 ** (-step / 6) for step in range(6)]
    )
    assert [row["mask_penalty_weight"] > 0 for row in trainer.history] == [False] * 3 + [True] * 3


def test_reaches_the_goal_and_finishes_sparse(tmp_path: Path) -> None:
    """After finish() the model is dense attention under the hard mask, and trains on."""
    trainer = trainer_of(
        tmp_path,
        max_steps=60,
        logging_steps=20,
        sparsity=0.7,
        mask_learning_rate=0.2,  # so short a training must make large steps
        predictions=2,
    )
    trainer.train()
    rows = trainer.history
    assert rows[-1]["mask_sparsity"] == pytest.approx(0.7, abs=0.05)
    groups = {"diagonal", "neighbourhood", "special", "others"}
    assert all({f"importance_{g}" for g in groups} <= row.keys() for row in rows)
    assert ["predicted_speedup" in row for row in rows] == [False, True, True]
    mask = trainer.dam.binarize(sparsity=0.7)
    assert rows[-1]["predicted_speedup"] == predicted_speedup(mask) > 0
    assert trainer.finish() == mask

    ids = torch.stack([row["input_ids"] for row in data()])
    model = trainer.model.eval()
    sparse = model(ids).logits
    judge = sb.densify(model)
    hard = mask.dense()[:, :, :N, :N].expand(2, H, N, N)
    for index, layer in enumerate(judge.bert.encoder.layer):
        layer.attention.self.register_forward_pre_hook(
            lambda module, args, kwargs, i=index: (args, {**kwargs, "attention_mask": hard[i]}),
            with_kwargs=True,
        )
    judge.set_attn_implementation("sdpa")
    torch.testing.assert_close(sparse, judge(ids).logits, rtol=1e-10, atol=1e-10)

    with pytest.raises(ValueError, match=r"search is finished.*transformers\.Trainer"):
        trainer.train()
    with pytest.raises(ValueError, match="has no DAM"):
        trainer.finish()


def test_phase_two_is_an_ordinary_trainer(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=2)
    trainer.train()
    trainer.finish(sparsity=0.5, without_diagonal=True)
    Trainer(model=trainer.model, args=arguments(tmp_path), train_dataset=data()).train()
    assert not any("dam" in name for name, _ in trainer.model.named_modules())


@pytest.mark.parametrize("penalty", ["expected_l1", "plan"])
def test_finishes_within_a_cost(tmp_path: Path, penalty: str) -> None:
    trainer = trainer_of(tmp_path, max_steps=2, warmup=0.0, penalty=penalty, target="cpu")
    trainer.train()
    tiles = trainer.search.tiles
    wanted = trainer.dam.binarize(executed=0.4, tiles=tiles)
    assert trainer.finish(executed=0.4) == wanted


# ------------------------------------------------------------------------- a Trainer of one's own


class OwnTrainer(Trainer):
    """The three things that DAMCallback asks for."""

    def __init__(self, *args: Any, search: MaskSearch, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.search = search
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        assert not return_outputs
        return super().compute_loss(model, inputs, **kwargs) + self.search.penalty()


def test_callback_in_a_trainer_of_ones_own(tmp_path: Path) -> None:
    """It learns what DAMTrainer learns, and resumes."""
    theirs = trainer_of(tmp_path / "dam", optim="sgd", weight_decay=0.0, max_grad_norm=0.0)
    theirs.train()

    def own() -> OwnTrainer:
        model, dam = build(), build_dam()
        sb.attach_dam(model, dam)
        search = MaskSearch(dam, STEPS, sparsity=0.9)
        optimizer = torch.optim.SGD(search.parameter_groups(model, lr=LR, mask_lr=MASK_LR))
        return OwnTrainer(
            model=model,
            args=arguments(tmp_path, max_grad_norm=0.0, save_strategy="steps", save_steps=4),
            train_dataset=data(),
            search=search,
            optimizers=(optimizer, None),
            callbacks=[DAMCallback(search)],
        )

    whole = own()
    whole.train()
    assert_close(state_of(whole.model), state_of(theirs.model))
    rows = [row for row in whole.state.log_history if "mask_sparsity" in row]
    assert [row["mask_sparsity"] for row in rows] == pytest.approx(
        [row["mask_sparsity"] for row in theirs.history]
    )
    again = own()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_equal(state_of(whole.model), state_of(again.model))


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \(0, 1\), got 1.0"),
        ({"sparsity": -0.1}, "sparsity must be in"),
        ({"sparsity": None}, "give sparsity .* or weight"),
        ({"mask_learning_rate": 0.0}, "mask_learning_rate must be above 0"),
        ({"penalty": "l2"}, "penalty must be one of"),
        ({"penalty": "plan", "target": "gpu"}, "target must be 'cpu'"),
        ({"penalty": "plan", "refresh": 0}, "refresh=0"),
        ({"gate": "hard"}, "gate must be one of"),
        ({"special_tokens": (N,)}, "special_tokens"),
        ({"predictions": -1}, "predictions=-1"),
        ({"warmup": 0.8}, "leave some between"),
        ({"temperature": (1.0, 0.0)}, "temperature must be above 0"),
        ({"dam": None}, "has no DAM"),
    ],
)
def test_bad_arguments(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    model = build()
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, model=model, **changes)
    assert not any("dam" in name for name, _ in model.named_modules())  # left as it was


def test_unfit_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sparse already"):
        trainer_of(tmp_path, model=sb.sparsify(build(), sb.patterns.star(N)))
    model, dam = build(), build_dam()
    sb.attach_dam(model, dam, gate="post")
    with pytest.raises(ValueError, match="has a DAM already"):
        trainer_of(tmp_path, model=model, dam=build_dam())
    with pytest.raises(ValueError, match=r"gate='additive', but .* attached with 'post'"):
        trainer_of(tmp_path, model=model, dam=None, gate="additive")
    assert trainer_of(tmp_path, model=model, dam=None).dam is dam
    with pytest.raises(TypeError, match="search must be a MaskSearch"):
        DAMCallback(dam)


def test_a_sequence_longer_than_the_mask(tmp_path: Path) -> None:
    torch.manual_seed(1)
    short = sb.DifferentiableAttentionMask(1, H, N - 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"a sequence of {N} tokens, but the mask covers"):
        trainer_of(tmp_path, dam=short, sparsity=0.5).train()
