"""Strides are read off the mask."""

from __future__ import annotations

import numpy as np
import pytest

from sparsebert import patterns
from sparsebert.compiler.strides import distance_profile, find_strides
from sparsebert.masks.bits import pack


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (30, 50), (50, 30)])
def test_the_distance_profile_of_rectangles(rows: int, columns: int) -> None:
    mask = np.random.default_rng(0).random((rows, columns)) < 0.4
    distance = np.abs(np.arange(rows)[:, None] - np.arange(columns))
    profile, positions = distance_profile(pack(mask), columns)
    for d in range(columns):
        at = distance == d
        assert positions[d] == at.sum()
        assert profile[d] == pytest.approx(mask[at].mean() if at.any() else 0.0)


def test_long_masks_are_sampled() -> None:
    """256 rows from the first to the last say as much as all of them."""
    mask = (np.arange(2000)[:, None] - np.arange(64)) % 7 == 0
    profile, positions = distance_profile(pack(mask), 64)
    assert positions.max() <= 2 * 256 and positions[0] >= 8
    np.testing.assert_array_equal(profile, np.arange(64) % 7 == 0)


def test_strides_come_by_their_excess_and_up_to_the_limit() -> None:
    distance = np.abs(np.arange(120)[:, None] - np.arange(120))
    mask = pack(distance % 12 == 0)
    found = find_strides(mask, 120, 4)
    assert found[0] == 12 and set(found) <= {2, 3, 4, 6, 12, 24, 36} and len(found) == 4
    assert find_strides(mask, 120, 2) == found[:2]
    assert find_strides(pack(distance <= 1), 120, 4) == []


def test_distances_beyond_the_farthest_strong_one_do_not_count() -> None:
    """Multiples of 12 up to 48 are a structure; a quarter of those of 20 beyond 60 are none."""
    distance = np.abs(np.arange(200)[:, None] - np.arange(200))
    weak = (distance % 20 == 0) & (distance >= 60)
    mask = (distance % 12 == 0) & (distance <= 48)
    mask |= weak & (np.random.default_rng(0).random(mask.shape) < 0.25)
    found = find_strides(pack(mask), 200, 40)
    assert 12 in found and 20 not in found and max(found) <= 48


@pytest.mark.parametrize(
    ("mask", "stride"),
    [
        (patterns.strided(256, 16), 16),
        (patterns.strided(300, 17), 17),
        (patterns.dilated_window(256, 6, 5), 5),
        (patterns.neighborhood_2d(12, 20, 5), 20),
        (patterns.neighborhood_2d(14, 14, 3, num_special=1), 14),
    ],
)
def test_strides_are_read_off_the_mask(mask: patterns.AttentionMask, stride: int) -> None:
    assert stride in find_strides(mask.bits[0, 0], mask.kv_len, 4)


def test_masks_without_strides_have_none() -> None:
    for mask in (patterns.random(256, 0.1), patterns.sliding_window(256, 9), patterns.dense(64)):
        assert find_strides(mask.bits[0, 0], mask.kv_len, 4) == []


def test_the_distance_profile() -> None:
    mask = patterns.strided(64, 8)
    profile, positions = distance_profile(mask.bits[0, 0], 64)
    assert positions.tolist() == [64, *(2 * (64 - d) for d in range(1, 64))]
    wanted = [1.0 if d < 8 or d % 8 == 0 else 0.0 for d in range(64)]
    np.testing.assert_allclose(profile, wanted)
