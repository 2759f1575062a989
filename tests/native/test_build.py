"""How the library is built: of what, by whom, what it lets out, and what is said if it fails."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sparsebert.kernels.cpu import build
from tests.native import toys

Output = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small sources in place of the real ones."""
    toys.compiler()
    made = toys.sources(tmp_path / "sources")
    monkeypatch.setattr(build, "FOLDER", made)
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / build.LIBRARY


def fake_compiler(path: Path, target: str, refused: str = "none") -> str:
    """A script that calls the real compiler, says it is for `target`, and refuses a flag."""
    real = " ".join(toys.compiler())
    path.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *-dumpmachine*) echo {target}; exit 0;; *{refused}*) exit 1;; esac\n'
        f'exec {real} "$@"\n',
        encoding="utf-8",
    )
    path.chmod(0o755)
    return str(path)


# ------------------------------------------------------------------------------ what is built


def test_a_build_says_what_it_is_of(folder: Path, out: Path) -> None:
    built = build.build(out)
    compiler = build.Compiler.find()
    content = out.read_bytes()
    assert build.is_sealed(content)
    about = f"sources={build.source_hash(folder)}; compiler={compiler.name}"
    about += f"; target={compiler.target}"
    assert about.encode() + b"\0" in content
    assert built.path == out and built.compiler == compiler.name and built.seconds > 0
    assert list(out.parent.iterdir()) == [out]


def test_instruction_sets_are_those_of_the_target(folder: Path, out: Path, tmp_path: Path) -> None:
    for target, isas in (
        ("aarch64-linux-gnu", ("neon", "generic")),
        ("riscv64-linux-gnu", ("generic",)),
    ):
        cxx = fake_compiler(tmp_path / target, target)
        assert build.build(out, cxx=cxx, force=True).isas == isas


def test_units_name_each_set_once_best_first() -> None:
    for units in build.UNITS.values():
        names = [unit.isa for unit in units]
        assert len({*names}) == len(names) and names[-1] == "generic"


def test_a_set_that_the_compiler_does_not_know_is_left_out(
    folder: Path, out: Path, tmp_path: Path
) -> None:
    """It alone, and it is said."""
    shutil.copy(folder / "attention.cpp", folder / "attention_bf16.cpp")
    target = build.Compiler.find().target
    if not target.startswith("x86_64"):
        pytest.skip(f"needs a compiler for x86-64, not for {target}")
    cxx = fake_compiler(tmp_path / "old", target, refused="-mavx512bf16")
    built = build.build(out, cxx=cxx)
    assert (built.isas, built.left_out) == (("avx512", "avx2", "generic"), ("avx512_bf16",))
    assert "avx512 avx2 generic, without avx512_bf16; by " in str(built)


def test_only_the_interface_is_let_out(folder: Path, out: Path) -> None:
    """Neither a function of C++'s library nor one that has another name."""
    build.build(out)
    assert exported(out) == declared()


