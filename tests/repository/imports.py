"""Which module imports which, read from the sources: at the top, inside functions, by name.

A module's dotted name in quotes counts as an import, as for `importlib`, and so does a public name
of the package that is taken from its front page (`from sparsebert import sparse_attention`).
What stands under `if TYPE_CHECKING:` is never run and does not count, nor do examples in
docstrings. Packages that an import runs on its way (`sparsebert.masks` for
`sparsebert.masks.bits`) count only where their own names are taken.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, order=True)
class Arrow:
    """One module imports another, both by their dotted names."""

    importer: str
    imported: str

    def __str__(self) -> str:
        return f"{self.importer} -> {self.imported}"


@dataclass(frozen=True)
class Sources:
    """The modules of some folders and what they import.

    Attributes:
        files: dotted name -> file; a package is its `__init__.py`.
        arrows: imports of one of these modules by another one.
        outside: imports of anything else, by the name as written.
        absolute: those of `arrows` that are not written relatively (`from .masks import ...`).
    """

    files: Mapping[str, Path]
    arrows: frozenset[Arrow]
    outside: frozenset[Arrow]
    absolute: frozenset[Arrow]

    @classmethod
    def read(cls, folders: Mapping[str, Path]) -> Self:
        """Read folders, given by the dotted name under which each is imported."""
        files = dict(_files(folders))
        trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in files.items()}
        public = {full: home for name, tree in trees.items() for full, home in _public(name, tree)}
        arrows, outside, absolute = set(), set(), set()
        for name, file in files.items():
            is_package = file.name == "__init__.py"
            package = name if is_package else name.rpartition(".")[0]
            for written, level in _imports(trees[name], is_module=files.__contains__):
                full = _resolved(written, level, package)
                full = public.get(full, full)
                ours = _module_of(full, files)
                if ours is None:
                    outside.add(Arrow(name, full))
                elif ours != name:
                    arrows.add(Arrow(name, ours))
                    if not level:
                        absolute.add(Arrow(name, ours))
        return cls(files, frozenset(arrows), frozenset(outside), frozenset(absolute))

    def unit(self, module: str) -> str:
        """The folder in which a module stands; a module beside the folders is its own unit."""
        if self.files[module].name == "__init__.py":
            return module
        package = module.rpartition(".")[0]
        return package if "." in package else module


def circular(arrows: Iterable[Arrow], of: Callable[[str], str] = str) -> list[Arrow]:
    """The arrows that lie on a circle, if modules are taken together by `of`; sorted."""
    arrows = sorted(arrows)
    follow: dict[str, set[str]] = {}
    for arrow in arrows:
        follow.setdefault(of(arrow.importer), set()).add(of(arrow.imported))
    reached = {start: _reachable(start, follow) for start in follow}
    return [
        arrow
        for arrow in arrows
        if of(arrow.importer) != of(arrow.imported)
        and of(arrow.importer) in reached.get(of(arrow.imported), ())
    ]


def _reachable(start: str, follow: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = follow.get(waiting.pop(), set()) - found
        found |= new
        waiting.extend(new)
    return found


def _files(folders: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    for prefix, folder in folders.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            yield ".".join((prefix, *parts)), file


_TABLE = "_HOME"
"""Where a package lists the homes of its public names, imported when they are asked for."""


def _public(package: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The public names of a package that has such a table, in full, and the home of each."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == _TABLE:
            for name, home in ast.literal_eval(node.value).items():
                yield f"{package}.{name}", home


def _imports(tree: ast.Module, is_module: Callable[[str], bool]) -> Iterator[tuple[str, int]]:
    """What is imported, as (dotted name, level of a relative import)."""
    nodes = list(_run(tree))
    bound: dict[str, str] = {}  # names in this file -> the modules that they stand for
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                bound[alias.asname or top] = alias.name if alias.asname else top
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = f"{node.module}." if node.module else ""
            yield from ((start + alias.name, node.level) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if is_module(bound.get(node.value.id, "")):  # sparsebert.sparse_attention(...)
                yield f"{bound[node.value.id]}.{node.attr}", 0
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"):
            named = [str(x.value) for x in node.args[:1] if isinstance(x, ast.Constant)]
            yield from ((name.lstrip("."), len(name) - len(name.lstrip("."))) for name in named)
        elif isinstance(node, ast.Constant):
            name = str(node.value)
            yield from [(name, 0)] * ("." in name and is_module(name))


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but what only a type checker reads, a package's table of public names, and
    comparisons with the name of a module.
    """
    yield node
    skipped: list[ast.AST] = []
    if isinstance(node, ast.Compare):
        skipped = [child for child in node.comparators if isinstance(child, ast.Constant)]
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        is_negated = isinstance(node.test, ast.UnaryOp)
        skipped = [*(node.orelse if is_negated else node.body)]
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == _TABLE:
        skipped = [node.value]
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            yield from _run(child)


def _resolved(name: str, level: int, package: str) -> str:
    if not level:
        return name
    base = package.split(".")
    return ".".join((*base[: len(base) - level + 1], name))


def _module_of(name: str, files: Mapping[str, Path]) -> str | None:
    """The module that a name is, or stands in; None if it is none of `files`."""
    if name in files:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in files else None
