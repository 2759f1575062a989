"""FlexAttention as a rival: with the mask's bits, tuned, and with the pattern's formula.

FlexAttention tests a mask in a function of the indices. Any mask can be given to it as packed
bits; a pattern can be written as its formula, which saves loading them. Each formula and length
is compiled anew, and each block size, so these are timed in some groups and lengths only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.attention.cases import Case
from benchmarks.attention.contender import Attention, CaseSetup, Ready
from sparsebert.masks import AttentionMask

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

FORMULA_LENGTHS = (1024, 4096)
COMPILED_OFTEN = ("paper-short", "paper-long", "quick")  # groups with formulas and tuning
Mod = Callable[[Any, Any, Any, Any], Any]


def _window(window: int) -> Mod:
    return lambda b, h, i, j: (i - j).abs() <= window


def _longformer(window: int, num_global: int) -> Mod:
    return lambda b, h, i, j: ((i - j).abs() <= window) | (i < num_global) | (j < num_global)


def _dilated(window: int, dilation: int) -> Mod:
    def mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        gap = (i - j).abs()
        return (gap <= window * dilation) & (gap % dilation == 0)

    return mod


def _strided(stride: int) -> Mod:
    def mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        gap = (i - j).abs()
        return (gap < stride) | (gap % stride == 0)

    return mod


def _log_sparse() -> Mod:
    def mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        gap = (i - j).abs()
        return gap & (gap - 1) == 0

    return mod


def _fixed(block: int, summary: int) -> Mod:
    return lambda b, h, i, j: (i // block == j // block) | (j % block >= block - summary)


# A pattern's mask_mod, from the parameters that the mask was made with.
FORMULAS: dict[str, Callable[..., Mod]] = {
    "star": lambda window: _longformer(window, 1),
    "longformer": _longformer,
    "log_sparse": _log_sparse,
    "strided": _strided,
    "fixed": _fixed,
    "sliding_window": _window,
    "dilated_window": _dilated,
    "block_local": lambda block: lambda b, h, i, j: i // block == j // block,
    "causal": lambda: lambda b, h, i, j: j <= i,
}


def formula(mask: AttentionMask) -> Mod:
    """The mask_mod of a mask made by a pattern of `FORMULAS`."""
    record = mask.provenance
    name = record.pop("pattern")
    del record["seq_len"]
    return FORMULAS[name](**record)


def refusal(case: Case, device: str) -> str:
    """Why FlexAttention cannot run a case."""
    if case.dropout:
        return "has no dropout"
    if device == "cpu" and case.trains:
        return "has no backward pass on the CPU"
    return ""


def formula_refusal(case: Case, device: str) -> str:
    """Why it is not run with the pattern's formula."""
    if case.mask not in FORMULAS:
        return "the mask has no formula"
    if case.group not in COMPILED_OFTEN or case.length not in FORMULA_LENGTHS:
        lengths = " and ".join(map(str, FORMULA_LENGTHS))
        return f"left out: compiled anew each time, so only in paper-* at N = {lengths}"
    return refusal(case, device)


def tuned_refusal(case: Case, device: str) -> str:
    """Why its block sizes are not tried."""
    if case.group not in COMPILED_OFTEN:
        return "left out: compiled for each block size, so only in paper-*"
    return refusal(case, device)


@functools.cache
def compiled() -> Callable[..., torch.Tensor]:
    """FlexAttention as its documentation advises to call it."""
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    # Many masks, shapes and block sizes; and beyond so many, never run it eager.
    config.recompile_limit = config.accumulated_recompile_limit = 1024
    config.fail_on_recompile_limit_hit = True
    # Static shapes: with dynamic ones the generated C++ does not build for masks that are data.
    return torch.compile(flex_attention, dynamic=False)


def with_bits(setup: CaseSetup) -> Ready:
    """The mask's bits, default blocks."""
    return _ready(_block_mask(setup, 128))


def with_formula(setup: CaseSetup) -> Ready:
    """The pattern's formula, default blocks."""
    from torch.nn.attention.flex_attention import create_block_mask

    length = setup.case.length
    return _ready(
        create_block_mask(formula(setup.mask), None, None, length, length, device=setup.device)
    )


def _block_mask(setup: CaseSetup, block: int) -> BlockMask:
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


def _ready(block_mask: BlockMask, options: dict[str, int] | None = None) -> Ready:
    flex = compiled()
    return Ready(
        lambda q, k, v: flex(q, k, v, block_mask=block_mask, kernel_options=options),
        1.0 - float(block_mask.sparsity()) / 100.0,
    )


# Edges of the mask's blocks, and kernel tiles that fit into them: of the forward pass, and for
# small blocks also of the two kernels of the backward pass, whose defaults do not fit.
_SMALL = {"BLOCK_M1": 32, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 32}
_TILES: tuple[tuple[int, dict[str, int] | None], ...] = (
    (128, None),
    (128, {"BLOCK_M": 128, "BLOCK_N": 64}),
    (128, {"BLOCK_M": 64, "BLOCK_N": 64}),
    (64, {"BLOCK_M": 64, "BLOCK_N": 64, **_SMALL}),
)


def tuned(setup: CaseSetup) -> Ready:
    """The fastest of FlexAttention's default and some other block sizes, by a short trial."""
    best, best_ms, failures = None, float("inf"), 0
    for block, options in _TILES:
        try:
            ready = _ready(_block_mask(setup, block), options)
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


def _trial_ms(attention: Attention, setup: CaseSetup) -> float:
    from triton.testing import do_bench

    def run() -> None:
        with torch.set_grad_enabled(setup.case.trains):
            o = attention(*setup.example)
        if setup.case.trains:
            torch.autograd.grad(o, setup.example, o.detach())

    return float(do_bench(run, return_mode="median"))
