"""Who is timed: this project, and what a user would otherwise call.

A rival that cannot run a case says why, in words, and that is a row of the results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.cases import Case
from benchmarks.gate import Tensors, eager_attention
from sparsebert.masks import AttentionMask
from sparsebert.ops import sparse_attention
from sparsebert.plan import AttentionPlan

OURS = "sparsebert"
SDPA_MASK, EAGER, FLEX, FLEX_BEST = "SDPA + mask", "eager + mask", "FlexAttention", "Flex, tuned"
SDPA_DENSE = "SDPA dense"
FLASH, CUDNN, EFFICIENT = "flash dense", "cuDNN dense", "efficient dense"
DENSE = (SDPA_DENSE, FLASH, CUDNN, EFFICIENT)
EAGER_LIMIT = {"cpu": 2**28, "cuda": 2**33}  # bytes of one score matrix

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a contender may use: a case, its mask, plan and key mask, and tensors to try it on.

    Attributes:
        example: q, k and v of the case, with gradients if it trains.
        key_mask: bool [B, N], True = a real token, or None.
    """

    case: Case
    mask: AttentionMask
    plan: AttentionPlan
    example: Tensors
    key_mask: torch.Tensor | None

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.example[0].device

    def allowed(self) -> torch.Tensor:
        """Mask and key mask in one: bool [B or 1, H or 1, N, N] on the device."""
        dense = self.mask.dense().to(self.device)
        return dense if self.key_mask is None else dense & self.key_mask[:, None, None, :]


@dataclasses.dataclass(frozen=True)
class Ready:
    """A contender that is ready to run.

    Attributes:
        attention: q, k, v -> o.
        executed: share of the N x N scores that it computes.
        around: a context for its calls, entered once for many of them.
        note: what a reader should know.
    """

    attention: Attention
    executed: float
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Rival:
    """An entry of the table.

    Attributes:
        name, what: its name in the results, and what it is.
        devices: where it exists.
        masked: it computes what we compute, so its results are checked; else it ignores the mask
            and only its time counts.
        refusal: why it cannot run a case, "" if it can as far as one knows without trying.
        prepare: make it ready.
    """

    name: str
    what: str
    devices: tuple[str, ...]
    masked: bool
    refusal: Callable[[Case, str], str]
    prepare: Callable[[Setup], Ready]


def _any(case: Case, device: str) -> str:
    return ""


def _ours(setup: Setup) -> Ready:
    plan, key_mask, p = setup.plan, setup.key_mask, setup.case.dropout

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return sparse_attention(q, k, v, plan, key_mask=key_mask, dropout_p=p)

    return Ready(attention, plan.explain().executed_fraction)


def _sdpa_mask(setup: Setup) -> Ready:
    allowed, p = setup.allowed(), setup.case.dropout
    return Ready(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=p), 1.0
    )


def _sdpa_dense(setup: Setup) -> Ready:
    p = setup.case.dropout
    return Ready(lambda q, k, v: scaled_dot_product_attention(q, k, v, dropout_p=p), 1.0)


def _sdpa_backend(backend: SDPBackend) -> Callable[[Setup], Ready]:
    def prepare(setup: Setup) -> Ready:
        dense = _sdpa_dense(setup)
        return dataclasses.replace(dense, around=lambda: sdpa_kernel(backend))

    return prepare


def _half_only(case: Case, device: str) -> str:
    return "takes fp16 and bf16 only" if case.dtype == "float32" else ""


def _eager(setup: Setup) -> Ready:
    allowed, p = setup.allowed(), setup.case.dropout
    return Ready(lambda q, k, v: eager_attention(q, k, v, allowed, dropout_p=p), 1.0)


def _eager_refusal(case: Case, device: str) -> str:
    size = torch.finfo(getattr(torch, case.dtype)).bits // 8
    scores = size * case.batch * case.heads * case.length**2
    if scores <= EAGER_LIMIT[device]:
        return ""
    return f"one score matrix would take {scores / 2**30:.1f} GiB"


def _flex_refusal(case: Case, device: str) -> str:
    if case.dropout:
        return "has no dropout"
    if device == "cpu" and case.trains:
        return "has no backward pass on the CPU"
    return ""


@functools.cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    """FlexAttention as its documentation advises to call it."""
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    config.recompile_limit = 64  # many shapes and block sizes; and beyond it, never run it eager
    config.fail_on_recompile_limit_hit = True
    # Static shapes: with dynamic ones the generated C++ does not build for masks that are data.
    return torch.compile(flex_attention, dynamic=False)


