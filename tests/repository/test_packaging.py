"""The package as a whole: what importing costs, where the kernels are, what gets installed."""

import doctest
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import sparsebert
from tests import ROOT

MODULES = [
    "sparsebert",
    *sorted(
        module.name
        for module in pkgutil.walk_packages(sparsebert.__path__, "sparsebert.")
        if not module.name.startswith(("sparsebert.kernels", "sparsebert.__main__"))
    ),
]
KERNELS = sorted(
    path.relative_to(ROOT / "kernels").as_posix() for path in (ROOT / "kernels").rglob("*.py")
)


def python(code: str, cwd: Path, *path: Path) -> str:
    """Run code in a fresh interpreter that sees `cwd` first, then `path`; its output."""
    start = f"import sys; sys.path[1:1] = {[str(entry) for entry in path]}\n"
    run = subprocess.run(
        [sys.executable, "-c", start + code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_import_is_light() -> None:
    heavy = ["transformers", "triton", "matplotlib", "torch", "numpy"]
    code = f"import sparsebert; print([name for name in {heavy} if name in sys.modules])"
    assert python(code, ROOT) == "[]"


def test_masks_plan_and_op_need_no_optional_package() -> None:
    code = """
sys.modules.update(dict.fromkeys(["transformers", "triton", "matplotlib"]))  # import fails
import sparsebert as sb, torch
q, k, v = torch.randn(3, 1, 2, 70, 8)
mask = sb.patterns.star(70)
print(tuple(sb.sparse_attention(q, k, v, sb.compile_plan(mask)).shape))
sb.SparseSelfAttention(8, 2, mask)(torch.randn(1, 70, 8))
"""
    assert python(code, ROOT) == "(1, 2, 70, 8)"


WITHOUT = """
import contextlib, inspect, io, sys
blocked = {"transformers", "triton", "matplotlib", "accelerate", "datasets", "tokenizers"}
sys.modules.update(dict.fromkeys(blocked))  # import fails
import sparsebert as sb
from sparsebert import *
"""


def test_everything_can_be_listed_and_helped_without_optional_packages() -> None:
    code = (
        WITHOUT
        + """
names = [name for name in sb.__all__ if name != "__version__"]
assert set(names) <= set(dict(inspect.getmembers(sb)))
assert all(name in globals() for name in names)
assert all(inspect.getdoc(getattr(sb, name)) for name in names)
shown = io.StringIO()
with contextlib.redirect_stdout(shown):
    help(sb)
    help("sparsebert")
    help(sb.sparsify)
assert shown.getvalue().count("sparsebert.sparsify needs transformers") >= 3
assert inspect.isclass(sb.DAMTrainer) and issubclass(sb.DAMTrainer, object)
print(sb.patterns.star(8))
"""
    )
    assert python(code, ROOT).startswith("<AttentionMask star")


def test_what_needs_a_missing_package_says_how_to_install_it() -> None:
    code = (
        WITHOUT
        + """
said = []
for name in ("sparsify", "densify", "save_masks", "load_masks", "attach_dam", "detach_dam",
             "DAMTrainer"):
    for function in (getattr(sb, name), globals()[name]):
        try:
            function(None, masks=None)
        except ImportError as error:
            extra = "train" if name == "DAMTrainer" else "hf"
            assert error.name in blocked
            assert str(error) == (
                f"sparsebert.{name} needs {error.name}: pip install 'sparsebert[{extra}]'"
            ), error
        else:
            raise AssertionError(name)
for name in blocked:  # installed meanwhile
    del sys.modules[name]
assert "needs transformers" not in sb.sparsify.__doc__, sb.sparsify.__doc__
try:
    sb.sparsfy
except AttributeError as error:
    print(error)
"""
    )
    assert python(code, ROOT) == "module 'sparsebert' has no attribute 'sparsfy'"


def test_a_broken_module_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sparsebert._HOME, "sparsify", "sparsebert.no_such_module")
    monkeypatch.delitem(vars(sparsebert), "sparsify", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        _ = sparsebert.sparsify


def test_every_public_name_resolves() -> None:
    for name in sparsebert.__all__:
        assert getattr(sparsebert, name) is not None
    assert dir(sparsebert) == sorted(sparsebert.__all__)
    assert {*sparsebert._HOME, "__version__"} == set(sparsebert.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'sparse_attentoin'"):
        _ = sparsebert.sparse_attentoin


def test_kernels_is_no_regular_package() -> None:
    """A regular package called kernels would shadow HuggingFace's and break transformers."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_transformers_imports_beside_our_kernels_folder() -> None:
    code = "import transformers; from transformers import BertModel; print(BertModel.__name__)"
    assert python(code, ROOT) == "BertModel"


@pytest.mark.parametrize("file", KERNELS)
def test_checkout_finds_the_kernels(file: str) -> None:
    from importlib.util import find_spec

    spec = find_spec("sparsebert.kernels." + ".".join(Path(file).with_suffix("").parts))
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin) == ROOT / "kernels" / file


def test_built_package_is_complete(tmp_path: Path) -> None:
    """What `pip install .` would copy: all modules and data, the kernels, not the shim.

    Nor a native library that lies in the checkout; tests/native/test_install.py builds it anew.
    """
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("sparsebert", "kernels"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    (source / "kernels" / "cpu" / "libsparsebert_cpu.so").touch()
    built = tmp_path / "built"
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build", f"--build-lib={built}"],
        cwd=source, env={**os.environ, "SPARSEBERT_NATIVE": "0"}, check=True, capture_output=True,
    )  # fmt: skip

    shim = Path("sparsebert/kernels/__init__.py")
    expected = {path.relative_to(source) for path in source.glob("sparsebert/**/*.*")} - {shim}
    expected |= {Path("sparsebert/kernels") / name for name in KERNELS}
    installed = {path.relative_to(built) for path in built.glob("**/*.*")}
    assert installed == expected

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import sparsebert.cli, sparsebert.kernels as k; print(list(k.__path__))"
    assert python(code, elsewhere, built) == str([str(built / "sparsebert" / "kernels")])


def test_source_archive_is_complete(tmp_path: Path) -> None:
    """What the tests need is in it, too: the scripts to copy, and the committed results."""
    pytest.importorskip("setuptools")
    source, folders = tmp_path / "source", ("benchmarks", "docs", "examples", "tests")
    source.mkdir()
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, source)
    for name in (*folders, "sparsebert", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    expected = {
        path.relative_to(source)
        for name in (*folders, "kernels")
        for path in source.glob(f"{name}/**/*.*")
        if path.suffix != ".so"
    }
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "sdist", "--formats=tar"],
        cwd=source, check=True, capture_output=True,
    )  # fmt: skip
    (archive,) = (source / "dist").iterdir()
    with tarfile.open(archive) as file:
        held = {Path(*Path(name).parts[1:]) for name in file.getnames()}
    assert not expected - held


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_version_is_written_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", sparsebert.__version__)
    assert not re.search(r'version="\d', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert f"## {sparsebert.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def readme_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_readme_quick_start_runs(tmp_path: Path) -> None:
    start, learn = readme_blocks("python")
    assert "plan for 1 head(s)" in python(start, tmp_path, ROOT)
    python(learn, tmp_path, ROOT)
    assert (tmp_path / "out" / "model" / "sparsebert_masks.safetensors").is_file()


@pytest.mark.slow
def test_readme_python_passes_mypy(tmp_path: Path) -> None:
    """As a user's own code would: sparse_attention's result is one tensor unless LSE is asked."""
    pytest.importorskip("mypy")
    files = [tmp_path / f"readme_{place}.py" for place in range(len(readme_blocks("python")))]
    for file, block in zip(files, readme_blocks("python"), strict=True):
        file.write_text(block, encoding="utf-8")
    check = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", *map(str, files)]
    run = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_readme_commands_exist() -> None:
    """Every make target and every sparsebert command that the README shows."""
    from sparsebert.cli import main

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = "\n".join(readme_blocks("sh"))
    targets = set(re.findall(r"^make ([a-z]+)", shown, re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    commands = set(re.findall(r"^sparsebert ([a-z]+)", shown, re.MULTILINE))
    assert commands
    for command in commands:
        assert main([command, "--help"]) == 0
