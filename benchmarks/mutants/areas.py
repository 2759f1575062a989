"""Which faults are tried, and which tests have to notice them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ATTENTION = (
    "tests/test_reference.py",
    "tests/test_dropout.py",
    "tests/test_sparse_attention_*.py",
    "tests/test_transforms*.py",
    "tests/test_routes*.py",
    "tests/test_devices*.py",
    "tests/test_autograd.py",
    "tests/test_tracing*.py",
    "tests/test_sparse_attention.py",
)
COMPILER = ("tests/test_compiler*.py", "tests/test_planfile*.py", "tests/test_plan*.py")


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
            "sparsebert/mask*.py",
            "sparsebert/packed_mask.py",
            "sparsebert/patterns*.py",
            "sparsebert/files.py",
            "sparsebert/flex*.py",
            "sparsebert/bits.py",
            "sparsebert/positions.py",
            "sparsebert/provenance.py",
            "sparsebert/checks.py",
        ),
        (
            "tests/test_mask*.py",
            "tests/test_patterns*.py",
            "tests/test_positions*.py",
            "tests/test_files*.py",
        ),
    ),
    Group(
        "tiles",
        (
            "sparsebert/tile*.py",
            "sparsebert/plan.py",
            "sparsebert/planfile*.py",
            "sparsebert/reportcheck*.py",
        ),
        ("tests/test_tile*.py", *COMPILER, "tests/test_sparse_attention.py"),
    ),
    Group(
        "compiler",
        ("sparsebert/plan_*.py", "sparsebert/memory.py", "sparsebert/forks.py"),
        ("tests/test_memory*.py", "tests/test_compiler_threads*.py", *COMPILER),
    ),
    Group("compiler", ("sparsebert/compiler/*.py",), COMPILER),
    Group(
        "compiler", ("sparsebert/memory*.py", "sparsebert/forks*.py"), ("tests/test_memory*.py",)
    ),
    Group(
        "masks",
        ("sparsebert/pictures.py", "sparsebert/drawing.py", "sparsebert/notebook.py"),
        ("tests/test_pictures*.py",),
    ),
    Group("testing", ("sparsebert/testing/*.py",), ("tests/test_error_bounds*.py",)),
    Group("compiler", ("sparsebert/estimate*.py",), ("tests/test_estimate*.py",)),
    Group(
        "executor",
        ("sparsebert/executor/*.py",),
        (
            "tests/test_executor*.py",
            "tests/test_routes*.py",
            "tests/test_autograd.py",
            "tests/test_sparse_attention.py",
        ),
    ),
    Group(
        "ops",
        (
            "sparsebert/ops*.py",
            "sparsebert/call_checks.py",
            "sparsebert/dropout*.py",
            "sparsebert/reference*.py",
            "sparsebert/untraced.py",
        ),
        ATTENTION,
    ),
    Group("ops", ("sparsebert/modules*.py",), ("tests/test_modules*.py",)),
    Group(
        "kernels",
        (
            "kernels/attention.py",
            "kernels/backward.py",
            "kernels/forward.py",
            "kernels/merge.py",
            "kernels/philox.py",
            "kernels/tile.py",
        ),
        ("tests/test_kernels_attention*.py", "tests/test_kernels_codegen*.py"),
    ),
    Group(
        "kernels",
        ("kernels/pack.py", "kernels/program.py"),
        ("tests/test_kernels_pack*.py", "tests/test_kernels_attention*.py"),
    ),
    Group(
        "kernels",
        ("kernels/launch.py", "kernels/prepared.py"),
        (
            "tests/test_kernels_launch*.py",
            "tests/test_kernels_configs*.py",
            "tests/test_kernels_attention*.py",
        ),
    ),
    Group(
        "kernels", ("kernels/*.py",), ("tests/test_kernels_co*.py", "tests/test_kernels_tune*.py")
    ),
    Group("dam", ("sparsebert/dam/importance.py",), ("tests/test_dam_huggingface*.py",)),
    Group("dam", ("sparsebert/dam/*.py",), ("tests/test_dam.py", "tests/test_dam_[!cht]*.py")),
    Group(
        "integrations",
        (
            "sparsebert/integrations/dam_*.py",
            "sparsebert/integrations/hf_dam*.py",
            "sparsebert/integrations/trainer*.py",
        ),
        ("tests/test_dam_callback*.py", "tests/test_dam_huggingface*.py", "tests/test_dam_tr*.py"),
    ),
    Group(
        "integrations",
        ("sparsebert/integrations/*.py",),
        ("tests/test_huggingface*.py", "tests/test_hf_*.py"),
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
