"""Writing files so that a reader, or a crash, meets the old file or the new one, never half of it.

The content goes to a hidden draft in the same folder, which then takes the file's name in one
step. A draft whose writer was killed is removed by the next write to the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: what a killed writer left stays there
    fcntl = None  # type: ignore[assignment]

_DRAFT = ".sparsebert-{}-"
"""How the names of drafts begin: a digest stands for the file's name, which may be too long."""

_PATIENCE = 10.0
"""Seconds that a writer waits for another one."""

_BINARY: int = getattr(os, "O_BINARY", 0)


def write_atomically(where: str, path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path`, replacing an older file in one step.

    A symbolic link is followed, and what it leads to is written. An existing file's mode stays,
    and its owner where that is permitted. What is no regular file, like /dev/stdout, is just
    written to. `where` is the public function's name for errors.

    Raises IsADirectoryError, FileNotFoundError if the folder is missing, and other OSErrors.
    """
    target = Path(os.path.realpath(path))
    try:
        old = target.stat()
    except FileNotFoundError:
        old = None
    if old is not None and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(
            f"{where}: {os.fspath(path)} is a directory; give the name of a file in it"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"{where}: cannot write {os.fspath(path)}, there is no folder {target.parent}; "
            "make it first"
        )
    if old is not None and not stat.S_ISREG(old.st_mode):
        target.write_bytes(content)
        return
    prefix = _DRAFT.format(hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16])
    _remove_left(target.parent, prefix)
    draft, file = _create(target.parent, prefix, 0o666 if old is None else old.st_mode & 0o777)
    try:
        with os.fdopen(file, "wb") as stream:
            if old is not None and os.name == "posix":
                _take_after(file, old)
            stream.write(content)
            stream.flush()
            os.fsync(file)
            if fcntl is not None:
                os.replace(draft, target)  # while it is locked, or another writer may remove it
        if fcntl is None:  # Windows renames no open file
            os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Wait until nobody else who asks for this writes to `folder`, so that files fit together.

    Not for ever: a process that was forked meanwhile may hold what its parent has given up.
    """
    if fcntl is None:
        yield
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        patience = time.monotonic() + _PATIENCE
        while not _lock(file, wait=False) and time.monotonic() < patience:
            time.sleep(0.02)
        yield
    finally:
        os.close(file)


def require_file(
    path: str | os.PathLike[str], where: str, writer: str, wrong: type[ValueError]
) -> None:
    """Raise FileNotFoundError where nothing is at `path`, and `wrong` where a directory is.

    `where` and `writer` are the public functions that read and write such files.
    """
    if os.path.isdir(path):
        raise wrong(f"{where}: {os.fspath(path)} is a directory; give the name of a file in it")
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{where}: there is no file {os.fspath(path)}; {writer} writes such files"
        )


def _create(folder: Path, prefix: str, mode: int) -> tuple[Path, int]:
    """A new draft, locked, and its file descriptor."""
    while True:
        draft = folder / f"{prefix}{secrets.token_hex(8)}"
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode)
        if _lock(file, wait=True) and not draft.exists():
            os.close(file)  # taken for a killed writer's before it was locked
            continue
        return draft, file


def _remove_left(folder: Path, prefix: str) -> None:
    """Remove drafts that nobody holds locked: their writers were killed."""
    if fcntl is None:
        return
    for draft in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            file = os.open(draft, os.O_RDONLY)
            try:
                if _lock(file, wait=False):
                    draft.unlink()
            finally:
                os.close(file)


def _lock(file: int, *, wait: bool) -> bool:
    """Lock a file until it is closed; whether that was possible."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # somebody holds it, or the file system has no locks
        return False
    return True


def _take_after(file: int, old: os.stat_result) -> None:
    """Give a file the owner, if that is permitted, and the mode of another."""
    for owner, group in ((old.st_uid, -1), (-1, old.st_gid)):
        with contextlib.suppress(OSError):
            os.fchown(file, owner, group)
    os.fchmod(file, stat.S_IMODE(old.st_mode))


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk too; a file system that cannot is left to itself."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
