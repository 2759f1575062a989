"""Backends are known by name to the registry alone: nobody else asks which one it is."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsebert.backends import registry
from tests import ROOT

# Where one of these words means something else, or is a user's choice. A folder ends with "/".
OTHER_MEANINGS = {
    ("sparsebert/backends/registry.py", "dense"): "the route of a head",
    ("sparsebert/backends/routing.py", "dense"): "the route of a head",
    ("sparsebert/compiler/", "dense"): "the route of a head",
    ("sparsebert/calibration.py", "dense"): "the route that torch's attention is timed for",
    ("sparsebert/demo/", "dense"): "the route of a head, and the model without a mask",
    ("sparsebert/learn/", "dense"): "training and attention without a mask",
    ("sparsebert/masks/patterns.py", "dense"): "the pattern without zeros",
    ("sparsebert/reporting/provenance.py", "torch"): "the package, for its version",
    ("sparsebert/doctor.py", "torch"): "the package, for its version",
    ("sparsebert/doctor.py", "triton"): "the package, for its version",
    ("sparsebert/storage.py", "torch"): "the part of the package safetensors",
    ("sparsebert/cli/__init__.py", "torch"): "the package, if it is imported",
    ("sparsebert/integrations/huggingface/discovery.py", "torch"): "the package of a class",
}


def words(file: Path) -> Iterator[str]:
    """The string literals of a source file, and what errors call a backend, but no docstrings."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield str(node.value)
            yield from re.findall(r"""backend[= ]+["'](\w+)""", str(node.value))


def homes(name: str) -> set[str]:
    """The files that may know a backend's name: its own module, and the registry."""
    module = importlib.import_module(registry.entry(name).module)
    assert module.__file__ is not None
    own = Path(module.__file__).relative_to(ROOT).as_posix()
    return {own, "sparsebert/backends/registry.py"}


def found(root: Path) -> set[tuple[str, str]]:
    """Every (file, name of a backend) such that the name is a string literal in the file."""
    names = registry.names()
    return {
        (file.relative_to(root).as_posix(), word)
        for file in root.glob("sparsebert/**/*.py")
        for word in words(file)
        if word in names
    }


def is_explained(file: str, name: str) -> bool:
    return any(
        word == name and (file == path or (path.endswith("/") and file.startswith(path)))
        for path, word in OTHER_MEANINGS
    )


def test_only_the_registry_and_a_backend_itself_know_its_name() -> None:
    strangers = {
        (file, name)
        for file, name in found(ROOT)
        if file not in homes(name) and not is_explained(file, name)
    }
    assert not strangers, "ask the registry, or the backend for what it can do"


def test_every_other_meaning_is_still_there() -> None:
    there = found(ROOT)
    for path, word in OTHER_MEANINGS:
        assert any(
            name == word and (file.startswith(path) if path.endswith("/") else file == path)
            for file, name in there
        ), (path, word)


def test_a_name_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "sparsebert" / "plan.py"
    file.parent.mkdir()
    file.write_text('"""Not backend "triton"."""\nif backend == "dense": ...', encoding="utf-8")
    file.with_name("api.py").write_text(
        """raise ValueError(f"{x}; pass backend='torch'")""", encoding="utf-8"
    )
    assert found(tmp_path) == {("sparsebert/plan.py", "dense"), ("sparsebert/api.py", "torch")}
    assert not is_explained("sparsebert/plan.py", "dense")


@pytest.mark.parametrize("name", registry.names())
def test_every_backend_has_a_home(name: str) -> None:
    for file in homes(name):
        assert name in set(words(ROOT / file))
