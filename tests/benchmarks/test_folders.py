"""What the folders of the benchmarks must not become, and the commands in them."""

import re
import runpy
import sys

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


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"python -m (benchmarks\.[\w.]+)", README)))
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_every_command_says_what_it_is_called(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module(name, run_name="__main__")
    assert capsys.readouterr().out.startswith(f"usage: python -m {name} [-h]")
