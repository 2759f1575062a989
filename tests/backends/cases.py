"""Plans whose heads run in tiles, dense, or some so and some so; the options of calls."""

import dataclasses

import numpy as np
import torch

import sparsebert as sb
from sparsebert.backends import dense, registry, routing
from sparsebert.backends.dense import DenseProgram
from sparsebert.backends.routing import Routes
from sparsebert.compiler.schedule import Schedule
from sparsebert.plan import AttentionPlan, compile_for_backend
from sparsebert.tiles.assemble import without_heads
from tests.attention.cases import half_dense_mask, random_mask

AUTO = Routes(*routing.choose(registry.AUTO, "cpu", torch.float32, 16, False))
"""What runs on the CPU at hand: the native kernels, or torch where they cannot be used."""
ROUTES = {
    "auto": AUTO,
    "auto, fp64": Routes("torch", "dense"),  # on any CPU
    "mixed": Routes("triton", "dense"),  # "auto" on a GPU
    "triton": Routes("triton", "triton"),
    "native": Routes("native", "native"),
    "torch": Routes("torch", "torch"),
    "dense": Routes("dense", "dense"),
}
OPTIONS = {
    "none": {},
    "padding": {"key_mask": True},
    "dropout": {"dropout_p": 0.3},
    "lse": {"return_lse": True},
    "all": {"key_mask": True, "dropout_p": 0.3, "return_lse": True},
}


def plan_with(
    mask: sb.AttentionMask, run_dense: list[bool], planned_for: str | None = None
) -> AttentionPlan:
    """The plan of a mask whose distinct heads run dense where `run_dense` says so.

    It is made for the backend `planned_for`; None means the one that "auto" prefers.
    """
    plan = compile_for_backend(mask, planned_for, target="cpu", objective="area")
    chosen = np.array(run_dense)
    heads = [
        dataclasses.replace(head, route="dense" if is_dense else "tiles")
        for head, is_dense in zip(plan.report.per_head, run_dense, strict=True)
    ]
    report = dataclasses.replace(plan.report, per_head=tuple(heads))
    tiles = without_heads(plan.tiles, chosen)
    return AttentionPlan(Schedule.create(mask, plan.head_map, chosen, tiles, report))


def runs_by_sdpa(plan: AttentionPlan) -> bool:
    """Whether all heads run dense, and every query attends to something: torch's SDPA will do."""
    part, *others = plan.program_for(*ROUTES["auto"]).parts
    return not others and isinstance(part.program, DenseProgram) and part.program.dead is None


def as_on_a_gpu(monkeypatch):
    """The kernels are preferred on the CPU, whose dense heads go to SDPA."""
    here = registry.entry("triton")._replace(devices=("cpu", "cuda"))
    monkeypatch.setitem(registry._entries, "triton", here)
    monkeypatch.setattr(registry, "auto_choices", {})
    monkeypatch.setattr(dense, "_op_has_flash", lambda q: False)


PLANS = {
    "tiles": lambda: plan_with(half_dense_mask(4, 33, 40), [False, False]),
    "mixed": lambda: plan_with(half_dense_mask(4, 33, 40), [True, False]),
    "mixed, for torch": lambda: plan_with(half_dense_mask(4, 33, 40), [True, False], "torch"),
    "dense": lambda: plan_with(half_dense_mask(4, 33, 40), [True, True]),
    "mixed, dead rows": lambda: plan_with(random_mask(4, 33, 40), [False, True, False, True]),
}
