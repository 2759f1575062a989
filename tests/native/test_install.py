"""What installing brings, with a compiler and without, in a fresh environment."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from sparsebert.kernels.cpu import build
from tests.native import toys
from tests.native.environments import Environment, checkout

pytestmark = pytest.mark.slow

# What is there after an installation, and whether attention runs.
LOOK = """
import json, warnings
warnings.simplefilter("ignore")
import torch, sparsebert as sb
from sparsebert.kernels.cpu import library
q, k, v = torch.randn(3, 1, 2, 70, 8)
out = sb.sparse_attention(q, k, v, sb.patterns.star(70), backend="torch")
found = library.load()
print(json.dumps([sb.__file__, list(out.shape), found.isa, found.reason]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment") / "venv")


@pytest.fixture(scope="module")
def compiled() -> None:
    toys.compiler()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkout(tmp_path / "source", toy=True)


def look(environment: Environment) -> tuple[Path, str, str]:
    """Where the package is, which instruction set is in use, and why none is."""
    done = environment.run("python", "-c", LOOK)
    assert done.returncode == 0, done.stdout
    package, shape, isa, reason = json.loads(done.stdout.splitlines()[-1])
    assert shape == [1, 2, 70, 8]
    return Path(package), isa, reason


@pytest.mark.usefixtures("compiled")
def test_with_a_compiler(environment: Environment, source: Path) -> None:
    done = environment.install(str(source))
    assert done.returncode == 0, done.stdout
    package, isa, reason = look(environment)
    assert package.is_relative_to(environment.packages) and (isa, reason) == ("generic", "")
    names = {path.name for path in environment.kernels.iterdir()} - {"__pycache__"}
    assert names == {"build.py", "library.py", build.LIBRARY}
    assert not (source / "kernels" / "cpu" / build.LIBRARY).exists()
    removed = environment.run("python", "-m", "pip", "uninstall", "--yes", "sparsebert")
    assert removed.returncode == 0 and not environment.kernels.exists()


def test_without_a_compiler(environment: Environment, source: Path) -> None:
    """All the same, and the remedy is said while installing and when the kernels are asked for."""
    old = source / "build" / "lib" / "sparsebert" / "kernels" / "cpu" / build.LIBRARY
    old.parent.mkdir(parents=True)
    old.touch()  # of an installation before, when there was a compiler
    done = environment.install("--verbose", str(source), CXX="/bin/false")
    assert done.returncode == 0, done.stdout
    assert "not built, torch operations run instead, slower: the C++ compiler" in done.stdout
    package, isa, reason = look(environment)
    assert package.is_relative_to(environment.packages) and isa == ""
    assert "is not built" in reason and "and install sparsebert again: pip install" in reason
    assert {*environment.kernels.glob("*.*")} == {
        environment.kernels / name for name in ("build.py", "library.py")
    }


def test_without_a_compiler_where_one_is_demanded(environment: Environment, source: Path) -> None:
    done = environment.install(str(source), CXX="/bin/false", SPARSEBERT_NATIVE="1")
    assert done.returncode != 0
    assert "the native CPU kernels cannot be built: the C++ compiler '/bin/false'" in done.stdout


@pytest.mark.usefixtures("compiled")
def test_editable(environment: Environment, source: Path) -> None:
    """The library goes into the checkout."""
    done = environment.install("--editable", str(source))
    assert done.returncode == 0, done.stdout
    package, isa, reason = look(environment)
    assert package == source / "sparsebert" / "__init__.py" and (isa, reason) == ("generic", "")
    assert (source / "kernels" / "cpu" / build.LIBRARY).is_file()


@pytest.mark.usefixtures("compiled")
def test_source_archive(environment: Environment, source: Path) -> None:
    """It holds all that the library is built of."""
    run_setup(source, "sdist")
    (archive,) = (source / "dist").iterdir()
    done = environment.install(str(archive))
    assert done.returncode == 0, done.stdout
    assert look(environment)[1:] == ("generic", "")


@pytest.mark.usefixtures("compiled")
def test_wheels(source: Path) -> None:
    """For this platform and any Python with the library, else for any platform."""
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    for native, tag, pure in (
        ("1", f"py3-none-{platform}", "false"),
        ("0", "py3-none-any", "true"),
    ):
        run_setup(source, "bdist_wheel", native=native)
        (path,) = (source / "dist").glob(f"*-{tag}.whl")
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
            (about,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
            said = wheel.read(about).decode().splitlines()
        assert {f"Root-Is-Purelib: {pure}", f"Tag: {tag}"} <= {*said}
        assert (f"sparsebert/kernels/cpu/{build.LIBRARY}" in names) == (native == "1")
        assert {name.partition("/")[0].partition("-")[0] for name in names} == {"sparsebert"}


def run_setup(source: Path, command: str, native: str = "") -> None:
    subprocess.run(
        ["env", f"SPARSEBERT_NATIVE={native}", sys.executable, "setup.py", "--quiet", command],
        cwd=source, check=True, capture_output=True,
    )  # fmt: skip
