"""What may be passed as a mask: boolean tensors and arrays; the rest is refused, with a remedy.

Nothing is converted by a guess.  The same float tensor is one mask if 1 means "may attend", and
its complement if 0 does, so the advice looks at the values: 0 and -inf are an additive mask, to be
written ``mask == 0``, 0 and 1 are ``mask.bool()``.  Every function that takes a mask asks here.

    >>> additive = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
    >>> remedy(additive)
    'convert it, as its values are 0 and -inf or large negative, an additive mask: mask == 0'
"""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import torch

from sparsebert.masks.bits import Bool

Numbers = Literal["0/1", "0", "additive", "shares", "packed", "NaN", "biases", "scores", "unknown"]
"""What numbers in a mask's place look like; see `numbers_in`."""

_HIDDEN = -1e3
"""Added to a score, this or less hides a position; models use -10000, -1e9, the least float."""

_SAY_WHERE = "say where a query may attend to a key, in a bool tensor [N, M] or [H, N, M]"
_OWN_TYPES = {
    "AttentionMask": "it is an AttentionMask already; use it as it is",
    "AttentionPlan": "the mask that a plan was compiled from is plan.mask",
    "DifferentiableAttentionMask": "a hard mask of it is dam.binarize(sparsity=0.9), for example",
    "BlockMask": (
        "write AttentionMask.from_mask_mod(block_mask.mask_mod, num_heads, q_len, kv_len), which "
        "is the same mask if create_block_mask made it"
    ),
}


def bool_array(where: str, argument: str, value: Any) -> Bool:
    """A boolean tensor (any device) or array as a plain numpy array of the same shape.

    Raises:
        TypeError: anything else; the message says how to convert what came.
    """
    if is_bool(value):
        # np.asarray: np.matrix has two dimensions whatever shape it is asked for.
        return (
            value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        )
    raise refused(where, argument, "bool (True = may attend), a torch.Tensor or array", value)


def is_bool(value: Any) -> bool:
    """Whether `value` is a boolean tensor or array whose every entry is there to be read."""
    if isinstance(value, torch.Tensor):
        return value.dtype == torch.bool and _why_unreadable(value) is None
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.bool_
        and not isinstance(value, np.ma.MaskedArray)
    )


def refused(where: str, argument: str, wanted: str, value: object, write: str = "{}") -> TypeError:
    """The error for a mask that cannot be taken: what was wanted, what came, what to do.

    `write` says how a boolean tensor is passed there, for functions that take none.
    """
    return TypeError(
        f"{where}: {argument} must be {wanted}, got {kind(value)}; {remedy(value, write)}"
    )


