"""The torch executor's programs: what their tensors say is the mask, and all of it.

A program is read here as its docstrings say, position by position, without running it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sparsebert import patterns
from sparsebert.backends.torch_program import (
    FlatProgram,
    TorchProgram,
    build_program,
    from_tensors,
)
from sparsebert.compiler.compile import compile_plan
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from sparsebert.tiles.batching import batch_tiles


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
    return compile_plan(MASKS[name], target="cpu", objective="area")


def program_of(plan: AttentionPlan, dense_heads: np.ndarray | None = None) -> TorchProgram:
    dense = plan.dense_heads if dense_heads is None else dense_heads
    return build_program(plan.mask, plan.head_map, dense, plan.tiles)


def row_of_slot(program: TorchProgram) -> np.ndarray:
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
    width = 1 if program.shared else len(program.tile_heads)
    counted = np.zeros((width, program.q_len, program.kv_len), dtype=int)
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
    for place, head in enumerate(program.tile_heads.tolist()):
        assert (counted[place] == dense[head]).all()


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


def test_widths_within_a_fifth_of_the_widest_share_a_bucket() -> None:
    used = np.array([16, 16, 32, 16, 16, 32])
    width = np.array([80, 100, 48, 79, 64, 48])
    groups = [group.tolist() for group in batch_tiles(used, width).members()]
    assert groups == [[2, 5], [1, 0], [3, 4]]  # 64 of 79 is above 0.8, 79 of 100 is not


def test_heads_are_parted_by_route() -> None:
    """Heads in tiles, dense heads, and what the dense ones look like."""
    plan = plan_of("two kinds")
    distinct = plan.head_map
    dense_heads = np.zeros(distinct.max() + 1, dtype=bool)
    dense_heads[distinct[1]] = True  # the causal heads
    program = program_of(plan, dense_heads)
    assert not program.shared
    assert program.tile_heads.tolist() == [0, 2] and program.dense_heads.tolist() == [1, 3]
    assert program.slot_of_row.shape == (2 * 80,)
    index = torch.tensor([0, 1, 2, 157])
    assert program.position(index).tolist() == [0, 0, 1, 78]
    assert program.head_place(index).tolist() == [0, 1, 0, 1]
    assert program.dense_mask is not None
    assert torch.equal(program.dense_mask, plan.mask.dense()[0, [1, 3]])
    assert program.dense_unused is None and program.dense_dead is None


def test_what_dense_heads_leave_out() -> None:
    mask = torch.ones(2, 6, 8, dtype=torch.bool)
    mask[0, 2] = mask[1, :, 5] = False
    plan = compile_plan(AttentionMask.from_dense(mask), target="cpu", objective="area")
    program = program_of(plan, np.ones(2, dtype=bool))
    assert len(program.tile_heads) == 0 and program.dense_heads.tolist() == [0, 1]
    assert program.dense_unused is not None and program.dense_dead is not None
    assert program.dense_unused.nonzero().tolist() == [[1, 5]]
    assert program.dense_dead.nonzero().tolist() == [[0, 2]]
    full = compile_plan(patterns.dense(16), target="cpu", objective="area")
    program = program_of(full, np.ones(1, dtype=bool))
    assert program.shared and program.dense_mask is None


def same(a: TorchProgram, b: TorchProgram) -> bool:
    """Whether two programs are equal, field by field."""

    def equal(x: object, y: object) -> bool:
        if isinstance(x, torch.Tensor):
            return isinstance(y, torch.Tensor) and x.dtype == y.dtype and torch.equal(x, y)
        if isinstance(x, tuple):
            return isinstance(y, tuple) and len(x) == len(y) and all(map(equal, x, y))
        if dataclasses.is_dataclass(x):
            names = [field.name for field in dataclasses.fields(x)]
            return all(equal(getattr(x, name), getattr(y, name)) for name in names)
        return bool(x == y)

    return equal(a, b)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_a_flat_program_is_the_program(name: str, dense: bool) -> None:
    plan = plan_of(name)
    heads = np.zeros(int(plan.head_map.max()) + 1, dtype=bool)
    heads[0] = dense
    program = program_of(plan, heads)
    flat = program.flatten()
    assert same(from_tensors(*flat), program)
    assert same(from_tensors(*flat.to("cpu")), program)
    assert {x.device.type for x in flat.to("meta").tensors} == {"meta"}
    assert flat.to("meta").sizes == flat.sizes


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("unused", [False, True])
def test_plain_programs(unused: bool, dead: bool) -> None:
    """torch's SDPA will do where all heads run dense and every query attends to something."""
    mask = torch.rand(3, 12, 20) < 0.7
    mask[:, :, 0] = mask[:, 0] = True
    mask[1, :, 4] &= not unused
    mask[2, 5] &= not dead
    plan = compile_plan(AttentionMask.from_dense(mask), target="cpu", objective="area")
    flat = program_of(plan, np.ones(3, dtype=bool)).flatten()
    assert flat.is_plain == (not dead)
    assert flat.dense_mask is not None and torch.equal(flat.dense_mask, mask)
    if unused:
        assert flat.dense_unused is not None
        assert flat.dense_unused.nonzero().tolist() == [[1, 4]]
    else:
        assert flat.dense_unused is None
    assert not program_of(plan, np.array([True, False, True])).flatten().is_plain
    assert not FlatProgram(flat.tensors, [1, *flat.sizes[1:]]).is_plain  # for the kernels


def test_plain_programs_of_full_masks() -> None:
    plan = compile_plan(patterns.dense(16), target="cpu", objective="area")
    flat = program_of(plan, np.ones(1, dtype=bool)).flatten()
    assert flat.is_plain and flat.dense_mask is None and flat.dense_unused is None
