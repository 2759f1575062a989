"""Plan files: what comes back is the plan, and what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from sparsebert import patterns, planfile
from sparsebert.compiler import compile_plan
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan
from sparsebert.planfile import KEY, PlanFileError

MASK = AttentionMask.stack_heads(
    [patterns.strided(96, 10), patterns.dense(96), patterns.strided(96, 10), patterns.star(96)]
)


def compiled(objective: str = "area") -> AttentionPlan:
    return compile_plan(MASK, target="cpu", objective=objective)


@pytest.mark.parametrize("objective", ["area", "time"])
def test_a_plan_comes_back(tmp_path: Path, objective: str) -> None:
    plan, path = compiled(objective), tmp_path / "plan"
    plan.save(path)
    again = AttentionPlan.load(path, MASK)
    assert torch.equal(again.dense(), MASK.dense()[0])
    assert again.report == plan.report
    assert again.fingerprint == plan.fingerprint
    assert np.array_equal(again.dense_heads, plan.dense_heads)
    assert [p.name for p in tmp_path.iterdir()] == ["plan"]


def test_cropped_plans_can_be_saved(tmp_path: Path) -> None:
    compiled().crop(70).save(tmp_path / "plan")
    again = AttentionPlan.load(tmp_path / "plan", MASK.crop(70))
    assert torch.equal(again.dense(), MASK.crop(70).dense()[0])


def test_the_plan_of_another_mask_is_refused(tmp_path: Path) -> None:
    compiled().save(tmp_path / "plan")
    with pytest.raises(PlanFileError, match="another mask"):
        AttentionPlan.load(tmp_path / "plan", MASK.without_diagonal())


def test_files_that_are_no_plans_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    with pytest.raises(FileNotFoundError):
        AttentionPlan.load(path, MASK)
    MASK.save(path)
    with pytest.raises(PlanFileError, match="not a plan file"):
        AttentionPlan.load(path, MASK)
    compiled().save(path)
    content = path.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(PlanFileError):
            AttentionPlan.load(path, MASK)
    for place in range(len(content) - 2000, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(PlanFileError):
            AttentionPlan.load(path, MASK)


def _damage(name: str, arrays: dict[str, np.ndarray]) -> None:
    """Damage the arrays in one way."""
    if name == "row out of range":
        arrays["rows"][0] = 96
    elif name == "row twice":
        arrays["rows"][0] = arrays["rows"][1]
    elif name == "column out of range":
        arrays["cols"][3] = -1
    elif name == "column moved":
        arrays["cols"][0] += 1
    elif name == "bit lost":
        arrays["words"][np.flatnonzero(arrays["words"])[0]] = 0
    elif name == "bit of padding":
        arrays["words"][:] = 255
    elif name == "height":
        arrays["height"][0] = 24
    elif name == "full":
        arrays["full"][0] += 1
    elif name == "starts":
        arrays["row_start"][1] += 16
    elif name == "heads swapped":
        arrays["head_map"][:] = arrays["head_map"][::-1]
    elif name == "head out of range":
        arrays["head"][0] = 9
    elif name == "goes dense":
        arrays["dense_heads"][0] = True
    elif name == "tiles twice":
        for key in ("head", "height", "full", "width", "rows", "cols", "words"):
            arrays[key] = np.concatenate([arrays[key]] * 2)
        for key in ("row_start", "col_start", "word_start"):
            arrays[key] = np.concatenate([arrays[key], arrays[key][1:] + arrays[key][-1]])


DAMAGES = (
    "row out of range", "row twice", "column out of range", "column moved", "bit lost",
    "bit of padding", "height", "full", "starts", "heads swapped", "head out of range",
    "goes dense", "tiles twice",
)  # fmt: skip


@pytest.mark.parametrize("damage", [*DAMAGES, "version", "field", "report"])
def test_damage_is_found_even_with_a_right_sum(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "plan"
    compiled().save(path)
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()[KEY])
        arrays = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    _damage(damage, arrays)
    header["sha256"] = planfile._sum(arrays)
    if damage == "version":
        header["version"] = 2
    elif damage == "field":
        header["more"] = 1
    elif damage == "report":
        header["report"]["per_head"][0]["heads"] = [1]
    save_file(arrays, path, metadata={KEY: json.dumps(header)})
    with pytest.raises(PlanFileError, match="compile_plan"):
        AttentionPlan.load(path, MASK)
