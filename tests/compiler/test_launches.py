"""What a cover costs where a launch runs all tiles of one height."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparsebert.backends.triton_stages import choose_stages
from sparsebert.compiler.cost.launches import LaunchCounts, count_launches, launches_us
from sparsebert.compiler.cost.model import cost_model
from sparsebert.tiles.outlines import TileOutlines
from tests.compiler.round_costs import PASS

GPU = dataclasses.replace(
    PASS, call=0.0, launch=3.0, wait=1.0, wait_column=0.01, chain=0.5, floor_row=0.002
)


def outlines(first: int, rows: int, height: int, *width: int) -> TileOutlines:
    """Tiles of one height with `rows` real rows each, in order from row `first` on."""
    slots = np.full((len(width), height), -1, dtype=np.int32)
    slots[:, :rows] = first + np.arange(len(width) * rows).reshape(-1, rows)
    return TileOutlines(slots, np.array(width))


def counted(*cover: TileOutlines, q_len: int = 128) -> tuple[list[LaunchCounts], int]:
    return count_launches(cover, q_len, step=64)


def us(*cover: TileOutlines, q_len: int = 128, balanced: bool = False) -> float:
    launches, merges = counted(*cover, q_len=q_len)
    return launches_us(launches, merges, q_len, q_len, GPU, balanced=balanced)


def test_a_launch_for_each_height() -> None:
    launches, merges = counted(outlines(0, 60, 64, 70), outlines(60, 17, 32, 10, 64, 128))
    assert merges == 0
    assert launches == [
        LaunchCounts(0, 64, tiles=1, width=70, columns=128, longest=128, rows=60, chained=0),
        LaunchCounts(0, 32, tiles=3, width=202, columns=256, longest=128, rows=51, chained=0),
    ]
    more, _ = counted(outlines(0, 16, 16, 5), outlines(16, 16, 16, 65))
    assert more == [
        LaunchCounts(0, 16, tiles=2, width=70, columns=192, longest=128, rows=32, chained=0)
    ]


def test_rows_in_two_tiles_are_chained_and_those_in_three_merged() -> None:
    comb, band = outlines(0, 64, 64, 64, 64), outlines(0, 64, 64, 128, 128)
    launches, merges = counted(comb, band)
    assert merges == 0 and [(each.stage, each.chained) for each in launches] == [(0, 0), (1, 128)]
    launches, merges = counted(comb, band, outlines(0, 64, 64, 64, 64))
    assert merges == 3 * 128 and [each.stage for each in launches] == [0]
    few = outlines(0, 4, 64, 512)  # not worth a launch of their own
    launches, merges = counted(comb, few, q_len=128)
    assert merges == 8 and [each.stage for each in launches] == [0]


def test_chains_are_those_of_the_packed_tiles() -> None:
    """The same rows go on as `triton_stages` says, whichever of two tiles it takes first."""
    comb = TileOutlines(np.arange(128, dtype=np.int32).reshape(64, 2).T.copy(), np.array([64, 64]))
    band, rest = outlines(0, 64, 64, 128, 128), outlines(0, 16, 16, 64)
    for cover in ([comb, band], [comb], [comb, rest], [comb, band, rest]):
        rows = np.concatenate([tiles.rows.reshape(-1) for tiles in cover])
        owner = np.repeat(np.arange(sum(len(t.rows) for t in cover)), [
            t.height for t in cover for _ in t.rows
        ])  # fmt: skip
        used = rows >= 0
        stages = choose_stages(rows[used].astype(np.int64), owner[used], owner[-1] + 1, 128)
        launches, merges = counted(*cover)
        assert sum(each.chained for each in launches) == stages.goes_on.sum()
        times = np.bincount(rows[used], minlength=128)[rows[used]]
        assert merges == ((times > 1) & ~stages.is_first & ~stages.goes_on).sum()


def test_a_launch_takes_its_work_and_waits_for_its_longest_tile() -> None:
    narrow = outlines(0, 64, 64, 60, 64)
    work = 2 * (0.5 + 64 * 0.01) + 124 * 0.1 + 128 * 0.064
    assert us(narrow) == us(narrow, balanced=True) == pytest.approx(3.0 + work + 1.0)
    wide = outlines(0, 64, 64, 64, 640)
    work = 2 * (0.5 + 64 * 0.01) + 704 * (0.1 + 0.064)
    assert us(wide) == pytest.approx(3.0 + work + 1.0 + 0.01 * (640 - 352))
    assert us(wide, balanced=True) == pytest.approx(3.0 + work + 1.0 + 0.01 * (512 - 352))
    idle = dataclasses.replace(GPU, tile=0.0, row=0.0, column=0.0, entry={64: 0.0})
    launches, _ = counted(wide)
    alone = launches_us(launches, 0, 128, 128, idle, balanced=False)
    assert alone == pytest.approx(3.0 + 1.0 + 0.01 * 640)


def test_a_launch_moves_its_rows_and_columns() -> None:
    far = dataclasses.replace(GPU, floor_row=10.0)
    launches, _ = counted(outlines(0, 40, 64, 10))
    moved = launches_us(launches, 0, 8, 16, far, balanced=False)
    assert moved == pytest.approx(3.0 + 10.0 * (40 + 10) + 1.0)
    few_columns = launches_us(launches, 0, 8, 4, far, balanced=False)
    assert few_columns == pytest.approx(3.0 + 10.0 * (40 + 4) + 1.0)
    assert launches_us(launches, 0, 128, 128, far, balanced=False) == far.floor(128, 128)


def test_scratch_costs_a_launch_and_its_bytes() -> None:
    comb, few = outlines(0, 64, 64, 64, 64), outlines(0, 4, 64, 64)
    launches, merges = counted(comb, few)
    without = launches_us(launches, 0, 128, 128, GPU, balanced=True)
    assert us(comb, few, balanced=True) == pytest.approx(without + 3.0 + 0.25 * merges)


@pytest.mark.parametrize("target", ["sm80", "sm90", "sm100", "gfx942"])
def test_thin_tiles_beside_others_must_pay_for_their_launch(target: str) -> None:
    """Two global rows: better 64 slots of which two are used than a launch of thin tiles."""
    model = cost_model(target)
    usual = outlines(2, 64, 64, *[66] * 7)
    assert model.cover_us([usual, outlines(0, 2, 64, 512)], 512, 512) < model.cover_us(
        [usual, outlines(0, 2, 16, 512)], 512, 512
    )


def test_columns_are_paid_for_in_whole_steps() -> None:
    model = cost_model("sm90")
    rows = np.array([64, 64, 64])
    times = model.tile_us(64, rows, np.array([16, 64, 80]))
    entry, column = model.forward.entry[64], model.forward.column
    assert times[1] - times[0] == pytest.approx(48 * column)
    assert times[2] - times[1] == pytest.approx(16 * column + 64 * 64 * entry)
    assert model.step == 64 and cost_model("cpu").step == 0


def test_rows_may_be_in_two_tiles_of_one_array() -> None:
    """As the tiles of a compiled plan are listed: by height, whatever pieces they are of."""
    apart, _ = counted(outlines(0, 64, 64, 64, 64), outlines(0, 64, 64, 128, 128))
    both = TileOutlines(
        np.concatenate([outlines(0, 64, 64, 64, 64).rows] * 2), np.array([64, 64, 128, 128])
    )
    together, merges = counted(both)
    assert together == apart and merges == 0
