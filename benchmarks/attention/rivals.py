"""Who is timed: this project, and what a user would otherwise call.

A rival that cannot run a case says why, in words, and that is a row of the results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.attention import flex_rivals
from benchmarks.attention.cases import Case
from benchmarks.attention.contender import CaseSetup, Ready
from benchmarks.attention.correctness import eager_attention
from sparsebert.api import sparse_attention
from sparsebert.backends import routing
from sparsebert.plan import AttentionPlan, compile_for_backend

OURS = "sparsebert"
SDPA_MASK, EAGER = "SDPA + mask", "eager + mask"
FLEX, FLEX_FORMULA, FLEX_TUNED = "FlexAttention", "Flex, formula", "Flex, tuned"
SDPA_DENSE = "SDPA dense"
EXECUTOR = "torch executor"
FLASH, CUDNN, EFFICIENT = "flash dense", "cuDNN dense", "efficient dense"
DENSE = (SDPA_DENSE, FLASH, CUDNN, EFFICIENT)
EAGER_LIMIT = {"cpu": 2**25, "cuda": 2**33}  # bytes of all scores: for time, and for memory


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
    prepare: Callable[[CaseSetup], Ready]


def _any(case: Case, device: str) -> str:
    return ""


def _ours(setup: CaseSetup) -> Ready:
    return _by_plan(setup, setup.plan)


def _executor(setup: CaseSetup) -> Ready:
    case = setup.case
    made = compile_for_backend(
        setup.mask, "torch", target="cpu", head_dim=case.dim, copies=case.heads
    )
    # A plan of its own that holds, for what "auto" would run, the programs of these backends.
    plan = dataclasses.replace(made, programs={})
    dtype = getattr(torch, case.dtype)
    chosen = routing.Routes(*routing.choose("auto", "cpu", dtype, case.dim, False))
    plan.programs[chosen] = plan.program_for("torch", "dense")
    return _by_plan(setup, plan)


def _by_plan(setup: CaseSetup, plan: AttentionPlan) -> Ready:
    key_mask, p = setup.key_mask, setup.case.dropout

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return sparse_attention(q, k, v, plan, key_mask=key_mask, dropout_p=p)

    return Ready(attention, plan.explain().executed_fraction)


def _sdpa_mask(setup: CaseSetup) -> Ready:
    allowed, p = setup.allowed(), setup.case.dropout
    return Ready(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=p), 1.0
    )


def _sdpa_dense(setup: CaseSetup) -> Ready:
    p = setup.case.dropout
    return Ready(lambda q, k, v: scaled_dot_product_attention(q, k, v, dropout_p=p), 1.0)


def _sdpa_backend(backend: SDPBackend) -> Callable[[CaseSetup], Ready]:
    def prepare(setup: CaseSetup) -> Ready:
        dense = _sdpa_dense(setup)
        return dataclasses.replace(dense, around=lambda: sdpa_kernel(backend))

    return prepare


def _half_only(case: Case, device: str) -> str:
    return "takes fp16 and bf16 only" if case.dtype == "float32" else ""


def _eager(setup: CaseSetup) -> Ready:
    allowed, p = setup.allowed(), setup.case.dropout
    return Ready(
        lambda q, k, v: eager_attention(q, k, v, allowed, dropout_p=p), 1.0, stores_scores=True
    )


def _eager_refusal(case: Case, device: str) -> str:
    if device == "cpu" and case.dtype != "float32":
        return "left out: without instructions for 16 bits it takes seconds"
    size = torch.finfo(getattr(torch, case.dtype)).bits // 8
    scores = size * case.batch * case.heads * case.length**2
    if scores <= EAGER_LIMIT[device]:
        return ""
    return f"left out: slow, the scores alone take {scores / 1e6:.0f} MB"


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
        EXECUTOR, "this project without the native kernels: tiles in torch operations, or dense",
        ("cpu",), True, _any, _executor,
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
        FLEX, "compiled FlexAttention with the same mask as bits, default blocks",
        ("cpu", "cuda"), True, flex_rivals.refusal, flex_rivals.with_bits,
    ),
    Rival(
        FLEX_FORMULA, "compiled FlexAttention with the pattern's formula, default blocks",
        ("cpu", "cuda"), True, flex_rivals.formula_refusal, flex_rivals.with_formula,
    ),
    Rival(
        FLEX_TUNED, "with bits, the fastest of four choices of blocks and tiles",
        ("cuda",), True, flex_rivals.tuned_refusal, flex_rivals.tuned,
    ),
    Rival(
        EAGER, "the formula in torch operations, mask filled in: what the paper's authors run",
        ("cpu", "cuda"), True, _eager_refusal, _eager,
    ),
)  # fmt: skip


def rivals_on(device: str) -> tuple[Rival, ...]:
    """Who can be timed on "cpu" or "cuda", this project first."""
    return tuple(rival for rival in RIVALS if device in rival.devices)
