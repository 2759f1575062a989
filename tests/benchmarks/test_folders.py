"""What the folders of the benchmarks must not become."""

from tests import ROOT


def test_no_folder_is_a_package() -> None:
    """A folder called kernels would hide HuggingFace's package of that name if it were one."""
    assert (ROOT / "benchmarks" / "kernels").is_dir()
    assert not list((ROOT / "benchmarks").rglob("__init__.py"))


def test_the_readme_names_every_folder() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "benchmarks").glob("*/*.py")}
    assert folders <= {
        line.split("`")[1].rstrip("/") for line in text.splitlines() if "/` |" in line
    }
    for module in (ROOT / "benchmarks" / "harness").glob("*.py"):
        assert f"`{module.stem}`" in text