def _block_mask(setup: Setup, block: int) -> Any:
    """The BlockMask of the mask and, where there is one, the key mask."""
    from torch.nn.attention.flex_attention import and_masks, create_block_mask

    of_mask = setup.mask.to_block_mask(block, device=setup.device)
    key_mask, case = setup.key_mask, setup.case
    if key_mask is None:
        return of_mask

    def real(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return key_mask[b, kv_idx]

    return create_block_mask(
        and_masks(of_mask.mask_mod, real), case.batch, setup.mask.num_heads, case.length,
        case.length, device=setup.device, BLOCK_SIZE=block,
    )  # fmt: skip


def _flex(setup: Setup, block: int = 128, options: dict[str, int] | None = None) -> Ready:
    flex, block_mask = _compiled_flex(), _block_mask(setup, block)
    return Ready(
        lambda q, k, v: flex(q, k, v, block_mask=block_mask, kernel_options=options),
        1.0 - float(block_mask.sparsity()) / 100.0,
    )


# Edges of the mask's blocks, and the kernels' tiles (forward; dk and dv; dq) that fit into them.
_FLEX_TILES = tuple(
    (
        block,
        {
            "BLOCK_M": m, "BLOCK_N": n,
            "BLOCK_M1": 32, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 32,
        },
    )
    for block, m, n in ((64, 64, 64), (128, 64, 64), (128, 128, 64))
)  # fmt: skip


def _flex_tuned(setup: Setup) -> Ready:
    """The fastest of FlexAttention's default and some other block sizes, by a short trial."""
    best, best_ms, failures = None, float("inf"), 0
    for block, options in ((128, None), *_FLEX_TILES):
        try:
            ready = _flex(setup, block, options)
            spent = _trial_ms(ready.attention, setup)
        except Exception:  # a tile that does not fit this GPU's memory, or a dtype
            failures += 1
            continue
        if spent < best_ms:
            tiles = f"tiles {options['BLOCK_M']} x {options['BLOCK_N']}" if options else "default"
            best_ms, best = spent, dataclasses.replace(ready, note=f"blocks of {block}, {tiles}")
    if best is None:
        raise RuntimeError(f"all {failures} block sizes failed")
    return best


def _trial_ms(attention: Attention, setup: Setup, repeats: int = 5) -> float:
    def run() -> None:
        with torch.set_grad_enabled(setup.case.trains):
            o = attention(*setup.example)
        if setup.case.trains:
            torch.autograd.grad(o, setup.example, o.detach())

    run()
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats * 1e3


RIVALS: tuple[Rival, ...] = (
    Rival(OURS, "this project, backend auto", ("cpu", "cuda"), True, _any, _ours),
    Rival(
        SDPA_MASK, "torch's SDPA with the boolean mask, its own choice of backend",
        ("cpu", "cuda"), True, _any, _sdpa_mask,
    ),
    Rival(
        SDPA_DENSE, "torch's SDPA without any mask: other numbers, the time of dense attention",
        ("cpu",), False, _any, _sdpa_dense,
    ),
    Rival(
        FLASH, "torch's SDPA without any mask, FlashAttention", ("cuda",), False, _half_only,
        _sdpa_backend(SDPBackend.FLASH_ATTENTION),
    ),
    Rival(
        CUDNN, "torch's SDPA without any mask, cuDNN", ("cuda",), False, _half_only,
        _sdpa_backend(SDPBackend.CUDNN_ATTENTION),
    ),
    Rival(
        EFFICIENT, "torch's SDPA without any mask, memory-efficient attention", ("cuda",), False,
        _any, _sdpa_backend(SDPBackend.EFFICIENT_ATTENTION),
    ),
    Rival(
        FLEX, "compiled FlexAttention with the same mask, default blocks", ("cpu", "cuda"), True,
        _flex_refusal, _flex,
    ),
    Rival(
        FLEX_BEST, "the same at the fastest of four block sizes", ("cuda",), True, _flex_refusal,
        _flex_tuned,
    ),
    Rival(
        EAGER, "the formula in torch operations, mask filled in: what the paper's authors run",
        ("cpu", "cuda"), True, _eager_refusal, _eager,
    ),
)  # fmt: skip


def rivals_on(device: str) -> tuple[Rival, ...]:
    """Who can be timed on "cpu" or "cuda", this project first."""
    return tuple(rival for rival in RIVALS if device in rival.devices)
