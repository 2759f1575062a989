"""Packing tiles for the kernels: every entry of the mask once, every row written once."""

import numpy as np
import pytest
import torch

from sparsebert.tiles.build import TileGroup, build_tile_set
from sparsebert.tiles.format import TileSet
from tests.backends.records import records_of

pytest.importorskip("triton")
from sparsebert.backends import triton
from sparsebert.backends.program import Part, flatten, make_program, unflatten
from sparsebert.backends.triton_pack import pack_program, pack_tiles
from sparsebert.backends.triton_stages import choose_stages
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


def unpack(side, num_heads, num_rows, num_cols):
    """How often the work items cover each entry, and how often each row is final or merged."""
    covered = np.zeros((num_heads, num_rows, num_cols), dtype=int)
    written = np.zeros((num_heads, num_rows), dtype=int)
    launch = np.full((num_heads, num_rows), -1)  # in which a row was written
    slots_used = np.zeros(side.num_slots, dtype=int)
    merges = {tuple(entry[:2]): entry[2:] for entry in side.merges.tolist()}
    position = np.empty(layout.WORD_COLUMNS, dtype=int)  # of each column's bit in a word
    position[list(layout.WORD_ORDER)] = np.arange(layout.WORD_COLUMNS)
    for number, header, rows, slots in records_of(side):
        col_start, word_start, word_col, full, width, head, slot_base, continues = header.tolist()
        height = len(rows)
        col_start, word_start = col_start * layout.COL_UNIT, word_start * layout.WORD_UNIT
        cols = side.cols[
            col_start : col_start + -(-width // layout.COLUMN_PAD) * layout.COLUMN_PAD
        ].numpy()
        ahead = side.cols[col_start : col_start + len(cols) + layout.LOOK_AHEAD]
        assert len(ahead) == len(cols) + layout.LOOK_AHEAD
        assert ((ahead >= 0) & (ahead < num_cols)).all()
        units = (len(cols) - word_col) // layout.WORD_COLUMNS
        assert len(side.words) >= word_start + units * height + layout.WORDS_AHEAD
        for column, col in enumerate(cols):
            allowed = rows >= 0
            if column >= word_col:
                first = word_start + (column - word_col) // 32 * height
                words = side.words[first : first + height].numpy()
                bits = (words >> position[column % 32]) & 1 != 0
                if column < full:
                    assert np.array_equal(bits, allowed)
                allowed = allowed & bits
            np.add.at(covered[head], (rows[allowed], col), 1)
        assert continues == (slots == layout.CONTINUED).any()
        assert (slot_base >= 0) == (slots >= 0).any()
        for row, slot in zip(rows, slots, strict=True):
            if row < 0:
                assert slot == layout.FINAL
            elif slot == layout.FINAL:
                written[head, row] += 1
                launch[head, row] = number
            elif slot == layout.CONTINUED:
                assert 0 <= launch[head, row] < number  # in an earlier launch
                assert written[head, row] == 1
            else:
                first, count = merges[head, row]
                place = slot_base + slot // 2
                assert first <= place < first + count and slot % 2 == (place > first)
                slots_used[place] += 1
    for head, row in merges:
        written[head, row] += 1
    assert (slots_used == 1).all()
    return covered, written


@pytest.mark.parametrize("heights", [(16,), (64,), (128, 16), (32, 64, 16)])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.97])
def test_every_entry_is_covered_once_and_every_row_written_once(heights, parts, density):
    rng = np.random.default_rng(3)
    mask = rng.random((2, 70, 150)) < density
    mask[1, :, :140] |= density > 0.5
    head_map = np.array([1, 0, 1])
    side = pack_tiles(cover(mask, heights, parts), head_map)
    covered, written = unpack(side, 3, 70, 150)
    assert np.array_equal(covered, mask[head_map])
    assert (written == 1).all()
    assert side.chained == any(header[-1] for _, header, *_ in records_of(side))


def test_one_mask_for_all_heads_is_listed_once():
    mask = np.random.default_rng(0).random((1, 40, 40)) < 0.3
    tiles = cover(mask, (16,), 2)
    program = pack_program(tiles, tiles, np.zeros(12, dtype=np.int64))
    assert not program.per_head
    assert sum(group.items for group in program.queries.groups) == tiles.num_tiles


def test_rows_without_an_entry_in_a_tile_are_not_loaded():
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, 3, 5] = True
    ((_, _, rows, _),) = records_of(pack_tiles(cover(mask, (16,), 1), np.zeros(1, np.int64)))
    assert rows[rows >= 0].tolist() == [3]


def test_a_program_survives_the_trip_through_tensors():
    mask = np.random.default_rng(0).random((2, 40, 50)) < 0.3
    queries = cover(mask, (16, 64), 2)
    keys = cover(mask.transpose(0, 2, 1), (32,), 1)
    program = pack_program(queries, keys, np.arange(2))
    tensors, numbers = flatten(program)
    again = unflatten(KernelProgram, tensors, numbers)
    assert {x.device.type for x in tensors} == {"cpu"} and len(tensors) == 8
    for ours, theirs in zip(flatten(again)[0], tensors, strict=True):
        assert ours is theirs
    assert again.per_head is True and again.queries.chained is True
    assert again.queries.groups == program.queries.groups
    assert again.keys.num_slots == program.keys.num_slots == 0
    assert program.to("cpu").queries.records is program.queries.records


def test_arrays_are_of_the_types_that_the_kernels_read():
    mask = np.random.default_rng(0).random((2, 40, 50)) < 0.3
    side = pack_tiles(cover(mask, (16, 64), 3), np.arange(2))
    for name in ("records", "cols", "words", "merges"):
        assert getattr(side, name).dtype == torch.int32, name
    assert type(side.num_slots) is int and type(side.chained) is bool
    assert all(type(number) is int for group in side.groups for number in group)
    sizes = [group.items * layout.record_size(group.height) for group in side.groups]
    assert sum(sizes) == side.records.numel()
    assert all(layout.record_size(h) % layout.RECORD_UNIT == 0 for h in layout.PACKED_HEIGHTS)