def kind(value: object) -> str:
    """What came, in a few words."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {value.dtype}"
    if type(value) is np.ndarray:
        return f"an array {value.dtype}"
    return type(value).__name__


def remedy(value: Any, write: str = "{}") -> str:
    """How to make a mask of what came; see `refused`."""
    if value is None:
        return "sparsebert.patterns has masks to begin with, for example patterns.star(512)"
    for parent in type(value).__mro__:
        if parent.__name__ in _OWN_TYPES:
            return _OWN_TYPES[parent.__name__]
    if isinstance(value, torch.Tensor):
        return _why_unreadable(value, write) or _convert(value, "mask", write)
    if isinstance(value, np.ma.MaskedArray):
        return f"say what its missing entries are: {write.format('mask.filled(False)')}, or True"
    if isinstance(value, np.ndarray):
        return _convert(value, "mask", write)
    if type(value).__module__.startswith("scipy.sparse"):
        return f"make it dense: {write.format('(mask != 0).toarray()')}"
    if isinstance(value, (str, os.PathLike)):
        return (
            "a mask file is read by AttentionMask.load(path), a folder that save_masks wrote by "
            "load_masks(model, folder), and a pattern is built by patterns.build(name, seq_len)"
        )
    if callable(value):
        return _for_a_function(value)
    if isinstance(value, (list, tuple)):
        return _for_a_list(value, write)
    if hasattr(value, "__array__"):
        return _convert(np.asarray(value), "numpy.asarray(mask)", write)
    return _SAY_WHERE


def numbers_in(value: Any) -> Numbers:
    """What the numbers of a tensor or array are, by their values.

    "0/1", "0" (nothing else), "additive" (0 and -inf, or large negative), "shares" (from 0 to 1),
    "packed" (uint8 above 1: eight positions a byte?), "NaN" (some are), "biases" (some hide),
    "scores" (other numbers), "unknown" (values that cannot be read).
    """
    x = value.detach() if isinstance(value, torch.Tensor) else value
    try:
        if (x != x).any():
            return "NaN"
        zero, hides = x == 0, x <= _HIDDEN
        if (zero | (x == 1)).all():
            return "0" if zero.all() else "0/1"
        if (zero | hides).all():
            return "additive"
        if ((x >= 0) & (x <= 1)).all():
            return "shares"
        if x.dtype in (torch.uint8, np.uint8):
            return "packed"
        return "biases" if hides.any() else "scores"
    except (RuntimeError, TypeError):  # complex numbers, or values that only exist in a trace
        return "unknown"


def _convert(x: Any, name: str, write: str) -> str:
    """Advice for a tensor or array, called `name` in it."""
    tensor = isinstance(x, torch.Tensor)
    if x.dtype in (torch.bool, np.bool_):
        return f"write {write.format(name)}"
    if not tensor and x.dtype.kind not in "iuf":
        return f"make it a bool array first; {_SAY_WHERE}"
    ones = write.format(f"{name}.bool()" if tensor else f"{name} != 0")
    zeros = write.format(f"{name} == 0")
    above = f"{name} > {{}}"
    text = {
        "0/1": f"as its values are 0 and 1: {ones} if 1 means may attend, {zeros} if 1 means "
        "hidden",
        "0": f"as all its values are 0: {zeros} if it is an additive mask (0 = may attend), "
        f"{ones} if 1 means may attend",
        "additive": f"as its values are 0 and -inf or large negative, an additive mask: {zeros}",
        "shares": "as its values are from 0 to 1: choose from where on they count, for example "
        f"{write.format(above.format(0.5))}",
        "packed": "as uint8 above 1: AttentionMask.from_packed(mask, kv_len) if a byte holds "
        f"eight positions; else {_SAY_WHERE}",
        "NaN": f"but not as it is, for some of its values are NaN; {_SAY_WHERE}",
        "biases": "as its values are biases, of which some hide: "
        f"{write.format(above.format(round(_HIDDEN)))}; a mask cannot keep the others",
        "scores": f"but not by a rule, as its values are neither 0 and 1 nor 0 and -inf; "
        f"{_SAY_WHERE}",
        "unknown": f"{ones} for a 0/1 mask (1 = may attend), {zeros} for an additive one "
        "(0 = may attend, -inf or a large negative number = hidden)",
    }[numbers_in(x)]
    if x.ndim == 4:
        text += "; of a mask [batch, heads, N, M] take one example's, mask[0]"
    if x.ndim == 2 and x.shape[0] != x.shape[1]:
        text += "; a mask of padding, [batch, N], is no such mask: pass it in the model's call"
    return f"convert it, {text}"


def _why_unreadable(x: torch.Tensor, write: str = "{}") -> str | None:
    """Why the entries cannot be read as they are, with the remedy; None if they can."""
    if x.layout != torch.strided:
        dense = "mask.to_dense()" if x.dtype == torch.bool else "mask.to_dense() != 0"
        return f"its layout is {x.layout}: {write.format(dense)}"
    if x.device.type == "meta" or hasattr(x, "fake_mode"):
        return "it has no values, being a meta or fake tensor; make the mask of a real one"
    return None


def _for_a_function(function: Any) -> str:
    if getattr(function, "__module__", "") == "sparsebert.masks.patterns":
        return f"call it: sparsebert.patterns.{function.__name__}(seq_len)"
    return (
        "a mask_mod(b, h, q_idx, kv_idx) becomes a mask by AttentionMask.from_mask_mod(mask_mod, "
        "num_heads, q_len, kv_len)"
    )


def _for_a_list(values: list[Any] | tuple[Any, ...], write: str) -> str:
    if values and all(type(each).__name__ == "AttentionMask" for each in values):
        return "put masks together with AttentionMask.stack_heads(masks) or stack_layers(masks)"
    if values and all(isinstance(each, torch.Tensor) for each in values):
        return f"put the tensors together: {write.format('torch.stack(mask)')}"
    try:
        array = np.array(values)
    except ValueError:
        return "its rows have different lengths; a mask has one for each query, all of one length"
    return _convert(array, "numpy.array(mask)", write)
