"""What a plan computes, counted entry by entry."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import sparsebert as sb
from benchmarks.attention.plan_work import ROWS, Work, work_of
from benchmarks.harness import named_masks
from sparsebert.backends import routing
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan, compile_for_backend

HEADS, LENGTH = 4, 96


def plan_of(mask: AttentionMask) -> AttentionPlan:
    return compile_for_backend(mask, "native", target="cpu", head_dim=16, copies=HEADS)


def counted(plan: AttentionPlan, key_mask: torch.Tensor) -> tuple[int, int]:
    """Scores in tiles and single entries, by loops over heads, samples, tiles and rows."""
    tiles, columns, entries = plan.tiles, 0, 0
    for visible in key_mask.numpy():
        for head in range(HEADS):
            u = int(plan.head_map[head if plan.num_heads > 1 else 0])
            for tile in range(tiles.num_tiles):
                if tiles.head[tile] == u:
                    columns += int(visible[tiles.columns(tile)[: tiles.width[tile]]].sum())
            for row in range(LENGTH):
                start, end = tiles.entry_start[u * LENGTH + row : u * LENGTH + row + 2]
                entries += int(visible[tiles.entry_cols[start:end]].sum())
    return ROWS * columns, entries


@pytest.fixture(autouse=True)
def native_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its library is there or not: plans are counted, nothing runs."""
    monkeypatch.setattr(routing, "choose", lambda *_: ("native", "dense"))


@pytest.mark.parametrize("name", ["longformer", "strided", "star", named_masks.LEARNED_LOOKING])
@pytest.mark.parametrize("padded", [False, True])
def test_the_work_is_that_of_the_tiles_and_entries(name: str, padded: bool) -> None:
    plan = plan_of(named_masks.build(name, LENGTH, HEADS))
    key_mask = torch.ones(2, LENGTH, dtype=torch.bool)
    if padded:
        key_mask[1, LENGTH // 3 :] = False
    work = work_of(plan, HEADS, 2, torch.float32, key_mask if padded else None)
    assert work is not None and work.routes == f"{HEADS} native" and work.dense_scores == 0
    assert (work.tile_scores, work.entry_scores) == counted(plan, key_mask)
    if not padded:  # all entries once, and columns that some of 16 rows do not attend to
        assert work.scores == round(2 * HEADS * LENGTH**2 * plan.explain().executed_fraction)
        assert work.scores >= 2 * plan.dense().sum() * (HEADS // plan.num_heads)


def test_dense_heads_compute_all_scores() -> None:
    star = sb.patterns.star(LENGTH)
    plan = plan_of(AttentionMask.stack_heads([sb.patterns.dense(LENGTH), star, star, star]))
    is_dense = plan.head_map[0] == np.arange(2)
    schedule = dataclasses.replace(plan.schedule, dense_heads=is_dense)
    work = work_of(AttentionPlan(schedule), HEADS, 1, torch.float32, None)
    sparse = work_of(plan_of(star), HEADS - 1, 1, torch.float32, None)
    assert work is not None and sparse is not None
    assert work.dense_scores == LENGTH**2
    assert work.scores == LENGTH**2 + sparse.scores
    assert work.routes == "3 native, 1 dense"


def test_others_than_the_native_kernels_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "choose", lambda *_: ("torch", "dense"))
    plan = plan_of(sb.patterns.star(LENGTH))
    assert work_of(plan, HEADS, 1, torch.float32, None) is None


def test_work_adds_up() -> None:
    assert Work(3, 4, 5, "").scores == 12
