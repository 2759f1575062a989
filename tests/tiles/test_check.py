"""What proves tiles right refuses every way in which they can be wrong, and says which it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from sparsebert.masks.bits import pack
from sparsebert.tiles import outlines
from sparsebert.tiles.assemble import join_heads, without_heads
from sparsebert.tiles.build import TileGroup, build_tile_set
from sparsebert.tiles.check import check_cover, check_format
from sparsebert.tiles.crop import crop_tiles
from sparsebert.tiles.format import TileSet
from sparsebert.tiles.outlines import NO_SINGLES, Singles, singles_of_head

Change = Callable[[dict[str, np.ndarray]], None]


def staircase() -> np.ndarray:
    """bool [40, 50]: row i attends to the columns up to i + 5, and all rows to column 0."""
    return np.arange(50)[None, :] <= np.arange(40)[:, None] + 5


def tiles_of(mask: np.ndarray, alone: np.ndarray | None = None) -> TileSet:
    """Tiles of all but the entries that stand `alone`, bool [40, 50]."""
    alone = np.zeros_like(mask) if alone is None else alone
    bits, singles = pack(mask & ~alone), {0: pack(alone)}
    rows = np.full(48, -1, dtype=np.int32)
    rows[:40] = np.arange(40)
    tall, thin = rows[:32].reshape(1, 32), rows[32:].reshape(1, 16)
    groups = [TileGroup(0, bits, tall), TileGroup(0, bits, thin)]
    return build_tile_set(groups, 1, *mask.shape, singles)


def diagonal() -> np.ndarray:
    """Two entries of each row of the staircase."""
    return (np.eye(40, 50) + np.eye(40, 50, k=3)).astype(bool)


def _twice(arrays: dict[str, np.ndarray]) -> None:
    arrays["rows"][1] = arrays["rows"][0]


def _swap_columns(arrays: dict[str, np.ndarray]) -> None:
    arrays["cols"][[0, 1]] = arrays["cols"][[1, 0]]


def _column_of_nobody(arrays: dict[str, np.ndarray]) -> None:
    arrays["words"][:4] = 0  # the first tile has 32 rows


def _order(arrays: dict[str, np.ndarray]) -> None:
    for name, start in (("rows", "row_start"), ("cols", "col_start"), ("words", "word_start")):
        flat, at = arrays[name], arrays[start][1]
        arrays[name] = np.concatenate([flat[at:], flat[:at]])
        arrays[start] = np.array([0, len(flat) - at, len(flat)])
    for name in ("head", "height", "full", "width"):
        arrays[name] = arrays[name][::-1].copy()


WRONG: list[tuple[str, Change]] = [
    ("row numbers", lambda a: a["rows"].__setitem__(0, 40)),
    ("row numbers", lambda a: a["rows"].__setitem__(0, -2)),
    ("column numbers", lambda a: a["cols"].__setitem__(slice(-16, None), 50)),
    ("column numbers", lambda a: a["cols"].__setitem__(0, -1)),
    ("rows of a tile", _twice),
    ("empty row slots", lambda a: a["rows"].__setitem__(0, -1)),
    ("columns of a tile", _swap_columns),
    ("columns of padding", lambda a: a["cols"].__setitem__(-1, 3)),
    ("columns that no row attends to", _column_of_nobody),
    ("order of tiles", _order),
    ("bits of padding", lambda a: a["words"].__setitem__(slice(None), 255)),
    ("tile heights", lambda a: a["height"].__setitem__(0, 24)),
    ("heads of tiles", lambda a: a["head"].__setitem__(0, 1)),
    ("widths", lambda a: a["full"].__setitem__(0, -1)),
    ("sizes of bit words", lambda a: a["full"].__setitem__(0, 3)),
    ("where tiles begin", lambda a: a["row_start"].__setitem__(0, 16)),
    ("entry starts", lambda a: a.update(entry_start=a["entry_start"][:-1])),
    ("entry starts", lambda a: a["entry_start"].__setitem__(0, 1)),
    ("entry starts", lambda a: a["entry_start"].__setitem__(-1, 79)),
    ("entry starts", lambda a: a["entry_start"].__setitem__(3, 1)),
    ("columns of single entries", lambda a: a["entry_cols"].__setitem__(-1, 50)),
    ("columns of single entries", lambda a: a["entry_cols"].__setitem__(0, -1)),
    ("order of single entries", lambda a: a["entry_cols"].__setitem__(0, 3)),
    ("order of single entries", lambda a: a["entry_cols"].__setitem__(-1, 0)),
]


@pytest.mark.parametrize(("what", "change"), WRONG)
def test_each_fault_has_its_own_check(what: str, change: Change) -> None:
    tiles = tiles_of(staircase(), diagonal())
    check_format(tiles)
    arrays = {
        name: value.copy()
        for name, value in vars(tiles).items()
        if isinstance(value, np.ndarray)
    }  # fmt: skip
    change(arrays)
    with pytest.raises(ValueError, match=f"^wrong {what}$"):
        check_format(dataclasses.replace(tiles, **arrays))


def test_a_cover_is_the_mask_and_has_each_entry_once() -> None:
    mask = staircase()
    masks, tiles, routes = pack(mask)[None], tiles_of(mask), np.zeros(1, dtype=bool)
    check_cover(tiles, masks, routes)
    other = mask.copy()
    other[7, 3] = False
    with pytest.raises(ValueError, match="it is not the mask"):
        check_cover(tiles, pack(other)[None], routes)
    group = TileGroup(0, pack(mask), np.arange(32, dtype=np.int32)[None])
    again = build_tile_set(
        [group, TileGroup(0, pack(mask), np.r_[np.arange(32, 40), [-1] * 8][None]), group],
        1, *mask.shape,
    )  # fmt: skip
    with pytest.raises(ValueError, match="covered twice"):
        check_cover(again, masks, routes)


def test_single_entries_are_a_part_of_the_cover() -> None:
    mask, alone = staircase(), diagonal()
    masks, routes = pack(mask)[None], np.zeros(1, dtype=bool)
    tiles = tiles_of(mask, alone)
    assert len(tiles.entry_cols) == 80
    check_cover(tiles, masks, routes)
    missing = tiles_of(mask & ~alone)
    with pytest.raises(ValueError, match="it is not the mask"):
        check_cover(missing, masks, routes)
    twice = dataclasses.replace(
        tiles_of(mask), entry_start=tiles.entry_start, entry_cols=tiles.entry_cols
    )
    check_format(twice)
    with pytest.raises(ValueError, match="covered twice"):
        check_cover(twice, masks, routes)
    with pytest.raises(ValueError, match="it is not the mask"):  # of a head that runs dense
        check_cover(tiles, masks, ~routes)


def test_single_entries_are_counted_by_the_rows_that_run_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of a tile, or 16 that are in none: n neighbours have n + 3 columns."""
    tiles, alone = tiles_of(staircase(), diagonal()), {0: pack(diagonal())}
    for at_once in (1 << 20, 60):
        monkeypatch.setattr(outlines, "_SEEN", at_once)
        assert singles_of_head(tiles, 0) == Singles(80, 35 + 11)
        assert singles_of_head(build_tile_set([], 1, 40, 50, alone), 0) == Singles(
            80, 19 + 19 + 11
        )
        group = TileGroup(0, pack(staircase()), np.arange(4, 20, dtype=np.int32)[None])
        mixed = build_tile_set([group], 1, 40, 50, alone)  # rows 0 to 3 and 20 to 31 are together
        assert singles_of_head(mixed, 0) == Singles(80, 19 + (7 + 15) + 11)
        assert singles_of_head(tiles_of(staircase()), 0) == NO_SINGLES == Singles(0, 0)


