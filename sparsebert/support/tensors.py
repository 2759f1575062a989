"""May Python decide by a tensor's values, and what is it that they say?

While a call is traced, transformed by torch.func or captured, the values are not there, or not
the call's own; on a GPU, to read them is to wait for it.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is at work.

    Our ops have no rules for these; composed operations have.
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def has_own_values(x: torch.Tensor) -> bool:
    """Whether x is a plain tensor, and not one that is traced, or transformed by torch.func."""
    return type(x) is torch.Tensor and not (is_traced() or is_transformed())


def is_traced() -> bool:
    """Whether torch.compile, torch.export or torch.jit.trace makes a graph."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def are_plain(*tensors: torch.Tensor | None) -> bool:
    """Whether all have their own values, and nothing watches what operations do with them.

    A tensor that stands for its negative, or for zeros without memory, does not hold its values:
    torch makes them on an operation's way through the dispatcher.
    """
    if is_traced() or is_transformed() or torch._C._len_torch_dispatch_stack():
        return False
    for x in tensors:
        if x is not None and (type(x) is not torch.Tensor or x.is_neg() or x._is_zerotensor()):
            return False
    return True


def can_look_at(x: torch.Tensor, wait: bool = False) -> bool:
    """Whether Python may decide by the values of x.

    Args:
        wait: also where x lies on a GPU, which is waited for; not while a graph is captured.
    """
    if x.device.type == "cpu":
        return has_own_values(x)
    if not wait or x.is_meta or not has_own_values(x):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def may_hold_any(x: torch.Tensor, wait: bool = False) -> bool:
    """False only where a bool tensor is seen to hold no True; `wait` as in `can_look_at`."""
    return not can_look_at(x, wait) or bool(x.any())
