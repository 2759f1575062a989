"""SparseBERT: compile static attention masks and run them fast.

The few public names live in the modules listed in ``_HOME`` and are imported on first use, so
that ``import sparsebert`` costs nothing and needs neither transformers, Triton nor matplotlib.
Names that need a missing package say so, with the remedy, when they are called.

    >>> import torch
    >>> import sparsebert as sb
    >>> mask = sb.patterns.longformer(seq_len=256, window=16, num_global=2)
    >>> plan = sb.compile_plan(mask, target="cpu")
    >>> q, k, v = torch.randn(3, 1, 4, 256, 32)  # each [B, H, N, D]
    >>> sb.sparse_attention(q, k, v, plan).shape
    torch.Size([1, 4, 256, 32])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsebert.api import sparse_attention
    from sparsebert.dam import DifferentiableAttentionMask
    from sparsebert.integrations.huggingface.api import densify, load_masks, save_masks, sparsify
    from sparsebert.integrations.huggingface.dam import attach_dam, detach_dam
    from sparsebert.integrations.huggingface.trainer import DAMTrainer
    from sparsebert.masks import AttentionMask, patterns
    from sparsebert.modules import SparseSelfAttention
    from sparsebert.plan import AttentionPlan, compile_plan
    from sparsebert.reference import reference_attention

__version__ = "0.1.0"

__all__ = [
    "AttentionMask",
    "AttentionPlan",
    "DAMTrainer",
    "DifferentiableAttentionMask",
    "SparseSelfAttention",
    "__version__",
    "attach_dam",
    "compile_plan",
    "densify",
    "detach_dam",
    "load_masks",
    "patterns",
    "reference_attention",
    "save_masks",
    "sparse_attention",
    "sparsify",
]

# Public name -> the module that defines it. "patterns" is itself a module.
_HOME = {
    "AttentionMask": "sparsebert.masks.mask",
    "AttentionPlan": "sparsebert.plan",
    "DAMTrainer": "sparsebert.integrations.huggingface.trainer",
    "DifferentiableAttentionMask": "sparsebert.dam",
    "SparseSelfAttention": "sparsebert.modules",
    "attach_dam": "sparsebert.integrations.huggingface.dam",
    "compile_plan": "sparsebert.plan",
    "densify": "sparsebert.integrations.huggingface.api",
    "detach_dam": "sparsebert.integrations.huggingface.dam",
    "load_masks": "sparsebert.integrations.huggingface.api",
    "patterns": "sparsebert.masks.patterns",
    "reference_attention": "sparsebert.reference",
    "save_masks": "sparsebert.integrations.huggingface.api",
    "sparse_attention": "sparsebert.api",
    "sparsify": "sparsebert.integrations.huggingface.api",
}

_OPTIONAL = ("transformers", "accelerate")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sparsebert' has no attribute {name!r}")
    try:
        module = import_module(_HOME[name])
    except ImportError as error:
        cause = error.__cause__ or error  # a module may have said it in its own words
        missing = (getattr(cause, "name", None) or "").partition(".")[0]
        if missing not in _OPTIONAL or not isinstance(cause, ModuleNotFoundError):
            raise
        # Not kept: once the package is installed, the name is there.
        return _unavailable(name, missing)
    value = module if name == "patterns" else getattr(module, name)
    globals()[name] = value  # later look-ups skip this function
    return value


def _unavailable(name: str, missing: str) -> Any:
    """What stands for a public name whose package is missing: to be listed, not to be used.

    So help(), `inspect.getmembers` and ``from sparsebert import *`` work without it.
    """
    extra = "train" if name == "DAMTrainer" else "hf"
    remedy = f"sparsebert.{name} needs {missing}: pip install 'sparsebert[{extra}]'"

    def refuse(*arguments: Any, **options: Any) -> None:
        raise ImportError(remedy, name=missing)

    if name[0].isupper():
        return type(name, (), {"__init__": refuse, "__doc__": remedy, "__module__": __name__})
    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = remedy
    return refuse


def __dir__() -> list[str]:
    return sorted(__all__)