def exported(path: Path) -> set[str]:
    if shutil.which("nm") is None:
        pytest.skip("needs nm (binutils)")
    told = subprocess.run(
        ["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[-1] for line in told.splitlines()}


def declared() -> set[str]:
    abi = (Path(build.__file__).parent / "abi.h").read_text(encoding="utf-8")
    return set(re.findall(r"\b(sparsebert_cpu_\w+)\(", abi))


# ------------------------------------------------------------------------------ when it is built


def test_it_is_built_when_something_changed(folder: Path, out: Path, tmp_path: Path) -> None:
    assert build.build(out).seconds > 0
    again = build.build(out)
    assert again.seconds == 0 and str(again).endswith("is up to date")
    assert build.build(out, force=True).seconds > 0
    (folder / "attention.cpp").write_text(f"{toys.ATTENTION}// more\n", encoding="utf-8")
    assert build.build(out).seconds > 0
    out.write_bytes(out.read_bytes()[:-100])
    assert build.build(out).seconds > 0
    assert build.build(out, isas=["generic"]).seconds > 0
    assert build.build(out).seconds > 0
    out.unlink()
    assert build.build(out).seconds > 0


def test_the_hash_is_of_names_contents_and_flags(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [build.source_hash(folder)]
    (folder / "attention.cpp").rename(folder / "other.cpp")
    seen.append(build.source_hash(folder))
    (folder / "other.cpp").write_text("", encoding="utf-8")
    seen.append(build.source_hash(folder))
    monkeypatch.setattr(build, "COMMON_FLAGS", ("-O2",))
    seen.append(build.source_hash(folder))
    assert len({*seen}) == 4
    (folder / "notes.md").write_text("no source", encoding="utf-8")
    assert build.source_hash(folder) == seen[-1]
    assert re.fullmatch(r"[0-9a-f]{16}", seen[-1])
    assert build.source_hash(folder / "nothing") == ""


def test_a_build_that_fails_leaves_the_library_as_it_was(folder: Path, out: Path) -> None:
    build.build(out)
    before = out.read_bytes()
    (folder / "attention.cpp").write_text("#error broken here\n", encoding="utf-8")
    with pytest.raises(build.BuildError, match=r"(?s)attention\.cpp.*broken here"):
        build.build(out)
    assert out.read_bytes() == before and list(out.parent.iterdir()) == [out]


def test_warnings_are_errors_if_asked(folder: Path, out: Path) -> None:
    """Not in a user's installation, whose compiler may know more of them."""
    with (folder / "attention.cpp").open("a", encoding="utf-8") as file:
        file.write("static int unused;\n")
    build.build(out)
    with pytest.raises(build.BuildError, match="unused"):
        build.build(out, strict=True)


# ------------------------------------------------------------------------------ what can be wrong


@pytest.mark.parametrize("cxx", ["/bin/false", "no-such-compiler", "/bin/true"])
def test_a_compiler_that_does_not_run(cxx: str, folder: Path, out: Path) -> None:
    with pytest.raises(
        build.BuildError, match=f"'{cxx}' does not run; install one \\(apt install"
    ):
        build.build(out, cxx=cxx)
    assert not out.exists()


def test_no_compiler(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.BuildError, match=r"there is no C\+\+ compiler; install one"):
        build.build(out)


def test_the_compiler_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    (real, *_) = toys.compiler()
    monkeypatch.setenv("CXX", f"env {real}")
    assert build.Compiler.find().command == ("env", real)
    monkeypatch.setenv("CXX", "/bin/false")
    assert build.Compiler.find(real).command == (real,)


def test_another_system(folder: Path, out: Path, tmp_path: Path) -> None:
    cxx = fake_compiler(tmp_path / "cxx", "arm64-apple-darwin23")
    with pytest.raises(
        build.BuildError, match="for Linux, not for arm64-apple-darwin23; the torc"
    ):
        build.build(out, cxx=cxx)


def test_a_system_without_any(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    """It is not told to install a compiler, which would not help."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(build.BuildError, match="for Linux, not for win32; the torch executor"):
        build.build(out)


def test_no_sources(folder: Path, out: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(build.BuildError, match="there are no sources in"):
        build.build(out)


def test_no_such_instruction_set(folder: Path, out: Path) -> None:
    with pytest.raises(
        build.BuildError, match=r"no instruction set 'mmx' for .*; it has .*generic"
    ):
        build.build(out, isas=["generic", "mmx"])


def test_a_place_that_cannot_be_written_to(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(build.BuildError, match="cannot write"):
        build.build(tmp_path / "file" / build.LIBRARY)


# ------------------------------------------------------------------------------ the command


def test_command(folder: Path, out: Path, capsys: Output) -> None:
    assert build.main(["--out", str(out), "--isas", "generic"]) == 0
    assert re.fullmatch(
        rf"sparsebert: native CPU kernels: {out}: generic; by .* in \d+ s\n",
        capsys.readouterr().out,
    )
    assert build.main(["--out", str(out), "--cxx", "/bin/false"]) == 1
    assert "the native CPU kernels are not built: the C++ comp" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wish", "cxx", "code", "said"),
    [
        ("", "", 0, "native CPU kernels: "),
        ("1", "", 0, "native CPU kernels: "),
        ("0", "", 0, "are not built, by SPARSEBERT_NATIVE=0"),
        ("", "/bin/false", 0, "torch operations run instead, slower: the C++ compiler"),
        ("1", "/bin/false", 1, "are not built: the C++ compiler"),
        ("yes", "", 1, "SPARSEBERT_NATIVE must be 0 (do not build"),
    ],
)
def test_it_goes_by_the_wish(
    wish: str, cxx: str, code: int, said: str, folder: Path, out: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Output,
) -> None:  # fmt: skip
    monkeypatch.setenv(build.VARIABLE, wish)
    if cxx:
        monkeypatch.setenv("CXX", cxx)
    assert build.main(["--if-possible", "--out", str(out)]) == code
    told = capsys.readouterr()
    (line,) = [*told.out.splitlines(), *told.err.splitlines()]
    assert said in line
    assert out.exists() == (not cxx and wish in ("", "1"))


# ------------------------------------------------------------------------------ the real library


@pytest.fixture(scope="module")
def real() -> Path:
    """The checkout's library, as it should be now."""
    path = build.FOLDER / build.LIBRARY
    if not path.is_file() or build.source_hash().encode() not in path.read_bytes():
        pytest.skip("needs the native library: make native")
    return path


def test_the_real_library_lets_out_its_interface_only(real: Path) -> None:
    assert exported(real) == declared()


def test_an_old_processor_meets_no_new_instruction(real: Path) -> None:
    """Outside of the kernels for AVX there is none of it, in shared inline functions neither."""
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump (binutils)")
    if not build.Compiler.find().target.startswith("x86_64"):
        pytest.skip("needs a library for x86-64")
    told = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(real)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    function, wrong, kernels = "", set(), set()
    for line in told.splitlines():
        if named := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            function = named[1]
        elif re.match(r"\s+[0-9a-f]+:\s+v[a-z]|.*%[yz]mm", line):
            (kernels if "sb::avx" in function else wrong).add(function)
    assert not wrong
    assert kernels
