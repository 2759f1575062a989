"""The backend of the CPU kernels: groups of 16 rows, in C++ (`kernels/cpu`).

A program is one tensor, the plan image, which the kernels read in place; a call is one record of
numbers and addresses. So the host's part of a call does not grow with heads or tiles.
"""

from __future__ import annotations

import math
import struct
import threading
from typing import NamedTuple

import numpy as np
import torch

from sparsebert import dropout
from sparsebert.backends import dense
from sparsebert.backends.base import (
    Backend,
    Call,
    CallKind,
    Forward,
    ForwardAsked,
    Gradients,
    Upstream,
)
from sparsebert.backends.native_pack import pack_image, unpack_masks, work_of
from sparsebert.compiler.schedule import Schedule
from sparsebert.kernels.cpu.library import VERSION, load, warn_once
from sparsebert.support.untraced import untraced

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_CALL = struct.Struct("<50q2d4q")
"""`SbCall` of `kernels/cpu/abi.h`."""
_ABSENT = (0, 0, 0, 0)
_FORWARD = (0, 0)
"""The dtype and the heads of dk and dv, where there are none."""
_LEAST_WORK = 10_000
"""Of a thread, about cycles: to hand it work takes some 2 microseconds while torch's threads are
awake, as they are in the midst of a model."""
_BACKWARD = 3
"""The backward pass over the forward pass."""


class NativeProgram(NamedTuple):
    """What the kernels run of a plan.

    Attributes:
        image: uint8, see `native_pack`.
        whole: it is for all heads of a call.
        shared: they all have one mask.
        work: see `native_pack.work_of`.
    """

    image: torch.Tensor
    whole: bool
    shared: bool
    work: int


class Native(Backend):
    """The plan's tiles and single entries in the CPU kernels."""

    name = "native"
    Program = NativeProgram
    picks_heads = True
    skips_padding = True
    finishes = True
    composes = True
    composes_densely = True

    def refuses(self, kind: CallKind) -> list[str]:
        reasons = []
        if kind.device != "cpu":
            reasons.append(f"needs CPU tensors, got {kind.device}; move them")
        if kind.dtype not in _DTYPES:
            reasons.append(f"runs float32, bfloat16 and float16, got {kind.dtype}; convert them")
        found = load()
        if found.library is None:
            reasons.append(f"cannot run here: {found.reason}")
        return reasons

    def passed_over(self, kind: CallKind) -> None:
        if kind.dtype in _DTYPES:
            warn_once()

    def speed_depends_on(self) -> tuple[str, ...]:
        found = load()
        return () if found.library is None else (found.isa, found.build.get("sources", ""))

    def lower(self, schedule: Schedule, heads: np.ndarray) -> NativeProgram:
        tiles = schedule.queries(heads, singles=True)
        if schedule.is_shared:
            image = pack_image(tiles, None, None)
            return NativeProgram(image, True, True, work_of(image))
        chosen = schedule.heads_of(heads)
        whole = bool(heads.all())
        image = pack_image(tiles, schedule.head_map[chosen].tolist(), None if whole else chosen)
        return NativeProgram(image, whole, False, work_of(image))

    def forward(self, call: Call, program: NativeProgram) -> ForwardAsked:
        q, k, v = _readable(call.q), _readable(call.k), _readable(call.v)
        o = _new(q, q.shape[1], None, filled=not program.whole)
        lse = None
        if call.wants_lse:
            lse = q.new_empty(q.shape[:3], dtype=torch.float32)
            if not program.whole:
                lse.fill_(-math.inf)
        if q.shape[0]:
            _run(call, program, (*_at(q), *_at(k), *_at(v), *_at(o), *_ABSENT * 4), lse)
        return o, lse

    def backward(self, call: Call, program: NativeProgram, upstream: Upstream) -> Gradients:
        dtype = call.q.dtype
        # All in q's dtype: hooks of a graph that is compiled may have kept some in others.
        q, k, v = _readable(call.q), _readable(call.k, dtype), _readable(call.v, dtype)
        o, grad_o = _readable(upstream.o, dtype), _readable(upstream.grad_o, dtype)
        lse = _contiguous(upstream.lse)
        grad_lse = None if upstream.grad_lse is None else _contiguous(upstream.grad_lse)
        heads, kv_heads, filled = q.shape[1], k.shape[1], not program.whole
        # Those of query heads that share a key head are added up here, where all of them run.
        added = program.whole or heads == kv_heads
        grad_heads, grad_dtype = (kv_heads, dtype) if added else (heads, torch.float32)
        dq = _new(q, heads, None, filled)
        dk = _new(k, grad_heads, grad_dtype, filled)
        dv = _new(v, grad_heads, grad_dtype, filled)
        if q.shape[0]:
            tensors = (
                *_at(q), *_at(k), *_at(v), *_at(o), *_at(grad_o), *_at(dq), *_at(dk), *_at(dv)
            )  # fmt: skip
            _run(call, program, tensors, lse, grad_lse, (_DTYPES[grad_dtype], grad_heads))
        return dq, dk, dv

    def compose(self, call: Call, program: NativeProgram) -> Forward:
        with untraced():  # the image is not a variable of any transform
            every = dense.program_of(unpack_masks(program.image))
        return dense.BACKEND.compose(call, every)


