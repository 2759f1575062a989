"""What a case runs on: its plan, its tensors, and the calls over them."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.attention.cases import Case
from benchmarks.attention.correctness import Tensors
from benchmarks.harness import gpu_timing
from sparsebert.masks import AttentionMask
from sparsebert.plan import AttentionPlan, compile_for

MOST_SETS = 64
_CPU_CACHE = 32 * 2**20  # where the system does not say


@functools.lru_cache(maxsize=16)
def compiled_plan(
    mask: AttentionMask,
    device: str,
    head_dim: int = 64,
    heads: int | None = None,
    threads: int | None = None,
) -> tuple[AttentionPlan, float]:
    """The plan that `sparse_attention` would make of the mask, and the milliseconds it took.

    `threads` are torch's, which shape plans, so that each number of them has plans of its own.
    """
    start = time.perf_counter()
    plan = compile_for(mask, torch.device(device), head_dim, heads)
    return plan.to(device), (time.perf_counter() - start) * 1e3


def tensors_of(case: Case, device: str) -> Tensors:
    """q, k, v and the gradient of o, [B, H, N, D] in HuggingFace's memory order."""
    shape = (case.batch, case.length, case.heads, case.dim)
    dtype = getattr(torch, case.dtype)
    made = [torch.randn(shape, device=device, dtype=dtype).transpose(1, 2) for _ in range(4)]
    return (*(x.requires_grad_(case.trains) for x in made[:3]), made[3])


def sets_of(case: Case, device: str) -> list[Tensors]:
    """As many sets of tensors as take turns, the same in every run.

    Cases of one shape share their numbers: making these takes longer than timing a short case.
    """
    torch.manual_seed(0)
    made = _numbers(
        dataclasses.replace(case, group="", mask="", direction="", dropout=0.0, padding=0.0),
        device,
    )
    return [
        (*(x.detach().requires_grad_(case.trains) for x in tensors[:3]), tensors[3])
        for tensors in made
    ]


@functools.lru_cache(maxsize=1)
def _numbers(case: Case, device: str) -> list[Tensors]:
    return [tensors_of(case, device) for _ in range(number_of_sets(case, device))]


def number_of_sets(case: Case, device: str) -> int:
    """As many that they take twice the last cache."""
    size = torch.finfo(getattr(torch, case.dtype)).bits // 8
    of_one = 3 * size * case.batch * case.heads * case.length * case.dim
    cache = gpu_timing.cache_bytes() if device == "cuda" else _cpu_cache_bytes()
    return min(MOST_SETS, max(2, -(-2 * cache // of_one)))


def _cpu_cache_bytes() -> int:
    try:
        return os.sysconf("SC_LEVEL3_CACHE_SIZE") or _CPU_CACHE
    except (ValueError, OSError, AttributeError):  # unknown on this system
        return _CPU_CACHE


def key_mask_of(case: Case, device: str) -> torch.Tensor | None:
    """bool [B, N]: the samples end at different lengths, `padding` less than N on average."""
    if not case.padding:
        return None
    share = torch.linspace(0.0, 2.0 * case.padding, case.batch) if case.batch > 1 else case.padding
    real = ((1.0 - torch.as_tensor(share).reshape(-1, 1)) * case.length).long()  # [B, 1]
    return (torch.arange(case.length) < real).to(device)


def call_of(
    attention: Callable[..., torch.Tensor], sets: Iterator[Tensors], trains: bool
) -> Callable[[], object]:
    """A call that takes the next set of inputs each time."""

    def forward() -> None:
        q, k, v, _ = next(sets)
        with torch.no_grad():
            attention(q, k, v)

    def both() -> None:
        q, k, v, grad_o = next(sets)
        torch.autograd.grad(attention(q, k, v), (q, k, v), grad_o)

    return both if trains else forward
