"""Files appear whole or not at all, also where a writer is killed; what stood there counts."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from sparsebert import storage as files
from sparsebert.storage import write_atomically
from tests.storage.kills import posix


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


# ------------------------------------------------------------------------ killed writers


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


@posix
def test_a_writer_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PATIENCE", 0.05)
    with files.only_writer(tmp_path), files.only_writer(tmp_path):
        pass


def test_a_writer_does_not_wait_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.time, "sleep", lambda _: pytest.fail("nobody else writes"))
    with files.only_writer(tmp_path):
        pass
