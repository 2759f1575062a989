"""What may import what: the layers of the package, without circles.

`python -m tests.repository.test_layers` lists what breaks the rules now.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import ROOT
from tests.repository.imports import Arrow, Sources, circular

# From the bottom up. A module stands in the layer with its name, or else with that of the nearest
# package around it, and imports what stands in the same layer or lower. (README shows this.)
LAYERS = (
    (
        "sparsebert", "sparsebert.support", "sparsebert.storage", "sparsebert.machine",
        "sparsebert.memory", "sparsebert.dropout", "sparsebert.kernels",
    ),
    ("sparsebert.masks",),
    ("sparsebert.reference", "sparsebert.testing", "sparsebert.dam", "sparsebert.tiles"),
    ("sparsebert.compiler.cost",),
    ("sparsebert.compiler",),
    ("sparsebert.backends",),
    (
        "sparsebert.plan", "sparsebert.plan_cache", "sparsebert.calibration",
        "sparsebert.autograd", "sparsebert.arguments", "sparsebert.dam.plan_prices",
        "sparsebert.dam.followed_plan", "sparsebert.dam.search",
    ),
    ("sparsebert.mask_plans", "sparsebert.api"),
    ("sparsebert.modules",),
    ("sparsebert.integrations",),
    ("sparsebert.reporting",),
    (
        "sparsebert.learn", "sparsebert.estimate", "sparsebert.explain",
        "sparsebert.verify", "sparsebert.doctor",
    ),
    ("sparsebert.demo",),
    ("sparsebert.cli", "sparsebert.__main__"),
)  # fmt: skip

FOLDERS = {
    "sparsebert": ROOT / "sparsebert",
    "sparsebert.kernels": ROOT / "kernels",
    "benchmarks": ROOT / "benchmarks",
    "tests": ROOT / "tests",
}


def layer_of(module: str, layers: tuple[tuple[str, ...], ...]) -> int:
    """The place of a module's layer; the name of the package alone is no folder's."""
    name = module
    while name:
        for place, names in enumerate(layers):
            if name in names and (name == module or "." in name):
                return place
        name = name.rpartition(".")[0]
    raise LookupError(f"{module} is in no layer; give it one in LAYERS")


def upward(sources: Sources, layers: tuple[tuple[str, ...], ...] = LAYERS) -> list[Arrow]:
    return [
        arrow
        for arrow in sorted(sources.arrows)
        if all(name.partition(".")[0] == "sparsebert" for name in (arrow.importer, arrow.imported))
        and layer_of(arrow.importer, layers) < layer_of(arrow.imported, layers)
    ]


def of(*packages: str) -> Callable[[Arrow], bool]:
    """Whether an arrow begins in one of these."""
    return lambda arrow: arrow.importer.partition(".")[0] in packages


def circles_of_modules(sources: Sources) -> list[Arrow]:
    """Circles without an upward arrow, which would be a fault by itself: each is said once."""
    return circular(_level_or_down(sources))


def circles_of_folders(sources: Sources) -> list[Arrow]:
    """As `circles_of_modules`, where the modules of a folder are one."""
    circles = circular(_level_or_down(sources), sources.unit)
    return sorted(set(circles) - set(circles_of_modules(sources)))


def _level_or_down(sources: Sources) -> set[Arrow]:
    arrows = filter(of("sparsebert", "benchmarks"), sources.arrows)
    return set(arrows) - set(upward(sources))


def kernels_outside(sources: Sources) -> list[Arrow]:
    """Imports of the kernels' folder beyond itself, torch, Triton and the standard library."""
    kernels = "sparsebert.kernels."
    ours = [
        arrow
        for arrow in sources.arrows
        if arrow.importer.startswith(kernels)
        and (arrow in sources.absolute or not arrow.imported.startswith(kernels))
    ]
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    others = [
        arrow
        for arrow in sources.outside
        if arrow.importer.startswith(kernels) and arrow.imported.partition(".")[0] not in allowed
    ]
    return sorted([*ours, *others])


def imports_of_benchmarks(sources: Sources) -> list[Arrow]:
    """Imports of benchmarks by tests of something else."""
    its_own = ("tests.benchmarks.", "tests.repository.")
    return [
        arrow
        for arrow in sorted(sources.arrows)
        if arrow.importer.startswith("tests.")
        and not arrow.importer.startswith(its_own)
        and arrow.imported.startswith("benchmarks")
    ]


