"""The timing model: by its definitions, against a plain simulation, and its committed rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.attention.cases import BERT_BASE, BOTH, DIRECTIONS, FORWARD, PAPER, TOKENS
from benchmarks.attention.rivals import OURS
from benchmarks.gpu.gpu_times import Timing
from benchmarks.harness.rows import RowFile
from benchmarks.predictions import launch_model, timing_model
from benchmarks.predictions.call_model import (
    call_of,
    forward_seconds,
    kernel_times,
    loaded,
    side_of,
    stored,
    tiles_before,
)
from benchmarks.predictions.gpu_machines import DENSE, FLEX, H100
from benchmarks.predictions.kernel_counts import NOW, VERSIONS, counts_by_step, counts_of
from benchmarks.predictions.launch_model import Counts, Launch, launch_times
from sparsebert import patterns
from sparsebert.plan import compile_plan

COUNTS = Counts(64, 64, 4, 1, programs=3, full=200.0, bits=300.0, from_shared=True)
NEAR, FAR = (
    dataclasses.replace(call_of(H100, 4, 1024, 1024), near=near) for near in (True, False)
)


def launch(*width: int, full: int = 0, **more: int) -> Launch:
    columns = np.array(width)
    fields = {"rows": 64 * len(width), "columns": max(width), "continued": 0, "scratch": 0}
    return Launch(64, columns, np.full(len(width), full), **fields | more)


# ---------------------------------------------------------------- the numbers it began with

BEGAN_WITH = {
    ("longformer", 512): 97, ("longformer", 1024): 99, ("longformer", 2048): 131,
    ("longformer", 4096): 195, ("log_sparse", 512): 135, ("log_sparse", 2048): 203,
    ("bigbird", 2048): 233, ("bigbird", 4096): 348, ("star", 2048): 98,
}  # fmt: skip
"""What a first, rough model predicted for the forward kernels before the work on them, in us, for
covers without merging: it took neither gathers twice from HBM nor the end of a launch for time.
"""


def test_the_first_predictions_come_out_again() -> None:
    design, counts = VERSIONS[0][0], counts_by_step()[VERSIONS[0][0].name]
    for mask, n, (queries, _) in tiles_before():
        if (mask, n) not in BEGAN_WITH:
            continue
        call = call_of(H100, TOKENS // n * BERT_BASE.heads, n, n)
        us = 0.0
        for each in queries.launches:
            times = launch_times(
                "forward", each, counts["forward", each.height], design, H100, call
            )
            limits = times.issue, times.exponentials, times.tensor, times.l2
            us += 1e6 * (max(times.tail + times.programs, *limits) + H100.launch)
        moved = 1e6 * 4 * TOKENS * BERT_BASE.heads * 64 * 2 / H100.hbm
        us = max(us, moved + 1e6 * H100.launch * len(queries.launches))
        assert us == pytest.approx(BEGAN_WITH[mask, n], rel=0.03), (mask, n)


# ------------------------------------------------------------------------ one launch


def test_programs_wait_for_slots() -> None:
    """Against a plain simulation: each program takes the slot that is free first."""
    rng = np.random.default_rng(0)
    each = rng.integers(1, 50, 37).astype(float)
    for slots in (1, 8, 400):
        free = [0.0] * slots
        for cycles in np.tile(each, 5):
            free[free.index(min(free))] += cycles
        assert launch_model._makespan(each, 5, slots) == pytest.approx(max(free))
    assert launch_model._makespan(np.full(6, 7.0), 5, 4) == 8 * 7.0
    assert launch_model._makespan(np.zeros(0), 5, 4) == 0.0


def test_what_limits_a_launch_is_counted() -> None:
    """One full tile of 640 columns: ten steps, by hand."""
    times = launch_times("forward", launch(640, full=640), COUNTS, NOW, H100, FAR)
    units = H100.units * H100.clock
    assert times.issue == pytest.approx(4 * 10 * 64 * 64 * 0.2 / 4 / units)
    assert times.exponentials == pytest.approx(4 * 10 * 64 * 64 / 16 / units)
    assert times.tensor == pytest.approx(4 * 10 * 4 * 64 * 64 * 64 / 4096 / units)
    assert times.l2 == pytest.approx(4 * (640 * 256 + 64 * 256) / H100.l2)
    assert times.hbm == pytest.approx(4 * (64 + 640) * 256 / H100.hbm)
    alone = 3 * H100.trip + 400.0 + 10 * (256 + 350 + max(64 * 64 / 16, 1.15 * 64 * 64 * 0.2 / 4))
    assert times.tail + times.programs == pytest.approx(alone / H100.clock)


def test_padding_of_a_step_is_computed_and_hardly_gathered() -> None:
    whole, part = (launch_times("dq", launch(w), COUNTS, NOW, H100, FAR) for w in (128, 65))
    assert part.issue == whole.issue and part.programs == pytest.approx(whole.programs, rel=0.1)
    assert 65 / 128 < part.l2 / whole.l2 < 1.0


def test_no_step_of_a_launch_is_forgotten() -> None:
    plain = launch_times("forward", launch(128, full=128), COUNTS, NOW, H100, FAR)
    mixed = launch_times("forward", launch(128, full=100), COUNTS, NOW, H100, FAR)
    tested = launch_times("forward", launch(128), COUNTS, NOW, H100, FAR)
    assert mixed.issue == pytest.approx((plain.issue + tested.issue) / 2)
    short = launch_times("forward", launch(1), COUNTS, NOW, H100, FAR)
    assert short.issue == pytest.approx(tested.issue / 2)


def test_more_in_flight_fewer_trips_and_more_programs_take_less() -> None:
    many = launch(*[640] * 2000)

    def us(counts: Counts = COUNTS, trips: int = 3) -> float:
        design = dataclasses.replace(NOW, trips=(trips, trips, trips))
        return launch_times("forward", many, counts, design, H100, FAR).programs

    assert us(dataclasses.replace(COUNTS, in_flight=0)) > us()
    assert us(trips=5) > us()
    assert us(dataclasses.replace(COUNTS, programs=2)) == pytest.approx(1.5 * us())


def test_a_machine_that_reaches_half_takes_twice_as_long_but_for_what_it_moves() -> None:
    half = dataclasses.replace(H100, reached=0.5)
    whole, slow = (
        launch_times("dkdv", launch(640, 64), COUNTS, NOW, chip, FAR) for chip in (H100, half)
    )
    for name in ("programs", "issue", "exponentials", "tensor", "tail"):
        assert getattr(slow, name) == pytest.approx(2 * getattr(whole, name))
    assert (slow.l2, slow.hbm) == (whole.l2, whole.hbm)


def test_what_is_moved_twice() -> None:
    """Rows that go on, and scratch, where the call is too large for the L2."""

    def hbm(kernel: str, near: bool = False, **more: int) -> float:
        call = NEAR if near else FAR
        moved = launch_times(kernel, launch(640, **more), COUNTS, NOW, H100, call).hbm
        return round(moved * H100.hbm / call.copies)

    plain = hbm("forward")
    assert hbm("forward", continued=64) - plain == 64 * 128
    assert hbm("forward", scratch=64) - plain == 64 * 128
    assert hbm("dkdv", continued=64) - hbm("dkdv") == 2 * 64 * 128
    assert hbm("forward", near=True) == plain == hbm("forward", near=True, scratch=64)
    assert hbm("forward", near=True, continued=64) == 0.0


# ------------------------------------------------------------------------ a call


def test_launches_of_a_plan() -> None:
    """Stages, heights and what becomes of rows; counted from the tiles."""
    plan = compile_plan(patterns.strided(2048, 45), target="sm90")
    tiles = plan.schedule.queries(np.ones(1, dtype=bool))
    chained, apart = (side_of(tiles, chained=c) for c in (True, False))
    rows = tiles.rows[tiles.rows >= 0]
    twice = int((np.bincount(rows) == 2).sum())
    assert sum(each.continued for each in chained.launches) + chained.merged >= twice > 0
    assert apart.merged >= twice and apart.partial == sum(x.scratch for x in apart.launches)
    for side in (chained, apart):
        assert sum(len(each.width) for each in side.launches) == tiles.num_tiles
        assert sum(each.width.sum() for each in side.launches) == tiles.width.sum()
        assert side.partial >= 2 * side.merged
        assert all(each.columns <= tiles.num_cols for each in side.launches)


def test_a_call_is_its_kernels_and_launches() -> None:
    tiles = compile_plan(patterns.longformer(512, 8, 2), target="sm90").schedule.queries(
        np.ones(1, dtype=bool)
    )
    side = side_of(tiles, chained=True)
    counts = {(kernel, h): COUNTS for kernel in ("forward", "dq", "dkdv") for h in (64, 128)}
    counts |= {(*key[:1], h): dataclasses.replace(COUNTS, block_m=h) for key in counts
               for h in (16, 32)}  # fmt: skip
    call = call_of(H100, 12, 512, 512)
    found = kernel_times((side, side), (512, 512), counts, NOW, H100, call)
    each = [launch_times("forward", x, counts["forward", x.height], NOW, H100, call)
            for x in side.launches]  # fmt: skip
    total = sum(times.total + H100.launch for times in each)
    assert found["forward"].seconds == pytest.approx(total)
    assert forward_seconds(found) == pytest.approx(total + found["merge"].seconds)
    assert "delta" not in found
    old = kernel_times((side, side), (512, 512), counts, VERSIONS[0][0], H100, call)
    assert old["delta"].seconds > H100.launch


def test_sides_are_kept_exactly() -> None:
    for _, _, sides in tiles_before():
        for side in sides:
            again = loaded(stored(side))
            assert again.merged == side.merged and again.partial == side.partial
            for one, other in zip(again.launches, side.launches, strict=True):
                for name, value in vars(one).items():
                    assert np.array_equal(value, getattr(other, name)), name


# ------------------------------------------------------------------------ counts and rows


def test_counts_are_read_from_rows_like_the_surveys() -> None:
    row = {
        "kernel": "forward", "rows": "32 64", "block_m": "32", "block_n": "64", "num_warps": "2",
        "per_1000": "300 / 400", "programs": "4", "in_flight": "2 / 2", "error": "",
    }  # fmt: skip
    found = counts_of([row, row | {"error": "did not compile", "rows": "16"}])
    assert set(found) == {("forward", 32), ("forward", 64), ("forward", 128)}
    counts = found["forward", 64]
    assert (counts.full, counts.bits, counts.in_flight) == (300.0, 400.0, 1)
    assert not counts.from_shared
    (amd,) = set(counts_of([row | {"programs": "", "in_flight": "- / -"}], "gfx942").values())
    assert amd.programs == 8 and amd.in_flight == 0


def test_every_version_has_counts_of_every_kernel_and_height() -> None:
    for design, counted in VERSIONS:
        counts = counts_by_step()[design.name]
        assert {kernel for kernel, _ in counts} == {"forward", "dq", "dkdv"}
        assert {height for _, height in counts} == {16, 32, 64, 128}
        assert counted != "" or design is not VERSIONS[0][0]


def test_the_committed_rows_are_there_for_every_timing() -> None:
    """One for each version, case and kernel, by the names of `gpu_check`'s timings."""
    rows = RowFile(timing_model.PATH, timing_model.COLUMNS).read()
    for mask in PAPER:
        for n in timing_model.LENGTHS:
            timing = Timing(OURS, mask, TOKENS // n, n).row
            own = [r for r in rows if r["contender"] == OURS and r["mask"] == mask]
            own = [r for r in own if int(r["n"]) == n]
            assert {r["step"] for r in own} == {design.name for design, _ in VERSIONS}
            for name in ("batch", "heads", "dim", "dtype"):
                assert {r[name] for r in own} == {str(timing[name])}
            whole = [r for r in own if r["kernel"] == "all"]
            assert {r["direction"] for r in whole} >= set(DIRECTIONS)
            for step in {r["step"] for r in own}:
                us = {r["direction"]: float(r["us_H100"]) for r in whole if r["step"] == step}
                assert us[BOTH] == pytest.approx(us[FORWARD] + us["backward"], abs=0.2)


def test_rivals_are_bound_by_what_they_move() -> None:
    moved = 4 * TOKENS * 12 * 64 * 2 / H100.hbm
    assert FLEX.seconds(512, 12, 64, 1e-6, H100.hbm, 0) == pytest.approx(moved + 4e-6)
    dense = DENSE.seconds(4096, 12, 64, 1.0, H100.hbm, 0)
    assert dense == pytest.approx(4 * 4096 * 64 * 12 * TOKENS / 460e12)
