"""A part of Triton's compile cache as one file, to be made on one machine and used on another.

`python -m benchmarks.gpu.build_cache` (`make gpu-cache`) makes it. Triton names a compiled
form by a hash of its key: Triton's own part, which is the contents of its files, then the kernel's
source, its arguments' types, the options, the version of ptxas. The first part is not the same for
two builds of one version, since it holds the compiled library, one for each version of Python. So
the file keeps the rest of each key, and what unpacks it puts its own Triton's part before it. That
is right only if both are the same Triton: the same version, and the same Python files.

This module imports neither Triton nor torch, so that `environment` can be set before they are.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import pathlib
import tarfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from benchmarks.harness.errors import in_words
from benchmarks.harness.origin import CARRIED, ROOT

ARCHIVE = CARRIED / "kernels.tar.xz"
FOLDER = ROOT / "build" / "triton-cache"
"""Triton's cache while a GPU is tried."""
_INDUCTOR = ROOT / "build" / "inductor-cache"
_MANIFEST = "manifest.json"
_KNOWN = "known.json"
KERNELS = ("forward_kernel", "dq_kernel", "dkdv_kernel", "merge_kernel")
"""What is counted: this project's kernels, as they are called in their files."""
_KEPT = (".json", ".cubin")
"""What a launch needs of a compiled form."""


def environment() -> dict[str, str]:
    """What lets processes keep under build/ what Triton and torch.compile make."""
    return {"TRITON_CACHE_DIR": str(FOLDER), "TORCHINDUCTOR_CACHE_DIR": str(_INDUCTOR)}


def unpack(seconds: float, record: Any) -> None:
    """Phase: put the carried forms into this machine's cache; a row says how many, or why not.

    Without an archive, or with one of another Triton, the kernels are compiled as they are needed.
    """
    os.environ |= environment()
    start = time.monotonic()
    row: dict[str, object] = {"check": "compile cache", "passed": None, "unpacked": 0}
    try:
        count, why = unpack_archive(ARCHIVE, end=start + seconds)
        row |= {"passed": True if count else None, "unpacked": count, "why": why}
    except Exception as error:  # whatever is wrong with it, the kernels can be compiled
        row["why"] = in_words(error)
    record.add(row | {"seconds": round(time.monotonic() - start, 2)})


def count_new(seconds: float, record: Any) -> None:
    """Phase: how many forms were compiled since `mark_known`; those, no list foresaw."""
    row: dict[str, object] = {"check": "compile cache", "passed": None}
    try:
        known = set(json.loads((FOLDER / _KNOWN).read_text(encoding="utf-8")))
        new = {name: kernel for name, kernel in forms().items() if name not in known}
        kernels = {
            kernel: list(new.values()).count(kernel) for kernel in sorted(set(new.values()))
        }
        told = ", ".join(f"{count} of {kernel}" for kernel, count in kernels.items())
        row |= {"passed": True, "new": len(new), "kernels": kernels}
        row["why"] = f"{len(new)} forms that were not foreseen{': ' if told else ''}{told}"
    except FileNotFoundError:
        row["why"] = "nothing was compiled ahead"
    except Exception as error:
        row["why"] = in_words(error)
    record.add(row)


def mark_known() -> None:
    """Remember which forms the cache holds now."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / _KNOWN).write_text(json.dumps(sorted(forms())), encoding="utf-8")


def forms(folder: pathlib.Path | None = None) -> dict[str, str]:
    """The compiled forms of this project's kernels in a cache: name of the folder -> kernel."""
    found = {}
    for name in KERNELS:
        for group in (folder or FOLDER).glob(f"*/__grp__{name}.json"):
            found[group.parent.name] = name
    return found


@contextlib.contextmanager
def keys_asked_for() -> Iterator[dict[str, str]]:
    """Fills a dictionary with every form that this process asks Triton for.

    It holds name of the form's folder -> the rest of its key, after Triton's own part.
    """
    from triton.compiler import compiler
    from triton.runtime.cache import triton_key

    found: dict[str, str] = {}
    original, own = compiler.get_cache_key, triton_key()

    def remembered(*arguments: object, **named: object) -> str:
        key = str(original(*arguments, **named))
        assert key.startswith(own)
        found[folder_of(key)] = key[len(own) :]
        return key

    compiler.get_cache_key = remembered
    try:
        yield found
    finally:
        compiler.get_cache_key = original