def out_of_place(sources: Sources) -> list[Arrow]:
    """Imports of tests by what is none, and of benchmarks by the package."""
    return [
        arrow
        for arrow in sorted(sources.arrows)
        if (arrow.imported.startswith("tests") and not arrow.importer.startswith("tests"))
        or (arrow.imported.startswith("benchmarks") and arrow.importer.startswith("sparsebert"))
    ]


RULES: dict[str, Callable[[Sources], list[Arrow]]] = {
    "circle of modules": circles_of_modules,
    "circle of folders": circles_of_folders,
    "upward": upward,
    "beyond torch and Triton": kernels_outside,
    "tests import benchmarks": imports_of_benchmarks,
    "out of place": out_of_place,
}


def violations(sources: Sources) -> set[str]:
    """Every breach of a rule, as "rule: importer -> imported"."""
    return {f"{rule}: {arrow}" for rule, check in RULES.items() for arrow in check(sources)}


@pytest.fixture(scope="module")
def sources() -> Sources:
    return Sources.read(FOLDERS)


def test_every_module_has_a_layer(sources: Sources) -> None:
    for module in sources.files:
        if module.startswith("sparsebert"):
            layer_of(module, LAYERS)
    names = [name for layer in LAYERS for name in layer]
    assert len(names) == len(set(names))
    assert not set(names) - set(sources.files), "a layer names what is not there"


def test_imports_keep_the_rules(sources: Sources) -> None:
    assert not violations(sources), "move what is shared down, or hand it in"


def test_the_readme_shows_the_layers_in_their_order() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"## Map of the repository\n\n(.*?)\n\n", readme, re.DOTALL)
    cells = [row.split("|")[1] for row in table.splitlines()[2:-1]]  # but benchmarks and tests
    paths = [path for cell in cells for path in re.findall(r"`([^`]+)`", cell)]
    names = [path.removeprefix("sparsebert/").removesuffix(".py").strip("/") for path in paths]
    places = [layer_of(f"sparsebert.{name}", LAYERS) for name in names]
    assert len(places) > 15
    assert places == sorted(places)


# ------------------------------------------------------------------------------ the checks


