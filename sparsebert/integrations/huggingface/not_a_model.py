"""What to say to those who pass something else than a transformers model where one is needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from sparsebert.masks import AttentionMask

_OWN_MODEL = (
    "in a model of your own, sparsebert.SparseSelfAttention takes the place of "
    "torch.nn.MultiheadAttention (same parameters), and sparsebert.sparse_attention that of "
    "torch.nn.functional.scaled_dot_product_attention"
)


def not_a_model_error(name: str, model: Any) -> TypeError:
    """The error for a `model` in which there is no transformers model, with what to do."""
    if isinstance(model, nn.Module):
        return TypeError(f"{name}: {_about_module(model)}")
    return TypeError(f"{name}: model must be a transformers PreTrainedModel, {_about(model)}")


def _about(model: Any) -> str:
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        return (
            f"got the name {path!r}; load it first: from transformers import AutoModel; "
            f"model = AutoModel.from_pretrained({path!r})"
        )
    if isinstance(model, type):
        how = (
            f"{model.__name__}.from_pretrained(...)"
            if issubclass(model, PreTrainedModel)
            else "an instance of a transformers model"
        )
        return f"got the class {model.__name__}; pass {how}"
    kind = type(model).__name__
    if isinstance(model, PreTrainedConfig):
        return f"got the configuration {kind}; build the model: AutoModel.from_config(config)"
    if hasattr(model, "model_input_names"):  # tokenizers, feature extractors, processors
        return (
            f"got {kind}, which only prepares inputs; pass the model, for example "
            "AutoModel.from_pretrained(...)"
        )
    if isinstance(model, Mapping):
        return f"got {kind}; if it is a state_dict, build the model and load it there first"
    if isinstance(model, (AttentionMask, torch.Tensor)):
        return f"got {kind}, a mask; the model comes first, then the masks"
    inner = getattr(model, "model", None)
    if isinstance(inner, nn.Module):  # a pipeline, a Trainer
        return f"got {kind}; pass the model in it, its .model ({type(inner).__name__})"
    return f"got {kind}"


def _about_module(model: nn.Module) -> str:
    kind = type(model)
    if kind.__module__.startswith("transformers."):
        return (
            f"{kind.__name__} is a part of a transformers model; pass the whole model, and the "
            "part as modules=[part] if only its attention should be sparse"
        )
    if isinstance(model, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        return (
            f"{kind.__name__} is a traced model, whose attention cannot be changed any more; "
            "sparsify the transformers model, then trace or export it"
        )
    if any(isinstance(m, nn.MultiheadAttention) for m in model.modules()):
        return (
            f"{kind.__name__} uses torch.nn.MultiheadAttention, which no mask can be attached to; "
            f"{_OWN_MODEL}"
        )
    return f"model must be a transformers PreTrainedModel, got {kind.__name__}; {_OWN_MODEL}"
