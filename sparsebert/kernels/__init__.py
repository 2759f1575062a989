"""Checkout shim: ``sparsebert.kernels`` finds the Triton kernels in the top-level ``kernels/``.

In a wheel the files of ``kernels/`` are installed right here and this file is left out. In a
checkout they stand beside ``sparsebert/``, in a folder that must not hold an ``__init__.py``:
HuggingFace ships a package called ``kernels``, and a regular package of that name on the path
would shadow it and break ``import transformers``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

_TOP_LEVEL = Path(__file__).resolve().parents[2] / "kernels"
if _TOP_LEVEL.is_dir():
    __path__.append(str(_TOP_LEVEL))

if TYPE_CHECKING:  # a type checker does not follow __path__

    def __getattr__(name: str) -> Any: ...
