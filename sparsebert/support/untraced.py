"""Real tensors, whatever watches torch at the moment.

A plan is made once and kept for everybody. Made inside torch.export, torch.jit.trace, a
FakeTensorMode, a torch.func transform or `with torch.device(...)`, its tensors would be fakes,
part of a graph, wrappers that die with the transform, or on that device. So whatever is kept is
made inside `untraced()`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

Function = TypeVar("Function", bound=Callable[..., Any])


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Within it torch runs plainly: no modes, tracer or transforms, and no inference mode.

    Tensors that are made without a device lie on the CPU.
    """
    with (
        torch.device("cpu"),
        _disable_current_modes(),
        torch._C._DisableFuncTorch(),
        torch.inference_mode(False),  # or a later training could not use the tensors
    ):
        tracer = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch._C._set_tracing_state(tracer)  # type: ignore[attr-defined]


def constant_in_graphs(function: Function) -> Function:
    """Have torch.compile run a function when it makes a graph, and not look into it.

    As `torch.compiler.assume_constant_result` does, which imports Dynamo: that takes a second.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