BACKEND = Native()


def _readable(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """x [B, H, N, D] with its last dimension contiguous, in `dtype` if there is one."""
    if dtype is not None and x.dtype != dtype:
        x = x.to(dtype)
    return x if x.stride(3) == 1 else x.contiguous()


def _at(x: torch.Tensor) -> tuple[int, int, int, int]:
    """`SbTensor`: address, and strides of batch, head and row in elements."""
    batch, head, row, _ = x.stride()
    return x.data_ptr(), batch, head, row


def _new(x: torch.Tensor, heads: int, dtype: torch.dtype | None, filled: bool) -> torch.Tensor:
    """Memory for [B, heads, N, D] of x's other sizes, as [B, N, heads, D]; zeros if `filled`."""
    batch, _, rows, dim = x.shape
    row = heads * dim
    strides = rows * row, dim, row, 1
    made = x.new_empty_strided((batch, heads, rows, dim), strides, dtype=dtype)
    return made.zero_() if filled else made


def _contiguous(x: torch.Tensor) -> torch.Tensor:
    """x in fp32 and in one piece."""
    return x.to(torch.float32).contiguous() if x.dtype != torch.float32 else x.contiguous()


def _run(
    call: Call,
    program: NativeProgram,
    tensors: tuple[int, ...],
    lse: torch.Tensor | None,
    grad_lse: torch.Tensor | None = None,
    backward: tuple[int, int] | None = None,
) -> None:
    """Run a call; `backward` holds the dtype and the heads of dk and dv."""
    found = load()
    library, image = found.library, program.image
    assert library is not None
    if image.data_ptr() % 8:  # in a file that is mapped into memory
        image = image.clone()
    key_mask = None if call.key_mask is None else call.key_mask.to(torch.bool).contiguous()
    drops, seed, threshold, factor = False, 0, 0, 1.0
    if call.dropout_p > 0.0:
        assert call.seed is not None and call.heads is None
        drops, seed = True, int(call.seed)
        threshold, factor = dropout.drop_threshold(call.dropout_p), 1.0 / (1.0 - call.dropout_p)
    function = library.sparsebert_cpu_backward if backward else library.sparsebert_cpu_forward
    batch, heads, q_len, head_dim = call.q.shape
    _, kv_heads, kv_len, _ = call.k.shape
    numbers = (
        VERSION, image.data_ptr(), image.numel(),
        batch, heads, kv_heads, q_len, kv_len, head_dim,
        _DTYPES[call.q.dtype], *(backward or _FORWARD),
        *tensors, _address(lse), _address(grad_lse), _address(key_mask),
        drops, seed, threshold, factor, call.scale,
    )  # fmt: skip
    work = program.work * batch * (heads if program.shared else 1)
    work *= _BACKWARD if backward else 1
    threads = max(1, min(torch.get_num_threads(), work // _LEAST_WORK))
    end = threads, found.parallel_for
    scratch = _scratch.memory
    code = function(_CALL.pack(*numbers, scratch.data_ptr(), scratch.numel(), *end))
    if code < 0:
        scratch = _scratch.of_size(-code)
        code = function(_CALL.pack(*numbers, scratch.data_ptr(), scratch.numel(), *end))
    if code:
        raise RuntimeError(f"sparse_attention: the CPU kernels refused a call: {_ERRORS[code]}")


class _Scratch(threading.local):
    """A thread's scratch memory, kept for its next call: new memory costs a fault for each page.

    Attributes:
        memory: uint8; it grows with the calls, up to `_KEPT` bytes.
    """

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")

    def of_size(self, size: int) -> torch.Tensor:
        """Memory of so many bytes."""
        found = torch.empty(size, dtype=torch.uint8, device="cpu")
        if size <= _KEPT:
            self.memory = found
        return found


_KEPT = 16 << 20
_scratch = _Scratch()


def _address(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


_ERRORS = {
    1: "the library is of another version than this package; build it again",
    2: "the plan is damaged, or for tensors of other sizes; compile the mask again",
    3: "a size or dtype that no caller should pass",
    4: "the system refused memory, or torch's threads did not run",
}
