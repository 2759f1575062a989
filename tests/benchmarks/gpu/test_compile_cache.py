"""Compiled forms from one machine's cache are found in that of another, whose Triton differs."""

import json
import os
import pathlib
import subprocess
import sys
import tarfile
import time

import pytest

pytest.importorskip("triton")
from benchmarks.gpu import compile_cache
from sparsebert.kernels.codegen import KERNELS
from tests import ROOT
from tests.benchmarks.gpu.rows import Rows

CALL = """
import json, os, pathlib, sys, time
import torch, triton
from benchmarks.gpu import compile_cache
from benchmarks.kernels.band import band_program
from sparsebert.kernels import attention, launch
from sparsebert.kernels.stub_driver import StubDriver
triton.runtime.driver.set_active(StubDriver())
launch.architecture = lambda device: "sm90"
heard = []
def listener(*, src, cache_hit, **others):
    heard.append(cache_hit)
triton.knobs.compilation.listener = listener

def call(options):
    q, k, v = (torch.zeros(1, 48, 2, 16).bfloat16().transpose(1, 2) for _ in range(3))
    attention.forward(q, k, v, band_program(48, (16,), parts=3), options)
    return heard

archive = pathlib.Path(sys.argv[1])
"""
HERE = """
with compile_cache.keys_asked_for() as rests:
    call(attention.Options(0.25))
folder = pathlib.Path(os.environ["TRITON_CACHE_DIR"])
print(json.dumps([compile_cache.pack(folder, rests, archive), heard]))
"""
THERE = """
from triton.runtime import cache
from triton.compiler import compiler
library = compile_cache.library_hash()
other = cache.triton_key().replace(library, "0" * 64)  # as if built for another Python
cache.triton_key = lambda: other
compile_cache.library_hash = lambda: "0" * 64
count, why = compile_cache.unpack_archive(archive, end=time.monotonic() + 60)
print(json.dumps([count, call(attention.Options(0.25))]))
"""


def in_process(code: str, archive: pathlib.Path, cache: pathlib.Path) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-c", CALL + code, str(archive)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


def test_forms_are_found_under_the_key_of_another_build_of_triton(tmp_path):
    archive = tmp_path / "kernels.tar.xz"
    count, hits = in_process(HERE, archive, tmp_path / "here")
    assert count == len(hits) >= 2 and not any(hits)
    again, hits = in_process(THERE, archive, tmp_path / "there")
    assert again == count and hits == [True] * count
    names = {path.name for path in (tmp_path / "there").iterdir()}
    assert names.isdisjoint(path.name for path in (tmp_path / "here").iterdir())