def test_heads_and_crops_keep_their_single_entries() -> None:
    mask, alone = staircase(), diagonal()
    both = build_tile_set(
        [TileGroup(1, pack(mask & ~alone), np.arange(32, dtype=np.int32)[None])],
        3, *mask.shape, {1: pack(alone), 2: pack(mask)},
    )  # fmt: skip
    only = without_heads(both, np.array([False, True, False]))
    assert not only.num_tiles and (only.dense()[2] == mask).all() and not only.dense()[:2].any()
    rest = without_heads(both, np.array([False, False, True]))
    joined = join_heads([rest, only])
    for array, again in zip(both.arrays, joined.arrays, strict=True):
        assert np.array_equal(array, again)
    for rows, columns in ((20, 50), (40, 31), (33, 2), (1, 1)):
        cropped = crop_tiles(both, rows, columns)
        check_format(cropped)
        assert (cropped.dense() == both.dense()[:, :rows, :columns]).all()


def test_cropped_tiles_keep_the_promises_of_the_format() -> None:
    """A column whose rows are all cropped away must leave its tile, or it would be gathered."""
    mask = np.zeros((40, 50), dtype=bool)
    mask[:, :3] = True
    mask[20:, 30:] = True  # of no use to the first 20 rows
    tiles = tiles_of(mask)
    for rows, columns in ((20, 50), (40, 31), (33, 2), (1, 1)):
        cropped = crop_tiles(tiles, rows, columns)
        check_format(cropped)
        assert (cropped.dense()[0] == mask[:rows, :columns]).all()
    assert not np.isin(np.arange(30, 50), crop_tiles(tiles, 20, 50).cols).any()


def test_wide_tiles_come_first_within_a_height() -> None:
    """Work is launched in this order, so that the longest tile does not start last."""
    mask = np.zeros((96, 64), dtype=bool)
    for first, width in ((0, 16), (32, 48), (64, 32)):
        mask[first : first + 32, :width] = True
    group = TileGroup(0, pack(mask), np.arange(96, dtype=np.int32).reshape(3, 32))
    assert build_tile_set([group], 1, 96, 64).width.tolist() == [48, 32, 16]