def pack(
    folder: pathlib.Path,
    rests: Mapping[str, str],
    archive: pathlib.Path,
    *,
    first: Collection[str] = (),
) -> int:
    """Write the compiled forms of a cache into one file; how many they are.

    Args:
        folder: Triton's cache.
        rests: name of a form's folder in it -> its key without Triton's own part.
        archive: the file, replaced.
        first: names of those that are unpacked first, while there is time.

    Raises ValueError for a form without metadata or binary.
    """
    found = {name: _kept_files(folder / name) for name in rests}

    def place(name: str) -> tuple[bool, list[tuple[str, int]]]:
        # Like beside like: it packs a third smaller.
        return name not in first, [(path.name, path.stat().st_size) for path in found[name]]

    order = sorted(found, key=place)
    entries, members = [], []
    for number, name in enumerate(order):
        names = [path.name for path in found[name]]
        entries.append({"folder": str(number), "rest": rests[name], "files": names})
        members += [(f"{number}/{path.name}", path.read_bytes()) for path in found[name]]
    manifest = json.dumps({**triton_files(), "entries": entries}).encode()
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_name(archive.name + ".part")
    with tarfile.open(partial, "w:xz") as file:
        for name, data in [(_MANIFEST, manifest), *members]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    partial.replace(archive)
    return len(entries)


def unpack_archive(archive: pathlib.Path, *, end: float) -> tuple[int, str]:
    """Put the forms of an archive into Triton's cache; how many there are now, and what happened.

    Raises OSError or ValueError for a file that is no such archive.
    """
    from triton.runtime.cache import get_cache_manager, triton_key

    if not archive.exists():
        return 0, "no archive was carried; `make gpu-cache` makes one"
    count = 0
    with tarfile.open(archive, "r:xz") as file:
        first = file.next()
        manifest = json.loads(_read(file, first)) if first else {}
        if not first or first.name != _MANIFEST:
            raise ValueError(f"{archive}: begins with {first and first.name}, not {_MANIFEST}")
        for name, value in triton_files().items():
            if manifest[name] != value:
                return 0, f"made with another Triton: {name} {manifest[name]}, here {value}"
        own, entries = triton_key(), {e["folder"]: e for e in manifest["entries"]}
        for folder, files in _by_folder(file):
            entry = entries[folder]
            if set(files) != set(entry["files"]):
                raise ValueError(f"{archive}: {folder} holds {sorted(files)}")
            if time.monotonic() > end:
                return count, f"out of time after {count} of {len(entries)}"
            digest = hashlib.sha256((own + entry["rest"]).encode()).hexdigest()
            manager = get_cache_manager(digest)
            (metadata,) = [name for name in files if name.endswith(".json")]
            # The group comes last: without it, Triton takes a form for missing.
            paths = {name: manager.put(data, name) for name, data in files.items()}
            manager.put_group(metadata, paths)
            count += 1
    return count, f"{count} compiled forms unpacked"


def triton_files() -> dict[str, str]:
    """What must be the same here and there: Triton's version, and a hash of its Python files."""
    import triton
    from triton.runtime.cache import triton_key

    key, library = triton_key(), library_hash()
    if key.count(library) != 1:
        raise ValueError("triton_key does not hold its library once; this Triton is not known")
    python = hashlib.sha256(key.replace(library, "").encode()).hexdigest()
    return {"triton": triton.__version__, "python_files": python[:16]}


def library_hash() -> str:
    """The hash of Triton's compiled library, which its key holds among those of Python files."""
    from triton._C import libtriton

    return hashlib.sha256(pathlib.Path(libtriton.__file__).read_bytes()).hexdigest()


def folder_of(key: str) -> str:
    """The name of a form's folder in Triton's cache, from its whole key."""
    digest = hashlib.sha256(key.encode()).digest()
    return base64.b32encode(digest).decode().rstrip("=")


def _kept_files(form: pathlib.Path) -> list[pathlib.Path]:
    """What is kept of a compiled form: its binary, then its metadata."""
    names = (path for path in form.iterdir() if not path.name.startswith("__grp__"))
    files = sorted(path for path in names if path.name.endswith(_KEPT))
    if sorted(path.suffix for path in files) != sorted(_KEPT):
        raise ValueError(f"{form}: wants one of each of {_KEPT}, got {files}")
    return files


def _read(file: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = file.extractfile(member)
    if content is None:
        raise ValueError(f"{member.name} is no file")
    return content.read()


def _by_folder(file: tarfile.TarFile) -> Iterable[tuple[str, dict[str, bytes]]]:
    """The members after the first, of one folder at a time, in their order."""
    files: dict[str, bytes] = {}
    current = ""
    while (member := file.next()) is not None:
        folder, _, name = member.name.partition("/")
        if folder != current and files:
            yield current, files
            files = {}
        current = folder
        files[name] = _read(file, member)
    if files:
        yield current, files
