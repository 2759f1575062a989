"""DAMCallback by itself: what it logs and when, without a training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
from transformers import TrainerControl, TrainerState

import sparsebert as sb
from sparsebert.dam.importance import group_importance
from sparsebert.dam.search import MaskSearch
from sparsebert.integrations.huggingface import dam_callback
from sparsebert.integrations.huggingface.dam_callback import DAMCallback, predicted_speedup

ARGUMENTS: Any = None  # the callback does not look at them
CONTROL = TrainerControl()


def callback(sparsity: float | None = 0.75, **options: Any) -> DAMCallback:
    dam = sb.DifferentiableAttentionMask(2, 2, 8, symmetric=False, init_std=1.0)
    search = MaskSearch(dam, 100, sparsity=sparsity, weight=2.0, warmup=0.1)
    return DAMCallback(search, **options)


def state_at(step: int, max_steps: int = 100) -> TrainerState:
    state = TrainerState(global_step=step, max_steps=max_steps, stateful_callbacks=[])
    state.log_history.append({"step": step, "loss": 1.0})
    return state


def logged(run: DAMCallback, state: TrainerState) -> dict[str, Any]:
    logs = {"loss": 1.0}
    run.on_log(ARGUMENTS, state, CONTROL, logs)
    assert {**state.log_history[-1], **logs} == state.log_history[-1]  # in both places
    return logs


def test_what_is_logged() -> None:
    run = callback(predictions=0)
    run.search.begin_step(50)
    logs = logged(run, state_at(50))
    dam = run.search.dam
    mean = dam.probabilities().mean((0, 1))
    expected = {
        "loss": 1.0,
        **run.search.metrics(),
        "mask_penalty": run.search.penalty().item(),
        **{f"importance_{name}": x for name, x in group_importance(mean).items()},
    }
    assert logs == pytest.approx(expected)
    assert logs["mask_penalty"] > 0.0 and "predicted_speedup" not in logs


@pytest.mark.parametrize("logs", [None, {}, {"eval_loss": 1.0}, {"train_loss": 1.0}])
def test_only_training_losses_get_company(logs: dict[str, Any] | None) -> None:
    run, state = callback(), state_at(50)
    before = None if logs is None else dict(logs)
    run.on_log(ARGUMENTS, state, CONTROL, logs)
    assert logs == before and state.log_history == [{"step": 50, "loss": 1.0}]


@pytest.mark.parametrize(
    ("predictions", "due"), [(0, []), (1, [100]), (3, [40, 70, 100]), (10, [*range(10, 101, 10)])]
)
def test_predictions_are_spread_over_the_training(
    monkeypatch: pytest.MonkeyPatch, predictions: int, due: list[int]
) -> None:
    """Each completes a further part of the training; logs every 10 steps."""
    binarized = []
    monkeypatch.setattr(
        dam_callback, "predicted_speedup", lambda mask: binarized.append(mask) or 3
    )
    run, state = callback(predictions=predictions), state_at(0)
    seen = []
    for step in range(10, 101, 10):
        state.global_step = step
        state.log_history.append({"step": step, "loss": 1.0})
        if "predicted_speedup" in logged(run, state):
            seen.append(step)
    assert seen == due
    assert all(mask.sparsity == pytest.approx(0.75) for mask in binarized)  # as at the end
    state.is_world_process_zero = False
    state.log_history.append({"step": 100, "loss": 1.0})
    assert "predicted_speedup" not in logged(run, state)


def test_without_a_goal_what_is_likely_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    binarized = []
    monkeypatch.setattr(
        dam_callback, "predicted_speedup", lambda mask: binarized.append(mask) or 3
    )
    run = callback(sparsity=None, predictions=1)
    logged(run, state_at(100))
    assert binarized == [run.search.dam.binarize()]


def test_the_speedup_of_layers_is_that_of_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers 2 and 6 times as fast take 1/2 + 1/6 of what two dense ones take: 3 times as fast."""
    mask = sb.AttentionMask.from_dense(torch.rand(2, 1, 8, 8) < 0.5)
    speed = {mask.layer(0).fingerprint: 2.0, mask.layer(1).fingerprint: 6.0}

    def plan(layer: sb.AttentionMask) -> SimpleNamespace:
        report = SimpleNamespace(predicted_speedup=speed[layer.fingerprint])
        return SimpleNamespace(explain=lambda: report)

    monkeypatch.setattr(dam_callback, "compile_plan", plan)
    assert predicted_speedup(mask) == pytest.approx(3.0)


def test_steps_and_checkpoints() -> None:
    """Each step begins the search's, whose state is kept where checkpoints keep it."""
    run, state = callback(), state_at(0)
    state.stateful_callbacks = {}  # what TrainerState makes of its list when it is saved
    run.on_train_begin(ARGUMENTS, state, CONTROL)  # nothing to restore at step 0
    weights = []
    for step in range(30):
        state.global_step = step
        run.on_step_begin(ARGUMENTS, state, CONTROL)
        weights.append(run.search.weight)
        assert state.stateful_callbacks["sparsebert_search"] == run.search.state_dict()
    assert weights[9] == 0.0 < weights[10]  # the warm-up

    again = callback()
    again.search.dam.load_state_dict(run.search.dam.state_dict())
    again.on_train_begin(ARGUMENTS, state, CONTROL)
    assert again.search.state_dict() == run.search.state_dict()
    state.stateful_callbacks = {}
    with pytest.raises(ValueError, match="checkpoint of step 29 holds no mask search"):
        callback().on_train_begin(ARGUMENTS, state, CONTROL)


def test_the_noise_goes_on_from_the_buffers() -> None:
    """Which a distributed wrapper, or a checkpoint, may have changed behind the module's back."""
    run, state = callback(), state_at(0)
    dam = run.search.dam
    dam.noise_seed.fill_(5)
    dam.draws.fill_(7)
    run.on_train_begin(ARGUMENTS, state, CONTROL)
    twin = sb.DifferentiableAttentionMask(2, 2, 8, symmetric=False, seed=5)
    twin.load_state_dict(dam.state_dict())
    assert torch.equal(dam(), twin())


def test_arguments() -> None:
    with pytest.raises(TypeError, match="search must be a MaskSearch"):
        DAMCallback(sb.DifferentiableAttentionMask(1, 1, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="special_tokens"):
        callback(special_tokens=(8,))
    with pytest.raises(ValueError, match="predictions=-1"):
        callback(predictions=-1)
    assert callback().special_tokens == (0, -1) and callback().predictions == 10
