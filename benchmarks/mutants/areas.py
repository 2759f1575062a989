"""Which faults are tried, and which tests have to notice them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ATTENTION = (
    "tests/attention/test_reference.py",
    "tests/attention/test_dropout.py",
    "tests/attention/test_sparse_attention_*.py",
    "tests/attention/test_transforms*.py",
    "tests/backends/test_routes*.py",
    "tests/backends/test_devices*.py",
    "tests/attention/test_autograd.py",
    "tests/attention/test_tracing*.py",
    "tests/attention/test_sparse_attention.py",
)
PLANS = ("tests/attention/test_plan*.py", "tests/attention/test_memory*.py")
COMPILER = ("tests/compiler/test_*.py", *PLANS)


@dataclass(frozen=True)
class Group:
    """Sources of one area and the tests of their behaviour, both as patterns of paths.

    Patterns, for files are split and joined more often than this list is read. A source belongs
    to the first group that names it.
    """

    area: str
    sources: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS = (
    Group(
        "masks",
        (
            "sparsebert/masks/images.py",
            "sparsebert/masks/drawing.py",
            "sparsebert/masks/html.py",
            "sparsebert/masks/pattern_list.py",
            "sparsebert/masks/summary.py",
            "sparsebert/doctor.py",
            "sparsebert/explain.py",
            "sparsebert/reporting/*.py",
        ),
        (
            "tests/masks/test_images*.py",
            "tests/compiler/test_report*.py",
            "tests/reporting/test_*.py",
            "tests/cli/*.py",
        ),
    ),
    Group("masks", ("sparsebert/masks/*.py",), ("tests/masks/*.py", "tests/storage/test_*.py")),
    Group("masks", ("sparsebert/storage.py",), ("tests/storage/test_*.py", "tests/masks/*.py")),
    Group(
        "compiler",
        ("sparsebert/*plan*.py", "sparsebert/memory.py", "sparsebert/support/*.py"),
        (*PLANS, "tests/support/test_*.py"),
    ),
    Group(
        "compiler",
        ("sparsebert/tiles/*.py",),
        ("tests/tiles/test_*.py", *COMPILER, "tests/attention/test_sparse_attention.py"),
    ),
    Group("compiler", ("sparsebert/compiler/*.py", "sparsebert/compiler/cost/*.py"), COMPILER),
    Group("compiler", ("sparsebert/estimate/*.py",), ("tests/estimate/*.py",)),
    Group("testing", ("sparsebert/testing/*.py",), ("tests/attention/test_error_bounds*.py",)),
    Group(
        "backends",
        ("sparsebert/backends/*.py",),
        (
            "tests/backends/test_*.py",
            "tests/attention/test_autograd.py",
            "tests/attention/test_sparse_attention.py",
        ),
    ),
    Group(
        "attention",
        (
            "sparsebert/api.py",
            "sparsebert/arguments.py",
            "sparsebert/autograd.py",
            "sparsebert/dropout.py",
            "sparsebert/reference.py",
        ),
        ATTENTION,
    ),
    Group("attention", ("sparsebert/modules*.py",), ("tests/attention/test_modules*.py",)),
    Group(
        "kernels",
        ("kernels/*.py",),
        ("tests/kernels/test_*.py", "tests/benchmarks/kernels/test_codegen_report.py"),
    ),
    Group(
        "kernels",
        ("kernels/cpu/*.py",),
        ("tests/native/test_build.py", "tests/native/test_library.py"),
    ),
    Group("dam", ("sparsebert/dam/*.py",), ("tests/dam/test_*.py",)),
    Group(
        "integrations",
        (
            "sparsebert/integrations/huggingface/dam*.py",
            "sparsebert/integrations/huggingface/trainer*.py",
        ),
        ("tests/huggingface/test_dam_*.py",),
    ),
    Group(
        "integrations",
        ("sparsebert/integrations/*.py", "sparsebert/integrations/huggingface/*.py"),
        ("tests/huggingface/test_[!d]*.py",),
    ),
)

# Imported once, before any fault: what every test waits for otherwise.
WARM = (
    "hypothesis",
    "numpy",
    "pytest",
    "safetensors.torch",
    "scipy.sparse",
    "torch",
    "torch._inductor.utils",
    "torch.export",
    "torch.nn.attention.flex_attention",
    "torch.utils.flop_counter",
    "transformers",
    "transformers.trainer",
    "transformers.models.bert.modeling_bert",
    "triton",
)


def sources_of(root: Path, groups: tuple[Group, ...] = GROUPS) -> dict[str, Group]:
    """The group of every source below root that a group names, sorted by path."""
    owner: dict[str, Group] = {}
    for group in groups:
        for file in _matches(root, group.sources):
            owner.setdefault(file, group)
    return dict(sorted(owner.items()))


def tests_of(root: Path, file: str, group: Group) -> list[str]:
    """The group's test files, those that carry the source's name first."""
    stem = Path(file).stem
    found = dict.fromkeys(_matches(root, group.tests))
    return sorted(found, key=lambda test: stem not in Path(test).stem)


def _matches(root: Path, patterns: tuple[str, ...]) -> list[str]:
    """Paths relative to root; a file once, where its first pattern puts it."""
    found: dict[str, None] = {}
    for pattern in patterns:
        paths = sorted(root.glob(pattern))
        found |= dict.fromkeys(p.relative_to(root).as_posix() for p in paths)
    return list(found)