def made_up(root: Path, **files: str) -> Sources:
    """Sources of files, each named by its dotted name with __ for dots."""
    for name, text in files.items():
        file = root / (name.replace("__", "/") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    names = ("sparsebert", "benchmarks", "tests")
    folders = {name: root / name for name in names if (root / name).is_dir()}
    if (root / "kernels").is_dir():
        folders["sparsebert.kernels"] = root / "kernels"
    return Sources.read(folders)


def test_a_circle_is_seen(tmp_path: Path) -> None:
    sources = made_up(
        tmp_path,
        sparsebert__masks__a="from sparsebert.masks import b",
        sparsebert__masks__b="import sparsebert.masks.c",
        sparsebert__masks__c="from .a import something",
        sparsebert__masks__d="from sparsebert.masks.a import x",  # leads to the circle
    )
    found = {str(arrow) for arrow in circles_of_modules(sources)}
    assert found == {
        "sparsebert.masks.a -> sparsebert.masks.b",
        "sparsebert.masks.b -> sparsebert.masks.c",
        "sparsebert.masks.c -> sparsebert.masks.a",
    }
    assert not circles_of_folders(sources)


@pytest.mark.parametrize(
    "lazy",
    [
        "def f():\n    from sparsebert.masks.a import x",
        "class C:\n    def f(self):\n        if self:\n            import sparsebert.masks.a",
        "import importlib\ndef f(): return importlib.import_module('sparsebert.masks.a')",
        "def f():\n    return importlib.import_module('.a', __package__)",
        "__import__('sparsebert.masks.a')",
        "HOMES = {'x': 'sparsebert.masks.a'}\ndef f(name): return import_module(HOMES[name])",
        "try:\n    from . import a\nexcept ImportError: ...",
        "from sparsebert.masks.a import *",
        "if not TYPE_CHECKING:\n    from .a import x",
    ],
)
def test_a_lazy_circle_is_seen(tmp_path: Path, lazy: str) -> None:
    sources = made_up(
        tmp_path, sparsebert__masks__a="import sparsebert.masks.b", sparsebert__masks__b=lazy
    )
    assert len(circles_of_modules(sources)) == 2


def test_imports_for_type_checkers_do_not_count(tmp_path: Path) -> None:
    sources = made_up(
        tmp_path,
        sparsebert__masks__a="import sparsebert.masks.b",
        sparsebert__masks__b="if TYPE_CHECKING:\n    import sparsebert.masks.a",
        sparsebert__masks__c='"""\n>>> import sparsebert.masks.a\n"""',
    )
    assert [str(arrow) for arrow in sources.arrows] == ["sparsebert.masks.a -> sparsebert.masks.b"]
    other = made_up(
        tmp_path,
        sparsebert__masks__b="if TYPE_CHECKING:\n    pass\nelse:\n    import sparsebert.masks.a",
    )
    assert len(circles_of_modules(other)) == 2


def test_a_circle_of_folders_is_seen(tmp_path: Path) -> None:
    """No two of the modules import each other, but the folders do."""
    sources = made_up(
        tmp_path,
        sparsebert__dam__a="import sparsebert.tiles.b",
        sparsebert__tiles__c="import sparsebert.dam.d",
        sparsebert__tiles__b="",
        sparsebert__dam__d="",
        benchmarks__cost__a="import benchmarks.rows",
        benchmarks__rows="import benchmarks.cost.c",
        benchmarks__cost__c="",
    )
    assert not circles_of_modules(sources)
    assert len(circles_of_folders(sources)) == 4


@pytest.mark.parametrize(
    "taken",
    [
        "def f():\n    from sparsebert import sparse_attention",
        "from .. import sparse_attention as attend",
        "import sparsebert as sb\ndef f(q): return sb.sparse_attention(q, q, q)",
        "import sparsebert\ndef f(q): return sparsebert.sparse_attention(q, q, q)",
        "import sparsebert.masks\ndef f(q): return sparsebert.api.sparse_attention(q, q, q)",
    ],
)
def test_public_names_are_those_of_their_homes(tmp_path: Path, taken: str) -> None:
    front = tmp_path / "sparsebert" / "__init__.py"
    front.parent.mkdir()
    front.write_text("_HOME = {'sparse_attention': 'sparsebert.api'}", encoding="utf-8")
    sources = made_up(
        tmp_path,
        sparsebert__masks__a=taken,
        sparsebert__masks__b="from sparsebert import __version__\nx == 'sparsebert.api'",
        sparsebert__api="",
    )
    assert [str(arrow) for arrow in upward(sources)] == ["sparsebert.masks.a -> sparsebert.api"]


def test_an_upward_arrow_is_seen(tmp_path: Path) -> None:
    sources = made_up(
        tmp_path,
        sparsebert__masks__a="def f():\n    from sparsebert.api import sparse_attention",
        sparsebert__api="import sparsebert.masks.a",
    )
    assert [str(arrow) for arrow in upward(sources)] == ["sparsebert.masks.a -> sparsebert.api"]


def test_a_module_without_a_layer_is_seen(tmp_path: Path) -> None:
    sources = made_up(tmp_path, sparsebert__new="", sparsebert__masks__new="")
    assert layer_of("sparsebert.masks.new", LAYERS) == layer_of("sparsebert.masks", LAYERS)
    with pytest.raises(LookupError, match=r"sparsebert\.new is in no layer"):
        [layer_of(module, LAYERS) for module in sources.files]


def test_what_kernels_import_is_seen(tmp_path: Path) -> None:
    sources = made_up(
        tmp_path,
        sparsebert__masks__a="",
        kernels__fine="import math, torch, triton.language as tl\nfrom . import tile",
        kernels__tile="from typing import Any",
        kernels__package="from sparsebert.masks import a",
        kernels__absolute="from sparsebert.kernels.tile import x",
        kernels__numpy="def f():\n    import numpy as np",
    )
    assert [arrow.importer.rpartition(".")[2] for arrow in kernels_outside(sources)] == [
        "absolute", "numpy", "package",
    ]  # fmt: skip


def test_imports_of_benchmarks_and_tests_are_seen(tmp_path: Path) -> None:
    sources = made_up(
        tmp_path,
        sparsebert__masks__a="from benchmarks import run",
        sparsebert__masks__b="from tests import cases",
        benchmarks__run="",
        benchmarks__other="import tests.cases",
        tests__cases="",
        tests__masks__test_a="from benchmarks.run import x",
        tests__benchmarks__test_a="from benchmarks.run import x",
        tests__repository__test_a="import benchmarks.run, tests.cases",
    )
    assert [arrow.importer for arrow in imports_of_benchmarks(sources)] == ["tests.masks.test_a"]
    assert [arrow.importer for arrow in out_of_place(sources)] == [
        "benchmarks.other", "sparsebert.masks.a", "sparsebert.masks.b",
    ]  # fmt: skip


if __name__ == "__main__":
    for violation in sorted(violations(Sources.read(FOLDERS))):
        print(violation)
