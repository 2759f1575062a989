"""The backend of Triton kernels: the plan's tiles on CUDA and HIP devices.

The kernels stand in `sparsebert.kernels`, and know nothing of this package. They see all heads of
a call: those that others run as if their masks were empty.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsebert import dropout
from sparsebert.backends import triton_pack
from sparsebert.backends.base import Backend, Call, CallKind, Forward, Gradients, Upstream
from sparsebert.compiler.schedule import Schedule
from sparsebert.kernels.program import KernelProgram

if TYPE_CHECKING:
    from sparsebert.kernels.attention import Options

_HAS_TRITON = importlib.util.find_spec("triton") is not None


class Triton(Backend):
    """The plan's tiles in Triton kernels."""

    name = "triton"
    Program = KernelProgram
    picks_heads = True
    skips_padding = True

    def refuses(self, kind: CallKind) -> list[str]:
        reasons = []
        if not _HAS_TRITON:
            reasons.append(
                "needs Triton, which is not installed; pip install 'sparsebert[triton]'"
            )
        if kind.dtype == torch.float64:
            reasons.append("takes fp16, bf16 and fp32, got torch.float64; convert the tensors")
        if kind.device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            reasons.append(
                f"needs CUDA or HIP tensors, got {kind.device}; move them, or set "
                "TRITON_INTERPRET=1 before Python starts to have the kernels interpreted on the "
                "CPU"
            )
        return reasons

    def lower(self, schedule: Schedule, heads: np.ndarray) -> KernelProgram:
        sides = schedule.queries(heads), schedule.keys(heads)
        return triton_pack.pack_program(*sides, schedule.head_map)

    def passes_on(self, program: KernelProgram) -> bool:
        return bool(program.queries.chained)

    def forward(self, call: Call, program: KernelProgram) -> Forward:
        kernels = _kernels()
        o, lse = kernels.forward(call.q, call.k, call.v, program, _options(kernels, call))
        return o, lse

    def backward(self, call: Call, program: KernelProgram, upstream: Upstream) -> Gradients:
        kernels = _kernels()
        dq, dk, dv = kernels.backward(
            upstream.grad_o, upstream.grad_lse, call.q, call.k, call.v, upstream.o, upstream.lse,
            program, _options(kernels, call),
        )  # fmt: skip
        return dq, dk, dv


BACKEND = Triton()


def _kernels() -> Any:
    """The kernels, which need Triton."""
    from sparsebert.kernels import attention

    return attention


def _options(kernels: Any, call: Call) -> Options:
    options: Options = kernels.Options(
        call.scale,
        call.key_mask,
        call.seed,
        call.dropout_p,
        dropout.drop_threshold(call.dropout_p),
    )
    return options
