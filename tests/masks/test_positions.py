"""What a mask's positions are, kept by all operations and files, and how crops follow them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsebert as sb
from sparsebert.masks.bits import pack
from sparsebert.masks.file import save_bits
from sparsebert.masks.positions import Grid

GRID = Grid(4, 6, num_special=2)
NEAR = sb.patterns.neighborhood_2d(4, 6, 3, num_special=2)
LINE = sb.patterns.longformer(26)
OTHER = sb.patterns.neighborhood_2d(6, 4, 3, num_special=2)


@pytest.mark.parametrize(
    ("mask", "positions"),
    [
        (NEAR, GRID),
        (LINE, "line"),
        (sb.AttentionMask.from_dense(NEAR.dense()), "line"),
        (sb.AttentionMask.from_dense(NEAR.dense()).on_grid(4, 6, 2), GRID),
        (~NEAR, GRID),
        (NEAR.without_diagonal(), GRID),
        (NEAR & LINE, GRID),
        (LINE | NEAR, GRID),
        (sb.AttentionMask.stack_layers([LINE, NEAR]), GRID),
        (sb.AttentionMask.stack_heads([NEAR, LINE]), GRID),
        (sb.AttentionMask.stack_layers([LINE, NEAR]).layer(0).head(0), GRID),
        (NEAR & OTHER, "mixed"),
        (sb.AttentionMask.stack_layers([NEAR, LINE, OTHER]).layer(1), "mixed"),
        (NEAR.crop(26), GRID),
        (NEAR.crop_grid(3, 2), Grid(3, 2, 2)),
        (LINE.crop(20), "line"),
    ],
)
def test_positions_are_kept(mask: sb.AttentionMask, positions: object, tmp_path: Path) -> None:
    assert mask.positions == positions
    for same in (copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert same.positions == positions
    mask.save(tmp_path / "mask")
    assert sb.AttentionMask.load(tmp_path / "mask").positions == positions


def test_a_long_history_does_not_lose_the_grid() -> None:
    mask = NEAR
    for _ in range(12):
        mask = mask & (mask | LINE)
    assert "pattern" not in str(mask.provenance)  # operands are named by fingerprint by now
    assert mask.positions == GRID


def test_files_of_older_versions_know_their_grid(tmp_path: Path) -> None:
    old = {"op": "and", "of": [NEAR.provenance, {"op": "not", "of": [LINE.provenance]}]}
    save_bits(tmp_path / "mask", NEAR.bits, 26, old)
    assert sb.AttentionMask.load(tmp_path / "mask").positions == GRID
    # One that was cropped as a line has no known positions, but certainly is no grid.
    cropped = pack(NEAR.dense().numpy()[..., :10, :10])
    save_bits(tmp_path / "mask", cropped, 10, {"op": "crop", "of": [NEAR.provenance]})
    mask = sb.AttentionMask.load(tmp_path / "mask")
    assert mask.positions == "mixed"
    with pytest.raises(ValueError, match="several grids"):
        mask.crop(9)


def test_a_record_of_the_user_is_no_grid_by_accident() -> None:
    bits = torch.ones(26, 26, dtype=torch.bool)
    for record in ({"positions": 3}, {"positions": {"height": "4"}}, {"of": 1}, {"of": ["x"]}):
        assert sb.AttentionMask.from_dense(bits, provenance=record).positions == "line"


@pytest.mark.parametrize(
    "crop",
    [
        lambda: NEAR.crop(14),
        lambda: NEAR.crop(26, 14),
        lambda: sb.compile_plan(NEAR, target="cpu").crop(14),
        lambda: sb.SparseSelfAttention(8, 2, NEAR)(torch.zeros(1, 14, 8)),
        lambda: sb.sparse_attention(*torch.zeros(3, 1, 2, 14, 8), NEAR),
    ],
)
def test_a_grid_is_not_cropped_as_a_line(crop: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"grid of 4 x 6 patches after 2 special.*crop_grid"):
        crop()


def test_grids_are_cropped_as_grids() -> None:
    cropped = NEAR.crop_grid(3, 4)
    expected = torch.ones(2 + 12, 2 + 12, dtype=torch.bool)
    for i in range(12):
        for j in range(12):
            a, b = (2 + 6 * (p // 4) + p % 4 for p in (i, j))
            expected[2 + i, 2 + j] = NEAR.dense()[0, 0, a, b]
    assert cropped.dense()[0, 0].equal(expected)
    assert NEAR.crop_grid(4, 6) == NEAR
    # Rows of whole width are a prefix: the one case in which cropping as a line was right.
    prefix = sb.AttentionMask.from_dense(NEAR.dense()).crop(2 + 12)
    assert NEAR.crop_grid(2, 6) == prefix


def test_equal_bits_over_other_positions_have_plans_of_their_own() -> None:
    """Plans are remembered by content, and cropped as their mask allows."""
    sb.compile_plan(NEAR, target="cpu")
    line = sb.AttentionMask.from_dense(NEAR.dense())
    assert line == NEAR
    assert sb.compile_plan(line, target="cpu").crop(14).q_len == 14
    with pytest.raises(ValueError, match="crop_grid"):
        sb.compile_plan(NEAR, target="cpu").crop(14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LINE.crop_grid(2, 2), r"are 'line', not a grid; take mask.crop\(length\)"),
        (lambda: (NEAR & OTHER).crop_grid(2, 2), "are 'mixed', not a grid; build it"),
        (lambda: NEAR.crop_grid(5, 2), "height=5 but must be from 1 to 4"),
        (lambda: NEAR.crop_grid(2, 0), "width=0 but must be from 1 to 6"),
        (lambda: LINE.on_grid(5, 5, 2), r"= 27 but the mask is 26 x 26"),
        (lambda: LINE.on_grid(26, 0), "width=0"),
    ],
)
def test_grid_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_marking_a_grid_copies_no_bits() -> None:
    line = sb.AttentionMask.from_dense(NEAR.dense())
    assert np.shares_memory(line.bits, line.on_grid(4, 6, 2).bits)
