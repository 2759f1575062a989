"""What a report says in words."""

from __future__ import annotations

import pytest

from sparsebert import patterns
from sparsebert.masks import AttentionMask
from sparsebert.plan import compile_plan


def test_the_report_is_readable() -> None:
    mask = AttentionMask.stack_heads([patterns.strided(2048, 45)] * 3 + [patterns.dense(2048)])
    report = compile_plan(mask, target="cpu").explain()
    text = str(report)
    for expected in ("heads 0-2: tiles", "head 3: dense, all scores, no mask", "residue classes",
                     "predicted speed-up", "bound", "tried:", "why:", "merge share"):  # fmt: skip
        assert expected in text
    assert max(map(len, text.splitlines())) < 500 and len(text.splitlines()) < 30
    assert report.density == pytest.approx(mask.density)
    assert 0.0 < report.padding_waste < 1.0
    assert sum(report.tiles.values()) == 3 * sum(report.per_head[0].tiles.values())
    assert report.predicted_step_speedup > 1.0
