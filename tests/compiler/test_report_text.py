"""What a report says in words."""

from __future__ import annotations

import numpy as np
import pytest

from sparsebert import patterns
from sparsebert.masks import AttentionMask
from tests.compiler.plans import singles_plan, tiles_plan


def test_the_report_is_readable() -> None:
    mask = AttentionMask.stack_heads([patterns.strided(2048, 45)] * 3 + [patterns.dense(2048)])
    report = tiles_plan(mask).explain()
    text = str(report)
    for expected in ("heads 0-2: tiles", "head 3: dense, all scores, no mask", "residue classes",
                     "predicted speed-up", "bound", "tried:", "why:", "merge share"):  # fmt: skip
        assert expected in text
    assert max(map(len, text.splitlines())) < 500 and len(text.splitlines()) < 30
    assert report.density == pytest.approx(mask.density)
    assert 0.0 < report.padding_waste < 1.0
    assert sum(report.tiles.values()) == 3 * sum(report.per_head[0].tiles.values())
    assert report.predicted_step_speedup > 1.0


def test_the_report_counts_single_entries_and_says_what_it_is_for() -> None:
    mask = AttentionMask.stack_heads([patterns.longformer(512, 32, 2)] * 3 + [patterns.star(512)])
    plan = singles_plan(mask)
    report, tiles = plan.explain(), plan.tiles
    assert (report.backend, report.isa) == ("native", plan.shared_tiles.aim.isa)
    listed = [head.single_entries for head in report.per_head]
    starts = np.diff(tiles.entry_start[::512])
    assert listed == starts.tolist() and report.single_entries == 3 * listed[0] + listed[1] > 0
    for number, head in enumerate(report.per_head):
        own = tiles.head == number
        scores = 16 * int(tiles.width[own].sum()) + head.single_entries
        assert head.executed_fraction == scores / 512**2
        assert head.gathered_columns == tiles.width[own].sum()
        assert f"and {head.single_entries} single entries" in str(report)
    assert f"backend native ({report.isa})" in str(report)
    assert f"and {report.single_entries} single entries" in report._repr_html_()
    assert ", backend torch" in str(tiles_plan(mask).explain())
