"""Batches of tiles by their plain meaning: equal rows, widths of at least 0.8 of the widest."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsebert.tiles.batching import batch_tiles

SHAPES = st.lists(st.tuples(st.sampled_from([1, 15, 16, 128]), st.integers(1, 40)), max_size=60)


@given(SHAPES)
def test_batches_are_taken_from_the_largest_tile_down(shapes: list[tuple[int, int]]) -> None:
    rows = np.array([used for used, _ in shapes], dtype=np.int64)
    width = 16 * np.array([wide for _, wide in shapes], dtype=np.int64)
    expected: list[list[int]] = []
    for tile in sorted(range(len(rows)), key=lambda tile: (-rows[tile], -width[tile], tile)):
        first = expected[-1][0] if expected else None
        fits = (
            first is not None and rows[tile] == rows[first] and width[tile] >= 0.8 * width[first]
        )
        expected.append([*expected.pop(), tile] if fits else [tile])
    batching = batch_tiles(rows, width)
    members = [batch.tolist() for batch in batching.members()]
    assert members == expected and batching.count == len(expected)
    for number, tiles in enumerate(expected):
        assert (batching.batch[tiles] == number).all()
        assert batching.rows[number] == rows[tiles[0]]
        assert batching.width[number] == width[tiles].max()


def test_no_tiles_make_no_batches() -> None:
    nothing = batch_tiles(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert nothing.count == 0 and nothing.members() == []


def test_widths_within_a_fifth_of_the_widest_share_a_batch() -> None:
    used = np.array([16, 16, 32, 16, 16, 32])
    width = np.array([80, 100, 48, 79, 64, 48])
    groups = [group.tolist() for group in batch_tiles(used, width).members()]
    assert groups == [[2, 5], [1, 0], [3, 4]]  # 64 of 79 is above 0.8, 79 of 100 is not
