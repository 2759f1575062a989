"""The kinds of checked files, and one made up: whole or not there, and no change goes unseen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors
from transformers import BertConfig, BertModel

import sparsebert as sb
from sparsebert.compiler.plan_file import PlanFileError
from sparsebert.integrations.huggingface.dam import attached
from sparsebert.integrations.huggingface.dam_files import DAM_FILE, load_dam, save_dam
from sparsebert.masks.file import MaskFileError
from sparsebert.storage import CheckedFile, sum_of_arrays, sum_of_text
from tests.storage.kills import killed_at, posix

MASKS = sb.patterns.star(40), sb.patterns.sliding_window(40, 3)
PLANS = [sb.compile_plan(MASKS[0], target="cpu", objective=each) for each in ("area", "time")]


def a_bert() -> BertModel:
    size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 10}
    return BertModel(BertConfig(num_hidden_layers=2, **size))


def a_bert_with_a_dam(seed: int) -> BertModel:
    dam = sb.DifferentiableAttentionMask(1, 2, 8, seed=seed, dtype=torch.bfloat16)
    return sb.attach_dam(a_bert(), dam)


DAMS = [a_bert_with_a_dam(seed) for seed in range(2)]


def content_of_dam(model: BertModel) -> Any:
    found = attached(model)
    state = {name: (x.dtype, x.tolist()) for name, x in found.dam.state_dict().items()}
    return state, found.dam.settings(), found.gate


@dataclass(frozen=True)
class Kind:
    """A kind of file in a folder: two values to save, and how they are compared."""

    file: str
    values: Any
    save: Callable[[Any, Path], None]
    load: Callable[[Path], Any]
    content: Callable[[Any], Any]


KINDS = {
    "mask": Kind(
        "mask",
        MASKS,
        lambda mask, folder: mask.save(folder / "mask"),
        lambda folder: sb.AttentionMask.load(folder / "mask"),
        lambda mask: (mask.fingerprint, mask.provenance),
    ),
    "plan": Kind(
        "plan",
        PLANS,
        lambda plan, folder: plan.save(folder / "plan"),
        lambda folder: sb.AttentionPlan.load(folder / "plan", MASKS[0]),
        lambda plan: (plan.fingerprint, plan.report),
    ),
    "dam": Kind(
        DAM_FILE, DAMS, save_dam, lambda folder: load_dam(a_bert(), folder), content_of_dam
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_what_is_saved_is_loaded(tmp_path: Path, kind: Kind) -> None:
    for value in (*kind.values, kind.values[0]):
        kind.save(value, tmp_path)
        assert kind.content(kind.load(tmp_path)) == kind.content(value)
    assert names(tmp_path) == [kind.file]


def test_a_flip_of_a_bit_changes_nothing_unseen(tmp_path: Path, kind: Kind) -> None:
    kind.save(kind.values[0], tmp_path)
    path = tmp_path / kind.file
    good, expected = path.read_bytes(), kind.content(kind.values[0])
    refused = 0
    for bit in np.random.default_rng(0).choice(8 * len(good), 300, replace=False).tolist():
        place, flip = bit // 8, 1 << bit % 8
        path.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
        try:
            found = kind.load(tmp_path)
        except ValueError:
            refused += 1
        else:  # the case of a digit in a JSON escape, say
            assert kind.content(found) == expected, (place, good[place : place + 1], flip)
    assert refused > 290


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kind: Kind) -> None:
    kind.save(kind.values[0], tmp_path)
    path = tmp_path / kind.file
    good = path.read_bytes()
    for length in {0, 1, 7, 8, 9, *range(0, len(good), 97), len(good) - 1}:
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match="truncated"):
            kind.load(tmp_path)
    path.write_bytes(good + b"\0")
    with pytest.raises(ValueError, match="followed by foreign bytes"):
        kind.load(tmp_path)


@posix
def test_the_content_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda file: steps.append("file or folder"))
    monkeypatch.setattr(os, "replace", lambda *names: (steps.append("name"), replace(*names)))
    kind.save(kind.values[0], tmp_path)
    assert steps == ["file or folder", "name", "file or folder"]


@posix
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path, kind: Kind) -> None:
    old, new = map(kind.content, kind.values)
    assert old != new
    step, seen = 0, []
    kind.save(kind.values[0], tmp_path)
    while killed_at(step, lambda: kind.save(kind.values[1], tmp_path)):
        seen.append(kind.content(kind.load(tmp_path)))
        step += 1
    assert seen[0] == old and kind.content(kind.load(tmp_path)) == new
    assert all(each in (old, new) for each in seen)
    assert seen == sorted(seen, key=lambda each: each == new)  # never back again
    assert len(seen) > 4
    assert names(tmp_path) == [kind.file]  # drafts of those killed before are gone


SAVERS: dict[str, Callable[[Path], None]] = {
    "AttentionMask.save": MASKS[0].save,
    "AttentionPlan.save": PLANS[0].save,
}
LOADERS: dict[str, Callable[[Path], object]] = {
    "AttentionMask.load": sb.AttentionMask.load,
    "AttentionPlan.load": lambda path: sb.AttentionPlan.load(path, MASKS[0]),
}


@pytest.mark.parametrize("name", SAVERS)
def test_where_nothing_can_be_saved(tmp_path: Path, name: str) -> None:
    with pytest.raises(IsADirectoryError, match=rf"^{name}: .* is a directory; give the name"):
        SAVERS[name](tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"^{name}: .* there is no folder .*none; make"):
        SAVERS[name](tmp_path / "none" / "file")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", LOADERS)
def test_where_nothing_can_be_loaded(tmp_path: Path, name: str) -> None:
    wrong = {"AttentionMask.load": MaskFileError, "AttentionPlan.load": PlanFileError}[name]
    with pytest.raises(wrong, match=rf"^{name}: .* is a directory; give the name of a file"):
        LOADERS[name](tmp_path)
    writer = name.replace("load", "save")
    with pytest.raises(FileNotFoundError, match=rf"^{name}: there is no .*none; {writer} writes"):
        LOADERS[name](tmp_path / "none")


def test_long_names_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 240 + ".safetensors"[: 255 - 240])
    MASKS[0].save(path)
    assert sb.AttentionMask.load(path) == MASKS[0]
    PLANS[0].save(path)
    assert sb.AttentionPlan.load(path, MASKS[0]).q_len == 40


def test_a_loaded_mask_cannot_be_made_writeable(tmp_path: Path) -> None:
    MASKS[0].save(tmp_path / "mask")
    bits = sb.AttentionMask.load(tmp_path / "mask").bits
    while bits is not None:
        with pytest.raises(ValueError, match="WRITEABLE"):
            bits.flags.writeable = True
        bits = bits.base if isinstance(bits.base, np.ndarray) else None


# ------------------------------------------------------------------------ a kind of one's own


class NoteError(ValueError):
    pass


NOTE = CheckedFile(
    name="note",
    key="some-note",
    version=3,
    oldest=2,
    fields=frozenset({"by"}),
    arrays={"a": ("F32", "BF16"), "b": ("I64",)},
    writer="save_note",
    reader="load_note",
    error=NoteError,
    remedy="; write it again",
)
ARRAYS = {"b": np.array(7), "a": np.zeros((2, 0, 3), np.float32)}


def test_a_new_kind_needs_its_fields_only(tmp_path: Path) -> None:
    path = tmp_path / "note"
    NOTE.write(path, ARRAYS, {"by": "Ä"})
    header, arrays = NOTE.read(path)
    assert header == {"version": 3, "by": "Ä", "sha256": sum_of_arrays(ARRAYS)}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array)
    with safe_open(path, framework="numpy") as file:
        text = file.metadata()[NOTE.key]
        assert file.metadata() == {"some-note": text, "some-note-sha256": sum_of_text(text)}


def in_torch(**changes: Any) -> CheckedFile:
    return CheckedFile(**{**vars(NOTE), "framework": "pt", **changes})


def test_tensors_come_back_as_tensors(tmp_path: Path) -> None:
    """Also of a type that NumPy does not have; the sum is that of the same arrays."""
    path = tmp_path / "note"
    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    assert sum_of_arrays(tensors) == sum_of_arrays(ARRAYS)
    tensors["a"] = torch.randn(3, 4).bfloat16()
    in_torch().write(path, tensors, {"by": ""})
    _, found = in_torch().read(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert found["a"].dtype == torch.bfloat16


def crafted(
    arrays: Any = None, *, sums: bool = True, text: str | None = None, **fields: Any
) -> bytes:
    """A file whose sums are right, whatever it says."""
    arrays = ARRAYS if arrays is None else arrays
    header = {"version": 3, "by": "", "sha256": sum_of_arrays(arrays), **fields}
    text = json.dumps(header) if text is None else text
    metadata = {NOTE.key: text, **({NOTE.sum_key: sum_of_text(text)} if sums else {})}
    return to_safetensors(arrays, metadata=metadata)


def test_a_crafted_note_is_read_where_nothing_is_wrong(tmp_path: Path) -> None:
    for version in (2, 3):
        (tmp_path / "note").write_bytes(crafted(version=version))
        assert NOTE.read(tmp_path / "note")[0]["version"] == version


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated or not a note: 0 bytes in all"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not a note: it does not start as"),
        ((40).to_bytes(8, "little") + b"x" * 30, "it ends at byte 38, inside its header of 40"),
        ((2).to_bytes(8, "little") + b"[]", "is not a note, or its header is altered"),
        (crafted()[:-1], "is truncated or altered: [0-9]+ bytes where [0-9]+ are expected"),
        (crafted() + b"\0", "is followed by foreign bytes: [0-9]+ bytes where [0-9]+ are"),
        (to_safetensors(ARRAYS), "is not a note: its metadata has no 'some-note'"),
        (crafted(text="[1]"), "is altered: 'some-note' in its metadata is not a JSON object"),
        (crafted(text="[" * 100_000), "is not a JSON object"),
        (crafted(version=4), "has format version 4 but this sparsebert reads up to 3; upgrade"),
        (crafted(version=1), "has format version 1, which this sparsebert reads no more"),
        (crafted(version=True), "is altered: version is True"),
        (crafted(more=1), "is altered: header fields missing or unknown: more"),
        (crafted(sums=False), "is altered: the header does not match its SHA-256 sum"),
        (crafted().replace(b"by", b"be"), "is altered: header fields missing or unknown: be, by"),
        (crafted(by="x").replace(b"x\\\"", b"y\\\""), "the header does not match its SHA-256 sum"),
        (crafted({"a": ARRAYS["a"]}), r"it holds the tensors \['a'\], not just 'a', 'b'"),
        (crafted({**ARRAYS, "b": np.array(7.0)}), "is mis-shaped: b has type F64, not I64"),
        (crafted(sha256="0" * 64), "is altered: the arrays do not match their SHA-256 sum"),
        (crafted({**ARRAYS, "a": np.zeros((2, 3, 0), "f4")}, sha256=sum_of_arrays(ARRAYS)),
         "the arrays do not match"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "note"
    path.write_bytes(content)
    with pytest.raises(NoteError, match=message) as caught:
        NOTE.read(path)
    assert str(caught.value).startswith(f"load_note: {path} ")
    assert str(caught.value).endswith("; write it again")


def test_files_without_sums_are_read_where_the_kind_says_so(tmp_path: Path) -> None:
    """But not those that have lost one of the two."""
    path, kind = tmp_path / "note", in_torch(before_sums=True, framework="numpy")
    text = json.dumps({"version": 2, "by": ""})
    path.write_bytes(crafted(sums=False, text=text))
    assert kind.read(path)[0] == {"version": 2, "by": ""}
    with pytest.raises(NoteError, match="missing or unknown: sha256"):
        NOTE.read(path)
    for content in (crafted(sums=False), crafted(text=text)):
        path.write_bytes(content)
        with pytest.raises(NoteError, match="is altered"):
            kind.read(path)
