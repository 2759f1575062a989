"""Programs of the torch and dense backends: what their tensors say is the mask, and all of it.

A program is read here as its docstrings say, position by position, without running it.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import torch

from sparsebert import patterns
from sparsebert.backends import registry, routing
from sparsebert.backends.base import Call
from sparsebert.backends.dense import DenseProgram
from sparsebert.backends.program import Program, flatten, unflatten, unflatten_parts
from sparsebert.backends.routing import Routes
from sparsebert.backends.torch_program import TilesProgram
from sparsebert.compiler.schedule import Schedule
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from tests.compiler.plans import tiles_plan


def scattered(heads: int, rows: int, columns: int) -> AttentionMask:
    """Tiles of many widths, rows in several tiles, an empty row and an unused column."""
    rng = np.random.default_rng(heads)
    mask = rng.random((heads, rows, columns)) < 0.05
    mask[:, ::9] |= rng.random(columns) < 0.6
    mask[:, :, :3] = True
    mask[:, 7] = mask[:, :, 11] = False
    return AttentionMask.from_dense(mask)


MASKS = {
    "one head": scattered(1, 90, 70),
    "three heads": scattered(3, 70, 90),
    "equal heads": AttentionMask.stack_heads([scattered(1, 64, 64)] * 3),
    "two kinds": AttentionMask.stack_heads([patterns.star(80), patterns.causal(80)] * 2),
    "strided": patterns.strided(200, 14),
    "full": patterns.dense(48),
    "empty": AttentionMask.from_dense(np.zeros((2, 20, 20), dtype=bool)),
}


def plan_of(name: str) -> AttentionPlan:
    return tiles_plan(MASKS[name], objective="area")


def with_dense(plan: AttentionPlan, dense_heads: np.ndarray) -> Schedule:
    """The plan's schedule with other heads that run dense."""
    return dataclasses.replace(plan.schedule, dense_heads=dense_heads)


def whole_of(plan: AttentionPlan, dense_heads: np.ndarray) -> Program:
    """What runs with "auto" on a CPU, if these distinct heads run dense."""
    schedule = with_dense(plan, dense_heads)
    return routing.lower(schedule, routing.canonical(schedule, Routes("torch", "dense")))


def program_of(plan: AttentionPlan) -> TilesProgram:
    """All heads in tiles."""
    every = np.ones_like(plan.dense_heads)
    program: TilesProgram = registry.get("torch").lower(plan.schedule, every)
    return program


def heads_of(plan: AttentionPlan, program: TilesProgram) -> range:
    """The heads whose tiles the program tells apart."""
    return range(1 if program.shared else plan.num_heads)


def row_of_slot(program: TilesProgram) -> np.ndarray:
    """The row in S of each slot, -1 where it is empty; no slot is listed twice."""
    rows = np.full(program.num_slots + 1, -1)
    listed = [(np.arange(len(program.slot_of_row)), program.slot_of_row.numpy())]
    listed += [
        (rows_.numpy(), slots.numpy())
        for rows_, slots in zip(program.more_rows, program.more_slots, strict=True)
    ]
    for row, slot in listed:
        real = slot < program.num_slots
        assert (rows[slot[real]] == -1).all() and len(set(slot[real])) == real.sum()
        rows[slot[real]] = row[real]
    return rows[:-1]


@pytest.mark.parametrize("name", MASKS)
def test_buckets_cover_the_mask_exactly_once(name: str) -> None:
    plan = plan_of(name)
    program = program_of(plan)
    assert program.stride == len(heads_of(plan, program))
    counted = np.zeros((program.stride, plan.q_len, plan.kv_len), dtype=int)
    rows = row_of_slot(program)
    for bucket in program.buckets:
        tiles, slots = bucket.rows.shape
        columns = bucket.cols.shape[1]
        allowed = np.ones((tiles, slots, columns), dtype=bool)
        if bucket.bits is not None:
            allowed = np.unpackbits(bucket.bits.numpy(), axis=-1, bitorder="little").view(bool)
            assert not allowed.all()
        own = rows[bucket.first_slot : bucket.first_slot + tiles * slots].reshape(tiles, slots)
        for t in range(tiles):
            place = program.head_place(bucket.cols[t]) if not program.shared else np.zeros(1, int)
            (head,) = {int(p) for p in place}  # a tile is of one head
            key = program.position(bucket.cols[t]).numpy()
            for r in np.flatnonzero(own[t] >= 0):
                assert bucket.rows[t, r] == own[t, r]
                query = int(program.position(bucket.rows[t, r]))
                np.add.at(counted[head, query], key, allowed[t, r])
            for r in np.flatnonzero(own[t] < 0):
                # An empty slot repeats a row of its tile; a row with nothing here is empty too.
                assert bucket.rows[t, r] in bucket.rows[t, : max(1, r)]
                assert not allowed[t, r].any()
    dense = plan.mask.dense()[0].numpy()
    for head in heads_of(plan, program):
        assert (counted[head] == dense[head]).all()