def test_the_tallest_tiles_and_the_rows_with_most_parts_come_first():
    mask = np.random.default_rng(0).random((1, 70, 60)) < 0.3
    side = pack_tiles(cover(mask, (128, 16), 4), np.zeros(1, dtype=np.int64))
    assert layout.PACKED_HEIGHTS == (128, 64, 32, 16)
    assert [(group.height, group.items) for group in side.groups] == [(128, 2), (16, 10)]
    parts = side.merges[:, 3].tolist()
    assert parts == sorted(parts, reverse=True) and parts[0] == 4


def test_work_goes_from_head_to_head_with_long_tiles_first_and_then_from_row_to_row():
    band = np.abs(np.arange(320)[:, None] - np.arange(320)) <= 8
    mask = np.stack([band, band])
    mask[0, 100] = mask[1, 7] = True  # each makes its tile of 16 rows a long one
    mask[1, 300, 0] = True  # and the heads differ
    side = pack_tiles(cover(mask, (16,), 1), np.arange(2))
    items = [
        (int(header[layout.HEAD]), int(header[layout.WIDTH])) for _, header, *_ in records_of(side)
    ]
    assert [head for head, _ in items] == [0] * 20 + [1] * 20
    firsts = [rows[0] for _, _, rows, _ in records_of(side)]
    for head in (items[:20], items[20:]):
        assert head[0][1] == 320 and max(width for _, width in head[1:]) < 320
    assert firsts[1:20] == sorted(firsts[1:20]) and firsts[21:] == sorted(firsts[21:])


def test_heads_with_one_mask_have_partial_results_of_their_own():
    """Items of a head add where its partial results begin: the heads before it, all of them."""
    mask = np.random.default_rng(0).random((2, 30, 30)) < 0.4
    side = pack_tiles(cover(mask, (16,), 3), np.array([0, 1, 0]))
    base = {}
    for _, header, *_ in records_of(side):
        if header[layout.SLOT_BASE] >= 0:
            base.setdefault(int(header[layout.HEAD]), set()).add(int(header[layout.SLOT_BASE]))
    merges = side.merges.numpy()
    of_head = np.bincount(merges[:, 0], weights=merges[:, 3], minlength=3)
    starts = (np.cumsum(of_head) - of_head).astype(int).tolist()
    assert base == {head: {start} for head, start in enumerate(starts)}
    assert side.num_slots == of_head.sum()


# ---------------------------------------------------------------- which rows are chained


def stages_of(tiles_of_row, num_tiles):
    """Stages of tiles, given the tiles that cover each row."""
    place = np.repeat(np.arange(len(tiles_of_row)), [len(each) for each in tiles_of_row])
    tile = np.array([tile for each in tiles_of_row for tile in each], dtype=np.int64)
    return place, tile, choose_stages(place, tile, num_tiles, len(tiles_of_row))


def test_two_parts_of_a_cover_are_two_stages_whatever_their_order():
    """64 rows in four tiles of 16 neighbours (0, 5, 2, 7) and four of one residue each."""
    rows = np.arange(64)
    bands, residues = np.array([0, 5, 2, 7]), np.array([1, 3, 4, 6])
    pairs = np.stack([bands[rows // 16], residues[rows % 4]], axis=1).tolist()
    place, tile, stages = stages_of(pairs, 8)
    assert stages.tile[bands].tolist() == [0] * 4 and stages.tile[residues].tolist() == [1] * 4
    assert stages.is_first.sum() == stages.goes_on.sum() == 64
    assert np.array_equal(stages.goes_on, stages.tile[tile] == 1)
    assert np.array_equal(np.sort(place[stages.goes_on]), rows)


def test_parts_of_the_graph_are_coloured_apart():
    pairs = [[0, 3], [4, 1], [2, 5]] * 8
    _, _, stages = stages_of(pairs, 6)
    assert [stages.tile[a] != stages.tile[b] for a, b in pairs[:3]] == [True] * 3
    assert stages.goes_on.sum() == 24


def test_rows_that_no_colours_part_are_merged():
    """Three tiles that share rows with each other: two pairs can be parted, the third not."""
    pairs = [[0, 1], [1, 2], [0, 2]] * 8
    place, tile, stages = stages_of(pairs, 3)
    chained = stages.is_first | stages.goes_on
    assert chained.sum() == 32
    for row, each in enumerate(pairs):
        parted = stages.tile[each[0]] != stages.tile[each[1]]
        assert chained[place == row].tolist() == [parted] * 2
    assert np.array_equal(stages.is_first, chained & (stages.tile[tile] == 0))


def test_rows_of_three_tiles_and_few_rows_of_two_are_merged():
    assert not stages_of([[0, 1, 2]] * 20, 3)[2].goes_on.any()
    few = stages_of([[0, 1]] + [[0]] * 20, 2)[2]
    assert not few.goes_on.any() and not few.tile.any()
    enough = stages_of([[0, 1]] + [[0]] * 15, 2)[2]
    assert enough.goes_on.sum() == 1


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_program_says_whether_o_is_rounded_between_two_tiles(parts):
    mask = np.random.default_rng(0).random((1, 40, 50)) < 0.3
    sides = cover(mask, (16,), parts), cover(mask.transpose(0, 2, 1), (16,), 1)
    packed = pack_program(*sides, np.zeros(1, dtype=np.int64))
    assert make_program((Part(triton.BACKEND, None, packed),)).passes_on == (parts == 2)
