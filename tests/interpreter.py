"""What Triton's interpreter computes differently from every GPU, put right."""

from typing import Any

import numpy as np
import torch
from triton import language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_cast = InterpreterBuilder.cast_impl


def round_to_nearest() -> None:
    """Round fp32 to bf16 as GPUs do, to nearest even; the interpreter cuts off (Triton 3.9)."""
    InterpreterBuilder.cast_impl = _rounding_cast


def _rounding_cast(self: Any, source: Any, dtype: Any) -> Any:
    if source.dtype.scalar != tl.float32 or dtype.scalar != tl.bfloat16:
        return _cast(self, source, dtype)
    rounded = torch.from_numpy(np.array(source.data)).bfloat16().view(torch.int16)
    return TensorHandle(rounded.numpy().view(np.uint16), dtype.scalar)
