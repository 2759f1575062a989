"""Which module imports which, read from the sources: at the top, inside functions, by name.

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
        arrows, outside, absolute = set(), set(), set()
        for name, file in files.items():
            is_package = file.name == "__init__.py"
            package = name if is_package else name.rpartition(".")[0]
            for written, level in _imports(ast.parse(file.read_text(encoding="utf-8"))):
                full = _resolved(written, level, package)
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


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What is imported, as (dotted name, level of a relative import)."""
    for node in _run(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = f"{node.module}." if node.module else ""
            yield from ((start + alias.name, node.level) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node.func) == "import_module":
            named = [x.value for x in node.args[:1] if isinstance(x, ast.Constant)]
            yield from ((name, 0) for name in named if isinstance(name, str))


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but what only a type checker reads."""
    yield node
    is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in node.orelse if is_typing else ast.iter_child_nodes(node):
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
