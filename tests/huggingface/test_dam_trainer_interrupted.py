"""DAMTrainer: interruptions, bad losses, saved files, two processes."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
)

import sparsebert as sb
from sparsebert.integrations.huggingface.dam import attached
from sparsebert.integrations.huggingface.dam_files import DAM_FILE, load_dam, save_dam
from sparsebert.integrations.huggingface.lost_masks import MasksNotSavedWarning
from sparsebert.integrations.huggingface.trainer import LAST_FINITE
from sparsebert.masks import AttentionMask
from tests import ROOT
from tests.huggingface.trainings import (
    BATCH,
    MASK_LR,
    STEPS,
    arguments,
    assert_close,
    assert_equal,
    build,
    build_dam,
    data,
    distributed,
    spoilt,
    state_of,
    trainer_of,
)

# ------------------------------------------------------------------- interruptions, accidents


@pytest.mark.parametrize("penalty", ["expected_l1", "plan"])
def test_resumes_exactly(tmp_path: Path, penalty: str) -> None:
    """Parameters, optimizer, DAM, search and history, bit for bit, in fp32 with dropout."""

    def trainer() -> sb.DAMTrainer:
        return trainer_of(
            tmp_path,
            model=build(dropout=0.3, dtype=torch.float32),
            dam=build_dam(torch.float32),
            penalty=penalty,
            target="cpu",
            refresh=4,  # the plan that goes on is of a step before the checkpoint
            temperature=(2.0, 0.5),
            save_strategy="steps",
            save_steps=3,
            lr_scheduler_type="cosine",
        )

    whole = trainer()
    whole.train()
    again = trainer()
    with torch.no_grad():
        again.dam.alpha.add_(1.0)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_equal(state_of(whole.model), state_of(again.model))
    one, other = whole.optimizer.state_dict(), again.optimizer.state_dict()
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for key, values in one["state"].items():
        assert_equal(values, other["state"][key])
    assert whole.search.state_dict() == again.search.state_dict()
    assert whole.dam._stream == again.dam._stream == [3, STEPS]
    assert whole.history == again.history and len(whole.history) == STEPS


def test_refuses_a_checkpoint_without_a_search(tmp_path: Path) -> None:
    dam = build_dam()
    plain = Trainer(
        model=sb.attach_dam(build(), dam),
        args=arguments(tmp_path, save_strategy="steps", max_steps=2, save_only_model=True),
        train_dataset=data(),
    )
    plain.train()
    with pytest.raises(ValueError, match="step 2 holds no mask search"):
        trainer_of(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_stops_before_a_nan_spoils_the_model(tmp_path: Path, wrong: str) -> None:
    good = trainer_of(tmp_path / "good", train_sampling_strategy="sequential")
    states: list[dict[str, torch.Tensor]] = []

    class Keep(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            states.append(state_of(good.model))

    good.add_callback(Keep())
    good.train()

    bad = trainer_of(
        tmp_path,
        model=spoilt(wrong),
        train_sampling_strategy="sequential",
        save_strategy="epoch",
    )
    match = "the loss of step 2" if wrong == "loss" else "a gradient of step 2"
    with pytest.raises(FloatingPointError, match=match):
        bad.train()
    parameters = dict(bad.model.named_parameters())
    assert_equal(
        {name: p.detach() for name, p in parameters.items()},
        {name: x for name, x in states[1].items() if name in parameters},
    )
    assert all(p.grad is None for p in parameters.values())
    again = load_dam(build(), tmp_path / LAST_FINITE)
    assert torch.equal(attached(again).dam.alpha, bad.dam.alpha)


# ---------------------------------------------------------------------------------- the files


def test_saved_model_and_dam_load_again(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=2, gate="post", dam=build_dam(symmetric=False))
    trainer.train()
    trainer.save_model()
    model = BertForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    again = load_dam(model, tmp_path)
    assert attached(again).gate == "post"
    assert attached(again).dam.settings() == trainer.dam.settings()
    assert_equal(state_of(again), state_of(trainer.model))
    ids = torch.stack([row["input_ids"] for row in data()])
    for mode in (True, False):  # training too: the noise goes on where it was
        again.train(mode), trainer.model.train(mode)
        assert torch.equal(again(ids).logits, trainer.model(ids).logits)


def test_the_finished_model_is_saved_with_its_masks(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=1)
    trainer.train()
    mask = trainer.finish(sparsity=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MasksNotSavedWarning)
        trainer.save_model(str(tmp_path / "finished"))
    assert AttentionMask.load(tmp_path / "finished" / "sparsebert_masks.safetensors") == mask


def test_damaged_dam_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=DAM_FILE):
        load_dam(build(), tmp_path)
    save_dam(sb.attach_dam(build(), build_dam()), tmp_path)
    path = tmp_path / DAM_FILE
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(ValueError, match="truncated or altered"):
        load_dam(build(), tmp_path)
    path.write_bytes(content.replace(rb"\"version\": 1", rb"\"version\": 2"))
    with pytest.raises(ValueError, match="format version 2"):
        load_dam(build(), tmp_path)
    path.write_bytes(content.replace(b"sparsebert-dam", b"sparsebert-dim"))
    with pytest.raises(ValueError, match="not a file that save_dam wrote"):
        load_dam(build(), tmp_path)


# ------------------------------------------------------------------------------ two processes

TWO = f"""
import os
import sys
import warnings
sys.path.insert(0, {str(ROOT)!r})
import torch
from pathlib import Path
from tests.huggingface.trainings import BATCH, distributed, spoilt, state_of, trainer_of
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=2
)
trainer = distributed(folder, batch=BATCH // 2)
assert trainer.args.process_index == rank and trainer.args.world_size == 2
torch.save(state_of(trainer.model), folder / f"state-{{rank}}.pt")
try:
    trainer_of(folder, model=spoilt("loss" if rank == 1 else "nothing")).train()
except FloatingPointError as error:
    (folder / f"error-{{rank}}").write_text(str(error))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
# All is done and written. An orderly exit would now and then be aborted by a thread of gloo that
# the trainer's model still holds ("terminate called without an active exception").
sys.stdout.flush(), sys.stderr.flush()
os._exit(0)
"""


def _of_rank(rank: int) -> dict[str, str]:
    """The environment of one of two processes."""
    meant = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    # An address of nobody: the processes are connected when Trainer looks.
    nobody = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    return {**os.environ, **{name: str(value) for name, value in meant.items()}, **nobody}


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """With the same global batch, also when they start from other masks and random states."""
    script = tmp_path / "two.py"
    script.write_text(TWO, encoding="utf-8")
    # Started here, to meet in a file: torch.distributed.run, which does that by a server and its
    # thread, now and then aborts at its own end, when all is done.
    logs = [tmp_path / f"log-{rank}" for rank in (0, 1)]
    runs = []
    for rank, log in enumerate(logs):
        command = [sys.executable, str(script), str(tmp_path), str(rank)]
        with log.open("w") as output:
            runs.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=_of_rank(rank), stdout=output, stderr=output
                )
            )
    try:
        for run, log in zip(runs, logs, strict=True):
            assert run.wait(timeout=300) == 0, log.read_text()[-3000:]
    finally:
        for run in runs:
            run.kill()
    first, second = (
        torch.load(tmp_path / f"state-{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert_equal(first, second)
    for rank in (0, 1):  # the loss of one process stops both
        assert "the loss of step 2" in (tmp_path / f"error-{rank}").read_text(encoding="utf-8")
    alone = distributed(tmp_path / "alone", batch=BATCH)
    assert_close(first, state_of(alone.model))
    assert (first["bert.sparsebert_dam.alpha"] - build_dam().alpha).abs().max() > MASK_LR
