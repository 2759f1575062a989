"""A library that is missing, damaged or foreign is never called, and who asks hears why."""

from __future__ import annotations

import multiprocessing
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparsebert.kernels.cpu import build, library
from tests.native.toys import toy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / build.LIBRARY


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What this process found is forgotten before and after."""
    library.load.cache_clear()
    yield
    library.load.cache_clear()


def test_the_version_is_that_of_the_interface() -> None:
    abi = (build.FOLDER / "abi.h").read_text(encoding="utf-8")
    assert re.findall(r"^#define SPARSEBERT_CPU_VERSION (\d+)$", abi, re.M) == [
        str(library.VERSION)
    ]


def test_a_library_that_can_be_used(path: Path) -> None:
    found = library.examine(toy(path))
    assert found.library is not None and found.reason == "" and not found.broken
    assert (found.isas, found.isa, found.features) == (("avx2", "generic"), "avx2", ("bf16",))
    assert found.build == {"sources": "0123456789abcdef", "compiler": "cc 1"}
    assert found.path == path and found.parallel_for > 0
    assert found.library.sparsebert_cpu_scratch(None, 0) == 0


def test_missing(path: Path) -> None:
    found = library.examine(path)
    assert found.library is None and not found.broken
    assert f"there is no {path}; run `make native`, which needs a C++ compiler" in found.reason


def test_missing_where_nobody_can_make_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert library.examine(path).reason == "their library is made for Linux alone"


def test_missing_in_an_installed_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "source_hash", lambda *folder: "")
    reason = library.examine(path).reason
    assert "install sparsebert again: pip install" in reason and "apt install g++" in reason


@pytest.mark.parametrize("damage", ["cut", "one bit", "text", "empty", "longer"])
def test_damaged(path: Path, damage: str) -> None:
    """Seen before the system's loader reads it: what was cut short would crash there."""
    whole = toy(path).read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    damaged = {"cut": whole[:5000], "one bit": bytes(changed), "text": b"no library", "empty": b""}
    path.write_bytes(damaged.get(damage, whole + b"\0"))
    found = library.examine(path)
    assert found.library is None and found.broken
    assert "is damaged: its checksum does not match; run `make native`" in found.reason


def test_a_folder_in_its_place(path: Path) -> None:
    path.mkdir()
    found = library.examine(path)
    assert found.broken and "cannot be read (Is a directory)" in found.reason


def test_whole_but_no_library(path: Path) -> None:
    path.write_bytes(build.sealed(b"\x7fELF" + bytes(1000)))
    found = library.examine(path)
    assert found.broken and f"{path} cannot be loaded (" in found.reason


def test_a_function_is_missing(path: Path) -> None:
    found = library.examine(toy(path, last="something_else"))
    assert found.library is None and found.broken
    assert "sparsebert_cpu_backward" in found.reason and "cannot be loaded" in found.reason


def test_another_version(path: Path) -> None:
    found = library.examine(toy(path, version=library.VERSION + 1))
    assert found.library is None and found.broken
    assert (
        f"has version {library.VERSION + 1} of the interface, this sparsebert needs "
        f"{library.VERSION}; run `make native`" in found.reason
    )


def test_stale(path: Path) -> None:
    """Sources beside the library that it was not built of; none at all, as installed, are fine."""
    (path.parent / "driver.cpp").write_text("int x;\n", encoding="utf-8")
    hashed = build.source_hash(path.parent)
    assert library.examine(toy(path, sources=hashed)).library is not None
    (path.parent / "driver.cpp").write_text("int y;\n", encoding="utf-8")
    found = library.examine(path)
    assert found.library is None and found.broken
    assert "was not built of the sources beside it; run `make native`" in found.reason
    assert found.build["sources"] == hashed


def test_torch_without_its_function(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(path)
    monkeypatch.setattr(torch, "__file__", str(path.parent / "__init__.py"))
    found = library.examine(path)
    assert found.library is None and not found.broken
    assert f"torch {torch.__version__} has no torch_parallel_for" in found.reason


# ------------------------------------------------------------------------------ instruction sets


def test_a_forced_instruction_set(path: Path) -> None:
    assert library.examine(toy(path), "generic").isa == "generic"


@pytest.mark.parametrize("isa", ["neon", "avx512"])
def test_an_instruction_set_that_this_processor_lacks(path: Path, isa: str) -> None:
    words = f"SPARSEBERT_CPU_ISA must be one of avx2, generic, .*got '{isa}'; unset it"
    with pytest.raises(ValueError, match=words):
        library.examine(toy(path), isa)


def test_no_such_instruction_set(path: Path) -> None:
    """Whether there is a library or not."""
    words = "must be one of avx512, avx2, neon, generic, .*got 'AVX2'"
    with pytest.raises(ValueError, match=words):
        library.examine(path, "AVX2")


@pytest.mark.usefixtures("forgotten")
def test_the_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "mmx")
    with pytest.raises(ValueError, match="got 'mmx'"):
        library.load()
    with pytest.raises(ValueError, match="got 'mmx'"):
        library.load()


# ------------------------------------------------------------------------------ once a process


@pytest.mark.usefixtures("forgotten")
def test_it_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []

    def examine(path: Path, isa: str) -> library.Native:
        looked.append(path)
        return library.Native(path)

    monkeypatch.setattr(library, "examine", examine)
    assert library.load() is library.load()
    assert looked == [build.FOLDER / build.LIBRARY]


@pytest.mark.usefixtures("forgotten")
def test_a_forked_process_has_what_its_parent_had(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = library.examine(toy(path))
    monkeypatch.setattr(library, "examine", lambda *where: found)
    assert library.load() is found
    fork = multiprocessing.get_context("fork")
    with fork.Pool(1) as pool:
        version, isa = pool.apply(_of_child)
    assert (version, isa) == (library.VERSION, found.isa)


def _of_child() -> tuple[int, str]:
    found = library.load()
    assert found.library is not None
    return found.library.sparsebert_cpu_version(), found.isa


@pytest.mark.parametrize(("platform", "times"), [("linux", 1), ("darwin", 0)])
def test_who_asks_hears_once(platform: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing where nobody can do anything about it."""
    monkeypatch.setattr(library, "load", lambda: library.Native(Path("x"), reason="why; remedy"))
    monkeypatch.setattr(library, "_warned", [])
    monkeypatch.setattr("sys.platform", platform)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        library.warn_once()
        library.warn_once()
    said = [str(warning.message) for warning in heard]
    assert said == times * [
        "the native CPU kernels cannot be used, torch operations run instead, slower: why; remedy"
    ]


def test_nothing_is_said_of_a_library_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: library.Native(Path("x")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        library.warn_once()