@pytest.mark.parametrize("name", MASKS)
def test_buckets_are_of_one_shape_and_little_padding(name: str) -> None:
    plan = plan_of(name)
    program = program_of(plan)
    tiles = plan.tiles
    used = np.array([(tiles.row_slots(t) >= 0).sum() for t in range(tiles.num_tiles)])
    shapes = [(*bucket.rows.shape, bucket.cols.shape[1]) for bucket in program.buckets]
    assert [(rows, width) for _, rows, width in shapes] == sorted(
        ((rows, width) for _, rows, width in shapes), reverse=True
    )
    assert [b.first_slot for b in program.buckets] == [
        sum(count * rows for count, rows, _ in shapes[:i]) for i in range(len(shapes))
    ]
    assert program.num_slots == sum(count * rows for count, rows, _ in shapes)
    if program.shared:
        assert sum(count for count, _, _ in shapes) == tiles.num_tiles
        real = int((used * tiles.padded_width).sum())
        executed = sum(count * rows * width for count, rows, width in shapes)
        assert real <= executed <= real / 0.8


def test_heads_are_parted_by_route() -> None:
    """Heads in tiles, dense heads, and what the dense ones look like."""
    plan = plan_of("two kinds")
    distinct = plan.head_map
    dense_heads = np.zeros(distinct.max() + 1, dtype=bool)
    dense_heads[distinct[1]] = True  # the causal heads
    dense, tiled = whole_of(plan, dense_heads).parts
    assert (dense.backend.name, tiled.backend.name) == ("dense", "torch")
    program = tiled.program
    assert not program.shared
    assert tiled.heads is not None and tiled.heads.tolist() == [0, 2]
    assert dense.heads is not None and dense.heads.tolist() == [1, 3]
    assert program.slot_of_row.shape == (2 * 80,)
    index = torch.tensor([0, 1, 2, 157])
    assert program.position(index).tolist() == [0, 0, 1, 78]
    assert program.head_place(index).tolist() == [0, 1, 0, 1]
    assert dense.program.mask is not None
    assert torch.equal(dense.program.mask, plan.mask.dense()[0, [1, 3]])
    assert dense.program.unused is None and dense.program.dead is None


def test_what_dense_heads_leave_out() -> None:
    mask = torch.ones(2, 6, 8, dtype=torch.bool)
    mask[0, 2] = mask[1, :, 5] = False
    plan = tiles_plan(AttentionMask.from_dense(mask), objective="area")
    (part,) = whole_of(plan, np.ones(2, dtype=bool)).parts
    assert part.backend.name == "dense" and part.heads is None  # all of them
    program = part.program
    assert program.unused is not None and program.dead is not None
    assert program.unused.nonzero().tolist() == [[1, 5]]
    assert program.dead.nonzero().tolist() == [[0, 2]]
    full = tiles_plan(patterns.dense(16), objective="area")
    (part,) = whole_of(full, np.ones(1, dtype=bool)).parts
    assert full.schedule.is_shared and part.program.mask is None


def same(a: object, b: object) -> bool:
    """Whether two programs are equal, field by field."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


def fields(program: Program) -> tuple[tuple[object, object], ...]:
    """What the parts hold, without who runs them."""
    return tuple((part.heads, part.program) for part in program.parts)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_a_flat_program_is_the_program(name: str, dense: bool) -> None:
    plan = plan_of(name)
    heads = np.zeros(int(plan.head_map.max()) + 1, dtype=bool)
    heads[0] = dense
    whole = whole_of(plan, heads)
    for part in whole.parts:
        assert same(unflatten(type(part.program), *flatten(part.program)), part.program)
    again = unflatten_parts(*whole.flat)
    assert [part.backend for part in again] == [part.backend for part in whole.parts]
    assert same(tuple((part.heads, part.program) for part in again), fields(whole))
    assert same(fields(whole.to("cpu")), fields(whole))
    assert {x.device.type for x in whole.to("meta").tensors} <= {"meta"}
    assert whole.to("meta").numbers == whole.numbers
    if len(whole.parts) > 1:
        assert [single.parts for single in whole.singles] == [(part,) for part in whole.parts]


def test_programs_hold_what_graphs_can_carry() -> None:
    class Odd(NamedTuple):
        name: str

    with pytest.raises(TypeError, match="field of type <class 'str'>; use tensors"):
        flatten(Odd("x"))


def runs_directly(program: Program) -> bool:
    """Whether a call on the CPU without options goes to SDPA."""
    q, k = torch.empty(1, 3, 12, 8), torch.empty(1, 3, 20, 8)
    part, *others = program.parts
    call = Call(q, k, k, None, None, 1.0, 0.0)
    return part.backend.runs_directly(call, part.program, alone=not others)


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("unused", [False, True])
def test_plain_programs(unused: bool, dead: bool) -> None:
    """torch's SDPA will do where all heads run dense and every query attends to something."""
    mask = torch.rand(3, 12, 20) < 0.7
    mask[:, :, 0] = mask[:, 0] = True
    mask[1, :, 4] &= not unused
    mask[2, 5] &= not dead
    plan = tiles_plan(AttentionMask.from_dense(mask), objective="area")
    whole = whole_of(plan, np.ones(3, dtype=bool))
    program = whole.parts[0].program
    assert runs_directly(whole) == (not dead)
    assert program.mask is not None and torch.equal(program.mask, mask)
    if unused:
        assert program.unused is not None
        assert program.unused.nonzero().tolist() == [[1, 4]]
    else:
        assert program.unused is None
    assert not runs_directly(whole_of(plan, np.array([True, False, True])))
    assert not runs_directly(routing.lower(plan.schedule, Routes("triton", "triton")))


def test_plain_programs_of_full_masks() -> None:
    plan = tiles_plan(patterns.dense(16), objective="area")
    whole = whole_of(plan, np.ones(1, dtype=bool))
    assert whole.parts[0].program == DenseProgram(None, None, None)
    assert runs_directly(whole)
