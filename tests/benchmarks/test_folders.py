"""What the folders of the benchmarks must not become, and the commands in them."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests import ROOT

README = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def test_no_folder_is_a_package() -> None:
    """A folder called kernels would hide HuggingFace's package of that name if it were one."""
    assert (ROOT / "benchmarks" / "kernels").is_dir()
    assert not list((ROOT / "benchmarks").rglob("__init__.py"))


def test_the_readme_names_every_folder() -> None:
    folders = {path.parent.name for path in (ROOT / "benchmarks").glob("*/*.py")}
    assert folders <= {
        line.split("`")[1].rstrip("/") for line in README.splitlines() if "/` |" in line
    }
    for module in (ROOT / "benchmarks" / "harness").glob("*.py"):
        assert f"`{module.stem}`" in README


COMMANDS = sorted(set(re.findall(r"python -m (benchmarks\.[\w.]+)", README)))
HELP = """
import contextlib, io, json, runpy, sys
said = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    told, code = io.StringIO(), None
    with contextlib.redirect_stdout(told):
        try:
            runpy.run_module(name, run_name="__main__")
        except SystemExit as end:
            code = end.code
    said[name] = [code, told.getvalue()]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, list[Any]]:
    """Exit code and text of each command's help, from one process: some decide how Triton runs."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HELP, *COMMANDS],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said: dict[str, list[Any]] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_is_called(name: str, helps: dict[str, list[Any]]) -> None:
    code, told = helps[name]
    assert code == 0
    assert told.startswith(f"usage: python -m {name} [-h]")
