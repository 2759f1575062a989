"""Files appear whole or not at all, also where a writer is killed; what stood there counts."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sparsebert as sb
from sparsebert import storage as files
from sparsebert.compiler.plan_file import PlanFileError
from sparsebert.masks.mask_file import MaskFileError
from sparsebert.storage import write_atomically

posix = pytest.mark.skipif(os.name != "posix", reason="modes, links, locks and fork of POSIX")

OLD, NEW = sb.patterns.star(40), sb.patterns.sliding_window(40, 3)


def write(path: Path, content: bytes = b"new") -> None:
    write_atomically("save", path, content)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@posix
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "file").write_bytes(b"old")
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to(real / "file")
    dangling.symlink_to("elsewhere/not yet there")
    for path in (link, dangling):
        write(path)
        assert path.is_symlink() and path.read_bytes() == b"new"
    assert names(real) == ["file", "not yet there"]
    assert names(tmp_path) == ["dangling", "elsewhere", "link"]


@posix
@pytest.mark.parametrize("mode", [0o640, 0o600, 0o664, 0o755])
def test_the_mode_of_the_file_stays(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


@posix
def test_a_draft_is_no_more_open_than_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    seen = []

    def look(source: Path, target: Path) -> None:
        seen.append(stat.S_IMODE(os.stat(source).st_mode))
        raise OSError("stop")

    for name in ("fchmod", "replace"):
        monkeypatch.setattr(os, name, look if name == "replace" else lambda *_: None)
    with pytest.raises(OSError, match="stop"):
        write(path)
    assert seen == [0o600]


def test_long_names_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 240 + ".safetensors"[: 255 - 240])
    OLD.save(path)
    assert sb.AttentionMask.load(path) == OLD
    sb.compile_plan(OLD, target="cpu").save(path)
    assert sb.AttentionPlan.load(path, OLD).q_len == 40


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts in /proc")
def test_no_file_stays_open(tmp_path: Path) -> None:
    def write_and_leave() -> int:
        write(tmp_path / "file")
        (tmp_path / f"{prefix}left").touch()  # as of a killed writer
        with files.only_writer(tmp_path):
            return len(os.listdir("/proc/self/fd"))

    prefix = files._DRAFT.format(hashlib.sha256(b"file").hexdigest()[:16])
    assert len({write_and_leave() for _ in range(4)}) == 1
    write(tmp_path / "file")
    assert names(tmp_path) == ["file"]


@posix
def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write(pipe)
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and names(tmp_path) == ["pipe"]


@posix
def test_the_content_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a name must not lead to an empty file."""
    steps = []
    replace, fsync = os.replace, os.fsync

    def note_fsync(file: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file"
        steps.append(f"{os.fstat(file).st_size} bytes" if kind == "file" else kind)
        fsync(file)

    def note_replace(source: Path, target: Path) -> None:
        steps.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write(tmp_path / "file", b"12345")
    assert steps == ["5 bytes", "name", "folder"]


SAVERS: dict[str, Callable[[Path], None]] = {
    "AttentionMask.save": OLD.save,
    "AttentionPlan.save": lambda path: sb.compile_plan(OLD, target="cpu").save(path),
}
LOADERS: dict[str, Callable[[Path], object]] = {
    "AttentionMask.load": sb.AttentionMask.load,
    "AttentionPlan.load": lambda path: sb.AttentionPlan.load(path, OLD),
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


# ------------------------------------------------------------------------ killed writers


def killed_at(
    step: int,
    action: Callable[[], None],
    watched: tuple[str, ...] = ("open", "os.", "fcntl."),
) -> bool:
    """Run `action` in a child that dies before its `step`-th call of the watched kinds."""
    child = os.fork()
    if child == 0:
        left = step

        def audit(event: str, _: tuple[Any, ...]) -> None:
            nonlocal left
            if event.startswith(watched):
                left -= 1
                if left < 0:
                    os._exit(9)

        try:
            sys.addaudithook(audit)
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@posix
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path, step, seen = tmp_path / "mask", 0, []
    OLD.save(path)
    while killed_at(step, lambda: NEW.save(path)):
        seen.append(sb.AttentionMask.load(path))
        step += 1
    assert seen[0] == OLD and sb.AttentionMask.load(path) == NEW
    assert seen == sorted(seen, key=lambda mask: mask == NEW)  # never back again
    assert len(seen) > 4
    assert names(tmp_path) == ["mask"]  # drafts of those killed before are gone


@posix
def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"old")
    leave = lambda: os._exit(9)  # noqa: E731
    left = []
    for name in ("file", "other"):
        child = os.fork()
        if child == 0:
            os.replace = lambda *_: leave()  # type: ignore[assignment]
            write(tmp_path / name)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        left.append(set(names(tmp_path)) - {"file"} - set().union(*left))
    live, file = files._create(tmp_path, next(iter(left[0]))[:-16], 0o600)  # at work right now
    (tmp_path / ".file.tmp").write_bytes(b"of somebody else")
    write(path)
    assert set(names(tmp_path)) == {"file", ".file.tmp", live.name, *left[1]}
    os.close(file)
    write(path)
    write(tmp_path / "other")
    assert set(names(tmp_path)) == {"file", ".file.tmp", "other"}


AUTO = {"backend": "auto", "positions": "sequence"}
TORCH = {"backend": "torch", "positions": "batch"}


def a_model(modules: int = 2) -> Any:
    """What write_masks and read_masks look at."""
    config = SimpleNamespace(model_type="bert")
    return SimpleNamespace(owner=SimpleNamespace(config=config), modules=dict.fromkeys("ab"))


@posix
@pytest.mark.parametrize("new", [(NEW, TORCH), (OLD, TORCH), (NEW, AUTO)])
def test_a_folder_of_masks_can_be_loaded_whenever_its_writer_was_killed(
    tmp_path: Path, new: tuple[sb.AttentionMask, dict[str, str]]
) -> None:
    from sparsebert.integrations.huggingface.files import read_masks, write_masks

    old, model = (OLD, AUTO), a_model()
    write_masks(tmp_path, OLD, model, AUTO)
    step, seen = 0, []
    save = lambda: write_masks(tmp_path, new[0], model, new[1])  # noqa: E731
    while killed_at(step, save, ("os.rename", "fcntl.")):
        seen.append(read_masks(tmp_path, model))
        assert seen[-1] in (old, new)
        if seen[-1] == new:  # a later save after one that was killed, from each state
            write_masks(tmp_path, OLD, model, AUTO)
        step += 1
    assert read_masks(tmp_path, model) == new
    assert old in seen and new in seen
    assert names(tmp_path) == ["sparsebert_config.json", "sparsebert_masks.safetensors"]
    assert "replaces" not in json.loads((tmp_path / "sparsebert_config.json").read_text())


def test_masks_that_cannot_be_loaded_are_replaced(tmp_path: Path) -> None:
    from sparsebert.integrations.huggingface.files import read_masks, write_masks

    model = a_model()
    for name in ("sparsebert_masks.safetensors", "sparsebert_config.json"):
        write_masks(tmp_path, OLD, model, AUTO)
        (tmp_path / name).write_text("broken")
        with pytest.raises(ValueError, match=name):
            read_masks(tmp_path, model)
        write_masks(tmp_path, NEW, model, TORCH)
        assert read_masks(tmp_path, model) == (NEW, TORCH)


def test_a_reader_that_meets_a_writer_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsebert.integrations.huggingface.files import read_masks, write_masks

    model, load = a_model(), sb.AttentionMask.load
    write_masks(tmp_path, OLD, model, AUTO)
    turns = []

    def meanwhile(path: Path) -> sb.AttentionMask:
        """Between the reading of the note and of the masks, a whole save."""
        if not turns:
            turns.append(path)
            write_masks(tmp_path, NEW, model, TORCH)
        return load(path)

    monkeypatch.setattr(sb.AttentionMask, "load", meanwhile)
    assert read_masks(tmp_path, model) == (NEW, TORCH)


def test_no_flip_of_a_bit_changes_what_a_folder_means(tmp_path: Path) -> None:
    from sparsebert.integrations.huggingface.files import read_masks, write_masks

    settings = {"backend": "torch", "positions": "batch"}
    write_masks(tmp_path, OLD, a_model(), settings)
    note = tmp_path / "sparsebert_config.json"
    good = note.read_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(good), 500, replace=False).tolist():
        place, flip = bit // 8, 1 << bit % 8
        note.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
        try:
            found = read_masks(tmp_path, a_model())
        except ValueError:
            continue
        assert found == (OLD, settings), (place, good[place : place + 1], flip)


@posix
def test_two_writers_to_one_folder_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the masks of one would stand beside the note of the other."""
    from sparsebert.integrations.huggingface.files import read_masks, write_masks

    model, save = a_model(), sb.AttentionMask.save
    second = threading.Thread(target=lambda: write_masks(tmp_path, NEW, model, TORCH))

    def meanwhile(mask: sb.AttentionMask, path: Path) -> None:
        save(mask, path)
        if mask == OLD:
            second.start()
            second.join(0.3)

    monkeypatch.setattr(sb.AttentionMask, "save", meanwhile)
    write_masks(tmp_path, OLD, model, AUTO)
    second.join()
    assert read_masks(tmp_path, model) == (NEW, TORCH)


@posix
def test_a_writer_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PATIENCE", 0.05)
    with files.only_writer(tmp_path), files.only_writer(tmp_path):
        pass
