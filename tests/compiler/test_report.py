"""The report of a plan: its words, its pictures in a notebook, and that it is a value."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable

import numpy as np
import pytest

import sparsebert as sb
from sparsebert.compiler.tile_map import tile_map
from sparsebert.plan import AttentionPlan
from sparsebert.tiles.images import NOT_COMPUTED

pytest.importorskip("matplotlib")  # reads the pictures; showing them needs none

from tests.compiler.plans import singles_plan, tiles_plan
from tests.pictures import pictures_of


@pytest.mark.parametrize("make", [tiles_plan, singles_plan])
def test_a_report_shows_the_tiles(make: Callable[..., AttentionPlan]) -> None:
    mask = sb.AttentionMask.stack_heads([sb.patterns.fixed(96), sb.patterns.star(96)])
    plan = make(mask, objective="area")
    for shown in (plan, plan.explain()):
        text = shown._repr_html_()
        found = pictures_of(text)
        assert len(found) == 2 and "executed fraction" in text and "least area" in text
        for head, picture in enumerate(found):
            skipped = (picture[..., :3] == 1).all(axis=-1)
            assert np.array_equal(skipped, tile_map(plan.schedule, head) == NOT_COMPUTED)
    assert pictures_of(plan.report._repr_html_()) == []


def test_a_report_reads_well_and_is_bounded() -> None:
    few = sb.compile_plan(sb.patterns.star(64), target="cpu").explain()
    assert repr(few) == str(few) == few.details()
    assert "1 head(s) dense; 1 of 1 different" in str(few) or "1 head(s) tiles" in str(few)
    assert "why:" in str(few)
    heads = sb.patterns.random(48, density=0.2, num_heads=30)
    many = tiles_plan(heads).explain()
    lines = str(many).splitlines()
    assert lines[0].startswith("plan for 30 head(s)") and len(lines) < 32
    assert "30 of 30 different" in lines[2]
    assert "  ... and 18 more different heads" in lines
    assert lines[-2].startswith("  why dense, head 0: sparsity does not pay here: the best tiles")
    assert many.details().count("    why: ") == 30
    assert re.match(r"<HeadReport head 0: \w+, ", repr(many.per_head[0]))
    text = many._repr_html_()
    assert len(pictures_of(text)) == 12 and "18 more different heads" in text


def test_a_report_is_still_a_value() -> None:
    plan = sb.compile_plan(sb.patterns.star(64), target="cpu")
    report = plan.explain()
    assert report == plan.report
    again = pickle.loads(pickle.dumps(report))
    assert again == report and str(again) == str(report)
    assert "data:image" not in again._repr_html_()  # the plan does not travel with it