def made_up(
    folder: pathlib.Path, archive: pathlib.Path, count: int = 3, first: tuple[str, ...] = ()
) -> None:
    """An archive of forms that no compiler made."""
    rests = {}
    for number in range(count):
        rest = f"-made-up-{number}"
        of_form = folder / f"FORM{number}"
        of_form.mkdir(parents=True)
        for name in ("merge_kernel.json", "merge_kernel.cubin", "merge_kernel.ptx"):
            (of_form / name).write_text(f"{name} {number}")
        (of_form / "__grp__merge_kernel.json").write_text("{}")
        rests[of_form.name] = rest
    assert compile_cache.pack(folder, rests, archive, first=first) == count


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Triton's cache and the archive in a folder of the test's own."""
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(compile_cache, "FOLDER", tmp_path / "cache")
    monkeypatch.setattr(compile_cache, "ARCHIVE", tmp_path / "kernels.tar.xz")
    return tmp_path / "cache"


def test_what_is_needed_first_is_unpacked_first(cache, tmp_path):
    made_up(tmp_path / "made", compile_cache.ARCHIVE, first=("FORM2",))
    with tarfile.open(compile_cache.ARCHIVE) as file:
        first, *members = file.getmembers()
        manifest = json.loads(file.extractfile(first).read())
    folders = [member.name.partition("/")[0] for member in members]
    rests = {entry["folder"]: entry["rest"] for entry in manifest["entries"]}
    order = [rests[folder] for folder in dict.fromkeys(folders)]
    assert order == [f"-made-up-{number}" for number in (2, 0, 1)]


def test_the_phase_unpacks_and_counts_what_nobody_foresaw(cache, tmp_path):
    made_up(tmp_path / "made", compile_cache.ARCHIVE)
    rows = Rows()
    compile_cache.unpack(30.0, rows)
    assert rows.only()["passed"] is True and rows.only()["unpacked"] == 3
    assert len(compile_cache.forms()) == 3
    folder, name = next(iter(compile_cache.forms().items()))
    kept = sorted(path.name for path in (cache / folder).iterdir())
    assert name == "merge_kernel" and "merge_kernel.ptx" not in kept and len(kept) == 3
    group = json.loads((cache / folder / "__grp__merge_kernel.json").read_text())["child_paths"]
    assert all(pathlib.Path(path).is_file() for path in group.values()) and len(group) == 2

    compile_cache.mark_known()
    (cache / "NEW").mkdir()
    (cache / "NEW" / "__grp__merge_kernel.json").write_text("{}")
    rows = Rows()
    compile_cache.count_new(5.0, rows)
    assert rows.only()["new"] == 1 and rows.only()["kernels"] == {"merge_kernel": 1}


def test_without_an_archive_the_kernels_are_compiled(cache):
    rows = Rows()
    compile_cache.unpack(30.0, rows)
    assert rows.only()["passed"] is None and "no archive" in rows.only()["why"]
    assert os.environ["TRITON_CACHE_DIR"] == str(cache)


def test_an_archive_of_another_triton_is_left_alone(cache, tmp_path, monkeypatch):
    ours = compile_cache.triton_files()
    with monkeypatch.context() as patch:
        patch.setattr(compile_cache, "triton_files", lambda: ours | {"python_files": "others"})
        made_up(tmp_path / "made", compile_cache.ARCHIVE)
    rows = Rows()
    compile_cache.unpack(30.0, rows)
    assert rows.only()["passed"] is None and "another Triton" in rows.only()["why"]
    assert not compile_cache.forms()


def test_half_an_archive_is_a_row_and_no_error(cache, tmp_path):
    made_up(tmp_path / "made", compile_cache.ARCHIVE, 40)
    whole = compile_cache.ARCHIVE.read_bytes()
    compile_cache.ARCHIVE.write_bytes(whole[: len(whole) // 2])
    rows = Rows()
    compile_cache.unpack(30.0, rows)
    assert rows.only()["passed"] is None and "Error" in rows.only()["why"]


def test_unpacking_ends_in_time(cache, tmp_path):
    made_up(tmp_path / "made", compile_cache.ARCHIVE)
    count, why = compile_cache.unpack_archive(compile_cache.ARCHIVE, end=time.monotonic() - 1.0)
    assert count == 0 and "out of time after 0 of 3" in why


def test_a_form_without_a_binary_is_not_packed(tmp_path):
    (tmp_path / "FORM").mkdir()
    (tmp_path / "FORM" / "merge_kernel.json").write_text("{}")
    with pytest.raises(ValueError, match="FORM"):
        compile_cache.pack(tmp_path, {"FORM": "-rest"}, tmp_path / "a.tar.xz")
    assert not (tmp_path / "a.tar.xz").exists()


def test_counting_without_a_cache_is_a_row(cache):
    rows = Rows()
    compile_cache.count_new(5.0, rows)
    assert rows.only()["passed"] is None and rows.only()["why"] == "nothing was compiled ahead"


def test_all_kernels_are_counted():
    assert set(compile_cache.KERNELS) == {kernel.__name__ for kernel in KERNELS.values()}


def test_the_archive_begins_with_what_it_holds(cache, tmp_path):
    made_up(tmp_path / "made", compile_cache.ARCHIVE)
    with tarfile.open(compile_cache.ARCHIVE) as file:
        assert file.getnames()[0] == "manifest.json"
