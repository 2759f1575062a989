"""Files that are whole or not there, and say when a byte of them has changed.

`write_atomically` writes so that a reader, or a crash, meets the old file or the new one, never
half of it. The content goes to a hidden draft in the same folder, which then takes the file's name
in one step. A draft whose writer was killed is removed by the next write to the same file.

A `CheckedFile` is a kind of file: arrays and a JSON header in one safetensors file, with a SHA-256
sum of each, all checked on reading. The sums guard against accidents, not against forgery. Reading
runs no code from the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    Array = np.ndarray[Any, Any] | torch.Tensor

try:
    import fcntl
except ImportError:  # Windows has no such locks: what a killed writer left stays there
    fcntl = None  # type: ignore[assignment]

_DRAFT = ".sparsebert-{}-"
"""How the names of drafts begin: a digest stands for the file's name, which may be too long."""

_PATIENCE = 10.0
"""Seconds that a writer waits for another one."""

_BINARY: int = getattr(os, "O_BINARY", 0)

_MAX_HEADER = 100_000_000
"""safetensors' own limit on the bytes of its header."""


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


@dataclasses.dataclass(frozen=True)
class CheckedFile:
    """A kind of file that holds arrays and a JSON header, and what is checked when one is read.

    The header is JSON text among the metadata of a safetensors file, under `key`: the format's
    version, the kind's own fields, and the sum of the arrays. The sum of this text stands beside
    it, under the key with "-sha256" after it.

    Attributes:
        name: what errors call such a file.
        key: of the header.
        version: that is written, and the newest that is read.
        fields: the kind's own fields of the header.
        arrays: each array, with the types that it may have, as safetensors names them ("U8").
        writer, reader: the public functions, for errors.
        error: what `read` raises.
        remedy: ends its errors.
        oldest: version that is read.
        since: the version from which on files have an array, of arrays that older ones have not.
        framework: "numpy" or "pt", what `read` makes of the arrays.
        sums_inside: as mask files have them: the header's sum is one of its fields, over the
            others, and the arrays' is over their bytes alone, not their names and shapes.
        before_sums: files without any sum are read, too, as older versions wrote them.

    Example:
        >>> import tempfile
        >>> LENGTHS = CheckedFile(
        ...     name="file of lengths", key="lengths", version=1, fields=frozenset({"unit"}),
        ...     arrays={"n": ("I64",)}, writer="save_lengths", reader="load_lengths",
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     LENGTHS.write(folder + "/n", {"n": np.arange(3)}, {"unit": "tokens"})
        ...     header, arrays = LENGTHS.read(folder + "/n")
        >>> header["unit"], arrays["n"]
        ('tokens', array([0, 1, 2]))
    """

    name: str
    key: str
    version: int
    fields: frozenset[str]
    arrays: Mapping[str, tuple[str, ...]]
    writer: str
    reader: str
    error: type[ValueError] = ValueError
    remedy: str = ""
    oldest: int = 1
    since: Mapping[str, int] = dataclasses.field(default_factory=dict)
    framework: str = "numpy"
    sums_inside: bool = False
    before_sums: bool = False

    @property
    def sum_key(self) -> str:
        """Where the sum of the header's text stands among the metadata."""
        return f"{self.key}-sha256"

    def write(
        self, path: str | os.PathLike[str], arrays: Mapping[str, Array], fields: Mapping[str, Any]
    ) -> None:
        """Write a file, see `write_atomically`; `fields` are the kind's own."""
        header = {"version": self.version, **fields, "sha256": self._sum_of(arrays)}
        if self.sums_inside:
            header[_HEADER_SUM] = sum_of_fields(header, but=_HEADER_SUM)
        text = json.dumps(header)
        metadata = {self.key: text}
        if not self.sums_inside:
            metadata[self.sum_key] = sum_of_text(text)
        write_atomically(self.writer, path, _to_safetensors(arrays, metadata, self.framework))

    def read(self, path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The header and the arrays of a file that `write` wrote.

        Fields are there, but not checked; neither are the arrays' shapes.

        Raises:
            FileNotFoundError: there is none.
            self.error: a directory, no file of this kind, of a newer version, truncated, altered.
        """
        from safetensors import SafetensorError, safe_open  # not needed just to attend

        self._require_file(path)
        try:
            with open(path, "rb"), safe_open(os.fspath(path), framework=self.framework) as file:
                header = self._header(path, file.metadata() or {})
                names = file.keys()
                types = {name: file.get_slice(name).get_dtype() for name in names}
                self._check_types(path, types, header["version"])
                arrays = {name: file.get_tensor(name) for name in types}
        except SafetensorError as error:
            what = _why_refused(path, self.name, error)
            raise self.wrong(path, what) from error
        if "sha256" in header and header["sha256"] != self._sum_of(arrays):
            what = next(iter(arrays)) if len(arrays) == 1 else "arrays"
            raise self.wrong(path, f"is altered: the {what} do not match their SHA-256 sum")
        return header, arrays

    def wrong(self, path: str | os.PathLike[str], what: str) -> ValueError:
        """The error that says what is wrong with a file."""
        return self.error(f"{self.reader}: {os.fspath(path)} {what}{self.remedy}")

    def _require_file(self, path: str | os.PathLike[str]) -> None:
        if os.path.isdir(path):
            raise self.error(
                f"{self.reader}: {os.fspath(path)} is a directory; give the name of a file in it"
            )
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"{self.reader}: there is no file {os.fspath(path)}; {self.writer} writes such "
                "files"
            )

    def _header(self, path: str | os.PathLike[str], metadata: dict[str, str]) -> dict[str, Any]:
        """The header, of a version that is understood, with all fields and the right sum."""
        if self.key not in metadata:
            raise self.wrong(path, f"is not a {self.name}: its metadata has no {self.key!r}")
        header = _json(metadata[self.key])
        if not isinstance(header, dict):
            raise self.wrong(
                path, f"is altered: {self.key!r} in its metadata is not a JSON object"
            )
        version = header.get("version")
        if type(version) is not int or version < 1:
            raise self.wrong(path, f"is altered: version is {version!r}")
        if version > self.version:
            raise self.wrong(
                path,
                f"has format version {version} but this sparsebert reads up to {self.version}; "
                "upgrade sparsebert",
            )
        if version < self.oldest:
            raise self.wrong(
                path, f"has format version {version}, which this sparsebert reads no more"
            )
        fields = {"version", *self.fields}
        if self.before_sums and metadata.keys() == {self.key} and header.keys() == fields:
            return header
        fields |= {"sha256", _HEADER_SUM} if self.sums_inside else {"sha256"}
        if odd := sorted(header.keys() ^ fields):
            raise self.wrong(
                path, f"is altered: header fields missing or unknown: {', '.join(odd)}"
            )
        if self.sums_inside:
            right = header[_HEADER_SUM] == sum_of_fields(header, but=_HEADER_SUM)
        else:
            sums = {self.sum_key: sum_of_text(metadata[self.key])}
            right = metadata.items() - {(self.key, metadata[self.key])} == sums.items()
        if not right:
            raise self.wrong(path, "is altered: the header does not match its SHA-256 sum")
        return header

    def _check_types(
        self, path: str | os.PathLike[str], types: dict[str, str], version: int
    ) -> None:
        known = {n: of for n, of in self.arrays.items() if self.since.get(n, 1) <= version}
        if types.keys() != known.keys():
            named = ", ".join(map(repr, sorted(known)))
            raise self.wrong(
                path, f"is malformed: it holds the tensors {sorted(types)}, not just {named}"
            )
        for name, allowed in known.items():
            if types[name] not in allowed:
                wanted = " or ".join(allowed)
                raise self.wrong(
                    path, f"is mis-shaped: {name} has type {types[name]}, not {wanted}"
                )

    def _sum_of(self, arrays: Mapping[str, Array]) -> str:
        return sum_of_arrays(arrays, named=not self.sums_inside)


_HEADER_SUM = "header_sha256"


def sum_of_arrays(arrays: Mapping[str, Array], *, named: bool = True) -> str:
    """SHA-256 (hex) of arrays in the order of their names, with names and shapes if `named`."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        if named:
            digest.update(f"{name}{tuple(array.shape)}".encode())
        digest.update(_content(array))
    return digest.hexdigest()


def sum_of_text(text: str) -> str:
    """SHA-256 (hex) of a text as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sum_of_fields(fields: Mapping[str, Any], *, but: str) -> str:
    """SHA-256 (hex) of all fields but one, as JSON with sorted keys and no spaces."""
    others = {name: value for name, value in fields.items() if name != but}
    return sum_of_text(json.dumps(others, sort_keys=True, separators=(",", ":")))


def _content(array: Array) -> Any:
    """The bytes of a contiguous array, not copied where it is on the CPU."""
    if isinstance(array, np.ndarray):
        return array.data
    import torch

    return array.reshape(-1).view(torch.uint8).numpy().data


def _to_safetensors(
    arrays: Mapping[str, Array], metadata: dict[str, str], framework: str
) -> bytes:
    library = import_module(f"safetensors.{'numpy' if framework == 'numpy' else 'torch'}")
    content: bytes = library.save(dict(arrays), metadata=metadata)
    return content


def _why_refused(path: str | os.PathLike[str], name: str, error: Exception) -> str:
    """What it means that safetensors refuses a file: it does not say which of these it is."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8:
            return f"is truncated or not a {name}: {size} bytes in all"
        if length > _MAX_HEADER:
            return f"is not a {name}: it does not start as a safetensors file does"
        if size < 8 + length:
            return (
                f"is truncated or not a {name}: it ends at byte {size}, inside its header of "
                f"{length} bytes"
            )
        header = _json(file.read(length))
    try:
        expected = 8 + length + max(_ends(header))
    except (TypeError, ValueError, LookupError, AttributeError):
        return f"is not a {name}, or its header is altered: {error}"
    if size != expected:
        state = "truncated or altered" if size < expected else "followed by foreign bytes"
        return f"is {state}: {size} bytes where {expected} are expected"
    return f"is altered: {error}"


def _ends(header: Any) -> Iterable[int]:
    """Where the tensors of a safetensors header end."""
    return (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")


def _json(text: str | bytes) -> Any:
    """The value that `text` holds, or None where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


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
