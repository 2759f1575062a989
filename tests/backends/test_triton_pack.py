"""Packing tiles for the kernels: every entry of the mask once, every row written once."""

import numpy as np
import pytest
import torch

from sparsebert.tiles.build import TileGroup, build_tile_set
from sparsebert.tiles.format import TileSet

pytest.importorskip("triton")
from sparsebert.backends import triton_pack as pack
from sparsebert.backends.program import flatten, unflatten
from sparsebert.backends.triton_pack import pack_program
from sparsebert.kernels import layout
from sparsebert.kernels.program import KernelProgram


def cover(mask, heights, parts, seed=0) -> TileSet:
    """Tiles of bool [U, rows, cols] in disjoint parts, each with its own order and height."""
    rng = np.random.default_rng(seed)
    groups = []
    for head, dense in enumerate(mask):
        owner = rng.integers(parts, size=dense.shape)
        for part in range(parts):
            height = heights[part % len(heights)]
            rows = np.pad(
                rng.permutation(len(dense)), (0, -len(dense) % height), constant_values=-1
            )
            bits = np.packbits(dense & (owner == part), axis=-1, bitorder="little")
            groups.append(TileGroup(head, bits, rows.reshape(-1, height)))
    return build_tile_set(groups, *mask.shape)


def unpack(packed, num_heads, num_rows, num_cols):
    """How often the work items cover each entry, and how often each row is written or merged."""
    covered = np.zeros((num_heads, num_rows, num_cols), dtype=int)
    written = np.zeros((num_heads, num_rows), dtype=int)
    slots_used = np.zeros(packed.num_slots, dtype=int)
    merges = {tuple(entry[:2]): entry[2:] for entry in packed.merges.tolist()}
    position = np.empty(layout.WORD_COLUMNS, dtype=int)  # of each column's bit in a word
    position[list(layout.WORD_ORDER)] = np.arange(layout.WORD_COLUMNS)
    heights = np.repeat(layout.PACKED_HEIGHTS, packed.counts)
    for item, height in zip(packed.items, heights, strict=True):
        row_start, col_start, word_start, word_col, full, width, head, slot_base = item.tolist()
        rows = packed.rows[row_start : row_start + height]
        slots = packed.slots[row_start : row_start + height]
        cols = packed.cols[
            col_start : col_start + -(-width // layout.COLUMN_PAD) * layout.COLUMN_PAD
        ]
        for column, col in enumerate(cols):
            allowed = rows >= 0
            if column >= word_col:
                first = word_start + (column - word_col) // 32 * height
                words = packed.words[first : first + height]
                bits = (words >> position[column % 32]) & 1 != 0
                if column < full:
                    assert np.array_equal(bits, allowed)
                allowed = allowed & bits
            np.add.at(covered[head], (rows[allowed], col), 1)
        for row, slot in zip(rows, slots, strict=True):
            if row >= 0 and slot < 0:
                written[head, row] += 1
            elif row >= 0:
                first, count = merges[head, row]
                assert first <= slot_base + slot < first + count
                slots_used[slot_base + slot] += 1
    for head, row in merges:
        written[head, row] += 1
    assert (slots_used == 1).all()
    return covered, written


@pytest.mark.parametrize("heights", [(16,), (64,), (128, 16), (32, 64, 16)])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.97])
def test_every_entry_is_covered_once_and_every_row_written_once(heights, parts, density):
    rng = np.random.default_rng(3)
    mask = rng.random((2, 70, 150)) < density
    mask[1, :, :140] |= density > 0.5
    head_map = np.array([1, 0, 1])
    packed = pack.pack_tiles(cover(mask, heights, parts), head_map)
    assert packed.per_head
    covered, written = unpack(packed, 3, 70, 150)
    assert np.array_equal(covered, mask[head_map])
    assert (written == 1).all()


def test_one_mask_for_all_heads_is_listed_once():
    mask = np.random.default_rng(0).random((1, 40, 40)) < 0.3
    tiles = cover(mask, (16,), 2)
    packed = pack.pack_tiles(tiles, np.zeros(12, dtype=np.int64))
    assert not packed.per_head and len(packed.items) == tiles.num_tiles


def test_rows_without_an_entry_in_a_tile_are_not_loaded():
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, 3, 5] = True
    packed = pack.pack_tiles(cover(mask, (16,), 1), np.zeros(1, dtype=np.int64))
    assert packed.rows[packed.rows >= 0].tolist() == [3]


def test_a_program_survives_the_trip_through_tensors():
    mask = np.random.default_rng(0).random((2, 40, 50)) < 0.3
    head_map = np.arange(2)
    queries = pack.pack_tiles(cover(mask, (16, 64), 2), head_map)
    keys = pack.pack_tiles(cover(mask.transpose(0, 2, 1), (32,), 1), head_map)
    program = pack_program(queries, keys)
    tensors, numbers = flatten(program)
    again = unflatten(KernelProgram, tensors, numbers)
    assert {x.device.type for x in tensors} == {"cpu"} and len(tensors) == 12
    for ours, theirs in zip(flatten(again)[0], tensors, strict=True):
        assert ours is theirs
    assert again.per_head is True
    assert again.queries.groups == program.queries.groups
    assert again.keys.num_slots == program.keys.num_slots == 0
    assert program.to("cpu").queries.items is program.queries.items


def test_arrays_are_of_the_types_that_the_kernels_read():
    mask = np.random.default_rng(0).random((2, 40, 50)) < 0.3
    packed = pack.pack_tiles(cover(mask, (16, 64), 3), np.arange(2))
    assert packed.items.dtype == np.int64 and packed.items.shape[1] == 8
    for name in ("rows", "slots", "cols", "words", "merges"):
        assert getattr(packed, name).dtype == np.int32, name
    assert all(type(count) is int for count in (*packed.counts, packed.num_slots))
    assert sum(packed.counts) == len(packed.items)
    program = pack_program(packed, packed)
    assert program.queries.items.dtype == torch.int64


def test_the_tallest_tiles_and_the_rows_with_most_parts_come_first():
    mask = np.random.default_rng(0).random((1, 70, 60)) < 0.3
    tiles = cover(mask, (128, 16), 4)
    packed = pack.pack_tiles(tiles, np.zeros(1, dtype=np.int64))
    assert layout.PACKED_HEIGHTS == (128, 64, 32, 16) and packed.counts == (2, 0, 0, 10)
    parts = packed.merges[:, 3].tolist()
    assert parts == sorted(parts, reverse=True) and parts[0] == 4
    program = pack_program(packed, packed)
    assert program.queries.groups == ((128, 0, 2), (16, 2, 10))


def test_heads_with_one_mask_have_partial_results_of_their_own():
    """Items of a head add where its partial results begin: the heads before it, all of them."""
    mask = np.random.default_rng(0).random((2, 30, 30)) < 0.4
    packed = pack.pack_tiles(cover(mask, (16,), 2), np.array([0, 1, 0]))
    base = {}
    for item in packed.items.tolist():
        if item[layout.SLOT_BASE] >= 0:
            base.setdefault(item[layout.HEAD], set()).add(item[layout.SLOT_BASE])
    of_head = np.bincount(packed.merges[:, 0], weights=packed.merges[:, 3], minlength=3)
    starts = (np.cumsum(of_head) - of_head).astype(int).tolist()
    assert base == {head: {start} for head, start in enumerate(starts)}
    assert packed.num_slots == of_head.sum()
