"""The table of cases, and the masks that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.attention import (
    cases,
)
from benchmarks.attention.cases import BOTH, DEVICES, FORWARD, select
from benchmarks.harness import named_masks
from sparsebert import patterns


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tier", cases.TIERS)
def test_no_case_is_timed_twice(device: str, tier: str) -> None:
    table = select(device, tier)
    keys = [case.key[1:] for case in table]  # the group does not make another case
    assert len(set(keys)) == len(keys) > 0


def test_the_gpu_table_has_what_was_asked_for() -> None:
    table = select("cuda")
    assert {(c.heads, c.dim) for c in table} >= {(12, 64), (16, 64), (12, 32), (16, 128)}
    assert {c.length for c in table} >= {128, 512, 577, 1024, 1025, 2048, 4096, 8192}
    assert {c.mask for c in table} >= {*patterns.PATTERNS, named_masks.NO_DIAGONAL}
    assert {c.dtype for c in table} == {"bfloat16", "float16", "float32"}
    assert {c.direction for c in table} == {FORWARD, BOTH}
    assert any(c.dropout for c in table)
    assert any(c.padding for c in table)
    assert {c.batch * c.length for c in table} >= {16384, 32768, 65536}


def test_the_cpu_table_has_every_pattern_and_kind() -> None:
    table = select("cpu")
    assert {c.mask for c in table} >= {*patterns.PATTERNS, named_masks.LEARNED_LOOKING}
    assert {c.group for c in table} >= {c.group for c in select("cuda")}


def test_the_cpu_table_has_short_texts_padding_and_masks_of_any_density() -> None:
    table = select("cpu")
    lengths = {c.length for c in table if c.mask == named_masks.LEARNED_LOOKING}
    assert lengths == {32, 64, 128, 512, 1024, 2048, 4096}
    padded = [c for c in table if c.padding == cases.HALF_PADDED]
    assert {c.mask for c in padded} >= {"dense", "longformer", named_masks.LEARNED_LOOKING}
    shares = {f"random {share} %" for share in named_masks.RANDOM_SHARES}
    assert {c.mask for c in table} >= shares
    for name in shares:
        density = named_masks.build(name, 256, 1).density
        assert density == pytest.approx(int(name.split()[1]) / 100, abs=0.02)
    assert {c.direction for c in table if c.dtype == "bfloat16"} == {FORWARD, BOTH}


@pytest.mark.parametrize("name", named_masks.NAMES)
@pytest.mark.parametrize("length", [128, 577])
def test_every_mask_is_built_at_its_length(name: str, length: int) -> None:
    mask = named_masks.build(name, length, heads=3)
    assert (mask.num_layers, mask.q_len, mask.kv_len) == (1, length, length)
    assert mask.num_heads in (1, 3)


@pytest.mark.parametrize("bad", [("tpu", "full", ()), ("cpu", "all", ()), ("cpu", "full", ("x",))])
def test_select_names_what_is_unknown(bad: tuple[str, str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match=r"select: .*(cpu|quick|paper-short)"):
        select(*bad)


def test_learned_masks_become_cases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(named_masks, "LEARNED", tmp_path)
    named_masks.learned_looking(64).save(tmp_path / "bert.safetensors")
    case = next(c for c in select("cpu") if c.mask == "learned: bert")
    assert (case.length, case.heads) == (64, 12)
    assert cases.build_mask(case) == named_masks.learned_looking(64)
