"""Plan files: what comes back is the plan, and what is damaged is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from sparsebert import patterns
from sparsebert.compiler.plan_file import PLAN_FILE, PlanFileError
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan, compile_for_backend
from sparsebert.storage import sum_of_arrays, sum_of_text
from tests.compiler.plans import KINDS, singles_plan, tiles_plan

MASK = AttentionMask.stack_heads(
    [patterns.strided(96, 10), patterns.dense(96), patterns.strided(96, 10), patterns.star(96)]
)


def compiled() -> AttentionPlan:
    return tiles_plan(MASK, objective="area")


@pytest.mark.parametrize("objective", ["area", "time"])
@pytest.mark.parametrize("make", [tiles_plan, singles_plan])
def test_a_plan_comes_back(
    tmp_path: Path, make: Callable[..., AttentionPlan], objective: str
) -> None:
    plan, path = make(MASK, objective=objective), tmp_path / "plan"
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


@pytest.mark.parametrize(("target", "backend"), KINDS)
@pytest.mark.parametrize("objective", ["area", "time"])
def test_whatever_the_compiler_makes_can_be_saved(
    tmp_path: Path, objective: str, target: str, backend: str
) -> None:
    """What is checked of a report holds for every kind of plan, also where heads run dense."""
    windows = [patterns.sliding_window(700, 4 + head) for head in range(2)]
    masks = [
        AttentionMask.stack_heads([*windows, patterns.dense(700)]),
        patterns.star(700),
        patterns.random(64, 0.3),
        patterns.random(64, 0.8),
        patterns.sliding_window(200, 3).crop(70, 150),
        AttentionMask.from_dense(np.zeros((5, 9), dtype=bool)),
    ]
    routes = set()
    for mask in masks:
        plan = compile_for_backend(mask, backend, objective=objective, target=target)
        for each in (plan, plan.crop(max(1, mask.q_len // 2), mask.kv_len)):
            each.save(tmp_path / "plan")
            assert AttentionPlan.load(tmp_path / "plan", each.mask).report == each.report
            routes |= {head.route for head in each.report.per_head}
    assert routes == ({"tiles"} if objective == "area" else {"tiles", "dense"}) or (
        backend == "native" and routes == {"tiles"}  # where little is better dense
    )


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
    elif name == "padding column":
        padded = np.diff(arrays["col_start"])
        tile = np.flatnonzero(padded > arrays["width"])[0]
        arrays["cols"][arrays["col_start"][tile + 1] - 1] = 0
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
    "goes dense", "tiles twice", "padding column",
)  # fmt: skip


def _rewrite(path: Path, change: Callable[[Any, dict[str, np.ndarray]], None]) -> None:
    """Change the header and the arrays of a file, and make its sums right again."""
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()[PLAN_FILE.key])
        arrays = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    change(header, arrays)
    if "sha256" in header:
        header["sha256"] = sum_of_arrays(arrays)
    text = json.dumps(header)
    save_file(arrays, path, metadata={PLAN_FILE.key: text, PLAN_FILE.sum_key: sum_of_text(text)})


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_even_with_a_right_sum(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "plan"
    compiled().save(path)
    _rewrite(path, lambda _, arrays: _damage(damage, arrays))
    with pytest.raises(PlanFileError, match=r"is damaged: .*compile_plan"):
        AttentionPlan.load(path, MASK)


SINGLES_DAMAGES: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "lost": lambda a: a.update(
        entry_cols=a["entry_cols"][:-1],
        entry_start=np.minimum(a["entry_start"], a["entry_start"][-1] - 1),
    ),
    "moved": lambda a: a["entry_cols"].__setitem__(-1, 0),
    "out of range": lambda a: a["entry_cols"].__setitem__(-1, 96),
    "of another row": lambda a: a["entry_start"].__setitem__(1, a["entry_start"][1] + 1),
    "too short": lambda a: a.update(entry_start=a["entry_start"][:-1]),
}


@pytest.mark.parametrize("damage", SINGLES_DAMAGES)
def test_damage_to_single_entries_is_found_even_with_a_right_sum(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "plan"
    singles_plan(MASK, objective="area").save(path)
    _rewrite(path, lambda _, arrays: SINGLES_DAMAGES[damage](arrays))
    with pytest.raises(PlanFileError, match=r"is damaged: .*compile_plan"):
        AttentionPlan.load(path, MASK)


def test_a_file_may_be_rewritten_without_damage(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    compiled().save(path)
    _rewrite(path, lambda header, arrays: None)
    assert AttentionPlan.load(path, MASK).report == compiled().report


def _set(*keys: str | int, to: object) -> Callable[[Any, Any], None]:
    """Set a field of the header, or add to it a number as text like "+1"."""

    def change(header: Any, _: object) -> None:
        *path, last = keys
        for key in path:
            header = header[key]
        header[last] = header[last] + int(to[1:]) if str(to).startswith("+") else to  # type: ignore

    return change


HEAD = ("report", "per_head", 0)
WRONG_FIELDS = {
    "version": _set("version", to=4),
    "old version": _set("version", to=1),
    "field": _set("more", to=1),
    "target": _set("target", to="sm90"),
    "no target": lambda header, _: (_set("target", to="zz")(header, _),
                                    _set("report", "target", to="zz")(header, _)),
    "objective": _set("objective", to="time"),
    "no objective": lambda header, _: (_set("objective", to="x")(header, _),
                                       _set("report", "objective", to="x")(header, _)),
    "threads": _set("report", "threads", to=0),
    "threads, bool": _set("report", "threads", to=True),
    "head_dim": _set("report", "head_dim", to=0),
    "copies": _set("report", "copies", to=3),
    "q_len": _set("report", "q_len", to="+1"),
    "num_heads": _set("report", "num_heads", to="+1"),
    "source": _set("report", "cost_source", to=3),
    "backend": _set("report", "backend", to="triton"),
    "backend of other tiles": lambda header, _: (
        _set("report", "backend", to="native")(header, _),
        _set("report", "isa", to="avx2")(header, _),
    ),
    "instruction set": _set("report", "isa", to="avx512"),
    "single entries": _set(*HEAD, "single_entries", to=1),
    "members": _set(*HEAD, "heads", to=[1]),
    "density": _set(*HEAD, "density", to=0.5),
    "executed": _set(*HEAD, "executed_fraction", to=0.5),
    "route": _set(*HEAD, "route", to="dense"),
    "cover": _set(*HEAD, "cover", to=None),
    "tiles": _set(*HEAD, "tiles", "16", to="+1"),
    "columns": _set(*HEAD, "gathered_columns", to="+16"),
    "merge share": _set(*HEAD, "merge_share", to=1.5),
    "time, negative": _set(*HEAD, "predicted_us", to=-1.0),
    "time, infinite": _set(*HEAD, "dense_us", to=float("inf")),
    "time, text": _set(*HEAD, "bound_us", to="1"),
    "tried": _set(*HEAD, "tried", to=[["x", float("nan")]]),
    "tried, no pair": _set(*HEAD, "tried", to=[["x"]]),
    "no report": _set("report", to=[]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_wrong_fields_are_found_even_with_a_right_sum(tmp_path: Path, name: str) -> None:
    path = tmp_path / "plan"
    compiled().save(path)
    _rewrite(path, WRONG_FIELDS[name])
    with pytest.raises(PlanFileError, match="compile_plan"):
        AttentionPlan.load(path, MASK)


def test_heads_that_share_tiles_must_share_a_mask(tmp_path: Path) -> None:
    """The tiles of one head's mask, said to serve all: exact for the first head alone."""
    path = tmp_path / "plan"
    equal = AttentionMask.stack_heads([MASK.head(0)] * 4)
    tiles_plan(equal, objective="area").save(path)
    _rewrite(path, _set("fingerprint", to=MASK.fingerprint))
    with pytest.raises(PlanFileError, match=r"heads \(0, 1, 2, 3\) share tiles but not a mask"):
        AttentionPlan.load(path, MASK)


def test_a_flip_of_any_bit_is_refused(tmp_path: Path) -> None:
    """A sample; of all 21,160 flips of such a file none is accepted."""
    path, mask = tmp_path / "plan", patterns.star(24)
    tiles_plan(mask, objective="area").save(path)
    good = path.read_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(good), 500, replace=False).tolist():
        place, flip = bit // 8, 1 << bit % 8
        path.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
        with pytest.raises(PlanFileError):
            AttentionPlan.load(path, mask)


@pytest.mark.parametrize("array", ["cols", "words", "dense_heads"])
def test_damage_to_the_arrays_is_named(tmp_path: Path, array: str) -> None:
    path = tmp_path / "plan"
    compiled().save(path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    place = start + json.loads(content[8:start])[array]["data_offsets"][1] - 1  # in its padding
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(PlanFileError, match="the arrays do not match their SHA-256 sum"):
        AttentionPlan.load(path, MASK)
